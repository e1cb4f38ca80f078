"""Drawn shapes: a data set that needs no download.

    images, labels = draw_shapes(1000, image_size=32, seed=0)     # uint8 (1000, 3, 32, 32), int64 (1000,)
    classes = tuple(SHAPES)                                       # the name of each label

The tests train on it. Users can train on it right after the installation.
"""

import numpy as np
import torch

CHUNK = 50  # images to draw at once; more need more memory and are not drawn faster


def draw_shapes(count, image_size, seed):
    """Draw `count` images of the ten `SHAPES` in turn. The same seed always gives the same images.

    Each image shows one shape on a plain background. The position, the size, a slight rotation and the two colors are
    random, and a little noise is added.

    Returns:
        uint8 (count, 3, image_size, image_size) and labels, int64 (count,).
    """
    random = np.random.RandomState(seed)
    labels = np.arange(count) % len(SHAPES)
    radius = random.uniform(0.22, 0.42, count) * image_size
    center = random.uniform(0.38, 0.62, (2, count)) * image_size
    angle = random.uniform(-0.3, 0.3, count)
    background = random.uniform(0.0, 1.0, (count, 3))
    color = (background + random.uniform(0.3, 0.7, (count, 3))) % 1.0  # far from the background in every channel
    pixels = np.arange(image_size, dtype=np.float32) + 0.5
    images = np.empty((count, 3, image_size, image_size), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        chunk = np.arange(start, min(start + CHUNK, count))
        noise = random.standard_normal((len(chunk), 3, image_size, image_size)).astype(np.float32) * 0.04
        for label, distance_to in enumerate(SHAPES.values()):
            members = chunk[labels[chunk] == label]
            x = (pixels[None, None, :] - center[0, members][:, None, None]) / radius[members][:, None, None]
            y = (pixels[None, :, None] - center[1, members][:, None, None]) / radius[members][:, None, None]
            cos, sin = np.cos(angle[members])[:, None, None], np.sin(angle[members])[:, None, None]
            distance = distance_to(cos * x + sin * y, cos * y - sin * x)
            coverage = np.clip(0.5 - distance * radius[members][:, None, None], 0, 1)[:, None]  # antialiased edges
            foreground = coverage * color[members][:, :, None, None]
            values = foreground + (1 - coverage) * background[members][:, :, None, None] + noise[members - start]
            images[members] = (np.clip(values, 0, 1) * 255).round()
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _circle(x, y):
    return np.hypot(x, y) - 1


def _square(x, y):
    return np.maximum(abs(x), abs(y)) - 0.85


def _stripes(position):
    """Negative in every second stripe along an axis, positive in the stripes between them."""
    return 0.6 * abs(position / 0.6 % 1 - 0.5) - 0.15


# Each shape has a radius of 1 and its center at the origin. Its function of (x, y) is negative inside the shape and
# positive outside. Near the edge, the absolute value is about the distance to the edge.
SHAPES = {
    "circle": _circle,
    "square": _square,
    "triangle": lambda x, y: np.maximum(y - 0.6, 0.88 * abs(x) - 0.47 * y - 0.45),
    "diamond": lambda x, y: (abs(x) + abs(y)) / 2**0.5 - 0.75,
    "cross": lambda x, y: np.minimum(
        np.maximum(abs(x) - 0.3, abs(y) - 1),
        np.maximum(abs(y) - 0.3, abs(x) - 1),
    ),
    "ring": lambda x, y: abs(_circle(x, y) + 0.25) - 0.25,
    "moon": lambda x, y: np.maximum(_circle(x, y), 0.8 - np.hypot(x - 0.5, y)),
    "horizontal stripes": lambda x, y: np.maximum(_square(x, y), _stripes(y)),
    "vertical stripes": lambda x, y: np.maximum(_square(x, y), _stripes(x)),
    "checkerboard": lambda x, y: np.maximum(_square(x, y), -_stripes(x) * _stripes(y) / 0.15),
}
