"""A data set of drawn shapes that needs no download."""

import numpy as np
import torch


def _square(x, y):
    return np.maximum(abs(x), abs(y)) - 0.85


def _circle(x, y):
    return np.hypot(x, y) - 1


def _bands(along):
    """Negative on every second band across an axis, positive between."""
    return 0.6 * abs(along / 0.6 % 1 - 0.5) - 0.15


# How far (x, y) lies outside a shape of radius 1 about the origin, in radii; negative inside.
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
    "horizontal stripes": lambda x, y: np.maximum(_square(x, y), _bands(y)),
    "vertical stripes": lambda x, y: np.maximum(_square(x, y), _bands(x)),
    "checkerboard": lambda x, y: np.maximum(_square(x, y), -_bands(x) * _bands(y) / 0.15),
}


def draw_shapes(count, image_size, seed):
    """Draw `count` images of the ten `SHAPES` in turn, the same for a seed.

    A shape of one colour on a ground of another, with its own place, size and slight rotation, under a little noise.

    Returns:
        uint8 (count, 3, image_size, image_size) and labels, int64 (count,).
    """
    random = np.random.RandomState(seed)
    labels = np.arange(count) % len(SHAPES)
    radius = random.uniform(0.22, 0.42, count) * image_size
    centre = random.uniform(0.38, 0.62, (2, count)) * image_size
    angle = random.uniform(-0.3, 0.3, count)
    ground = random.uniform(0.0, 1.0, (count, 3))
    colour = (ground + random.uniform(0.3, 0.7, (count, 3))) % 1.0  # far from the ground in every channel
    noise = random.standard_normal((count, 3, image_size, image_size)).astype(np.float32) * 0.04
    pixels = np.arange(image_size, dtype=np.float32) + 0.5
    images = np.empty((count, 3, image_size, image_size), dtype=np.uint8)
    for label, distance_to in enumerate(SHAPES.values()):
        of = np.flatnonzero(labels == label)
        x = (pixels[None, None, :] - centre[0, of][:, None, None]) / radius[of][:, None, None]
        y = (pixels[None, :, None] - centre[1, of][:, None, None]) / radius[of][:, None, None]
        cos, sin = np.cos(angle[of])[:, None, None], np.sin(angle[of])[:, None, None]
        distance = distance_to(cos * x + sin * y, cos * y - sin * x)
        cover = np.clip(0.5 - distance * radius[of][:, None, None], 0, 1)[:, None]
        drawn = cover * colour[of][:, :, None, None] + (1 - cover) * ground[of][:, :, None, None] + noise[of]
        images[of] = (np.clip(drawn, 0, 1) * 255).round()
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
