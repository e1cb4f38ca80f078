"""Corruptions of whole batches, for tests of robustness: ten in the style of CIFAR-10-C, and four others.

    corruption = CORRUPTIONS["fog"]
    corrupted = corruption.apply(images, level=3, seed=0)       # uint8 (B, 3, H, W) -> uint8 (B, 3, H, W)

The ten have the kinds and, at severities 1, 3 and 5, the strengths of CIFAR-10-C (Hendrycks and Dietterich, 2019,
https://arxiv.org/abs/1903.12261), which are meant for images of 32 pixels. They are not its images: the random numbers
differ, and values are rounded, where CIFAR-10-C cuts decimals off.

To add one, write a function and an entry in `CORRUPTIONS`. The functions take uint8 images (B, 3, H, W) on the CPU, a
strength, and NumPy's `RandomState`, which only some of them use. They return new uint8 images.
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from vit_cifar10.data.jpeg import compress

SIDE_MULTIPLE = 8  # patches of an eighth of the side are shuffled and occluded
GRAY = 128


# Noise


def gaussian_noise(images, strength, random):
    """Add normal noise with the standard deviation `strength`, as a fraction of the range of a pixel's values."""
    return to_uint8(images / 255 + strength * torch.from_numpy(random.standard_normal(images.shape)))


def impulse_noise(images, strength, random):
    """Set a fraction `strength` of the values to 0 or 255, each of the three colors on its own."""
    is_hit = torch.from_numpy(random.random_sample(images.shape) <= strength)
    is_white = torch.from_numpy(random.random_sample(images.shape) <= 0.5)
    return torch.where(is_hit, 255 * is_white.to(torch.uint8), images)


# Blur


def defocus_blur(images, strength, random):
    """Average over a disk; `strength` is its radius in pixels, and the standard deviation that softens its edge."""
    radius, sigma = strength
    reach = int(radius) + 1
    square = torch.arange(-reach, reach + 1).double().square()
    disk = (square + square[:, None] <= radius**2).double()
    bell = (torch.tensor([1.0, 0.0, 1.0]).double() / (-2 * sigma**2)).exp()
    soft = F.conv2d(disk[None, None], torch.outer(bell, bell)[None, None], padding=1)
    padded = F.pad(images.double().flatten(0, 1)[:, None] / 255, [reach] * 4, mode="reflect")
    return to_uint8(F.conv2d(padded, soft / soft.sum())).view_as(images)


def motion_blur(images, strength, random):
    """Average along a line whose direction is random for each image, within 45 degrees of horizontal.

    The weights are half a bell curve, as in ImageMagick; `strength` is their radius and standard deviation in pixels.
    """
    radius, sigma = strength
    distance = np.arange(2 * radius + 1)
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    angle = np.radians(random.uniform(-45, 45, (len(images), 1)))
    down, right = (np.ceil(distance * turn(angle) - 0.5).astype(int) for turn in (np.sin, np.cos))  # (B, distances)
    height, width = images.shape[2:]
    rows = torch.from_numpy(np.clip(np.arange(height) + down[..., None], 0, height - 1))
    columns = torch.from_numpy(np.clip(np.arange(width) + right[..., None], 0, width - 1))
    index, total = torch.arange(len(images))[:, None, None], 0
    for place, weight in enumerate(weights / weights.sum()):
        total = total + weight * images.permute(0, 2, 3, 1)[index, rows[:, place, :, None], columns[:, place, None, :]]
    return to_uint8(total.permute(0, 3, 1, 2) / 255)


def zoom_blur(images, strength, random):
    """Average the image and copies of it, enlarged by factors from 1 to below `strength` in steps of 0.01.

    The factors, with their rounding errors, and the sizes of the copies are those of CIFAR-10-C.
    """
    height, width = images.shape[2:]
    pixels, factors = images / 255.0, np.arange(1, strength, 0.01)
    total = pixels.clone()
    for factor in factors:
        seen = [int(np.ceil(side / factor)) for side in (height, width)]
        top, left = (height - seen[0]) // 2, (width - seen[1]) // 2
        part = pixels[:, :, top : top + seen[0], left : left + seen[1]]
        sizes = [round(side * factor) for side in seen]
        enlarged = F.interpolate(part, sizes, mode="bilinear", align_corners=True)
        top, left = (sizes[0] - height) // 2, (sizes[1] - width) // 2
        total += enlarged[:, :, top : top + height, left : left + width]
    return to_uint8(total / (len(factors) + 1))


# Weather and light


def fog(images, strength, random):
    """Add clouds to an image; `strength` is their brightness, and by how much finer structures are fainter."""
    brightness, decay = strength
    height, width = images.shape[2:]
    clouds = plasma(len(images), 1 << (max(height, width) - 1).bit_length(), decay, random)[:, None, :height, :width]
    pixels = images / 255
    brightest = pixels.amax(dim=(1, 2, 3), keepdim=True)
    return to_uint8((pixels + brightness * clouds) * brightest / (brightest + brightness))


def plasma(count, side, decay, random):
    """Clouds from the diamond-square algorithm on a torus, (count, side, side) in [0, 1]. `side` is a power of two.

    Halving the step, each new point is the mean of its four neighbors plus noise, whose amplitude is divided by
    `decay`**2.
    """
    heights = np.zeros((count, side, side))
    step, amplitude = side, 100.0

    def near(neighbors):
        return sum(neighbors) / 4 + amplitude**2 * random.uniform(-1, 1, neighbors[0].shape)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        right = np.roll(corners, -1, axis=2)
        below, opposite = np.roll(corners, -1, axis=1), np.roll(right, -1, axis=1)
        centers = near([corners, right, below, opposite])
        above, before = np.roll(centers, 1, axis=1), np.roll(centers, 1, axis=2)
        heights[:, half::step, half::step] = centers
        heights[:, ::step, half::step] = near([corners, right, centers, above])
        heights[:, half::step, ::step] = near([corners, below, centers, before])
        step, amplitude = half, amplitude / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return torch.from_numpy(heights / heights.max(axis=(1, 2), keepdims=True))


def contrast(images, strength, random):
    """Multiply the distance of each value from the mean of its color by `strength`."""
    pixels = images.double() / 255
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    return to_uint8(mean + strength * (pixels - mean))


def brightness(images, strength, random):
    """Raise the value V of each pixel's HSV color by `strength`. Hue and saturation stay, so all colors scale by V."""
    pixels = images.double() / 255
    value = pixels.amax(dim=1, keepdim=True)
    raised = (value + strength).clamp(max=1)
    return to_uint8(torch.where(value > 0, pixels / value * raised, raised))


# Digital


def pixelate(images, strength, random):
    """Reduce the image to a fraction `strength` of its side, and enlarge it again, as Pillow does with its box filter.

    Each value is rounded after every step: the rows, then the columns.
    """
    small = [int(side * strength) for side in images.shape[2:]]
    return resize_box(resize_box(images, small), images.shape[2:])


def resize_box(images, sizes):
    """Resize uint8 (..., H, W). A new pixel is the mean of those whose centers it covers, or else the nearest one."""
    values = images.double()
    values = (values @ box_weights(values.shape[-1], sizes[1]).T + 0.5).floor()
    return (box_weights(values.shape[-2], sizes[0]) @ values + 0.5).floor().to(torch.uint8)


def box_weights(old, new):
    """The weights of `old` pixels in each of `new` pixels, (new, old)."""
    scale = old / new
    reach = max(scale, 1) / 2
    distance = torch.arange(old).double() + 0.5 - (torch.arange(new).double()[:, None] + 0.5) * scale
    weights = ((distance > -reach) & (distance <= reach)).double()
    return weights / weights.sum(dim=1, keepdim=True)


def jpeg(images, strength, random):
    """Compress the image as JPEG of the quality `strength`."""
    return compress(images, strength)


# Frequencies


def low_pass(images, strength, random):
    """Keep the waves of at most `strength` cycles per image."""
    return to_uint8(low_frequencies(images, strength))


def high_pass(images, strength, random):
    """Keep the mean color, and the waves of more than `strength` cycles per image."""
    pixels = images.double() / 255
    return to_uint8(pixels - low_frequencies(images, strength) + pixels.mean(dim=(2, 3), keepdim=True))


def low_frequencies(images, radius):
    """The part of an image with at most `radius` cycles per image, double (B, 3, H, W)."""
    height, width = images.shape[2:]
    rows, columns = (torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) for side in (height, width))
    is_low = rows[:, None].square() + columns.square() <= radius**2
    return torch.fft.ifft2(torch.fft.fft2(images.double() / 255) * is_low).real


# Patches


def shuffle_patches(images, strength, random):
    """Cut the image into `strength` × `strength` patches, and put them together in a random order."""
    order = torch.from_numpy(random.random_sample((len(images), strength**2)).argsort(axis=1))
    patches = to_patches(images, strength)
    return from_patches(patches[torch.arange(len(images))[:, None], order], strength)


def occlude(images, strength, random):
    """Make a fraction `strength` of the 8 × 8 patches of the image gray, at random."""
    rank = torch.from_numpy(random.random_sample((len(images), SIDE_MULTIPLE**2)).argsort(axis=1).argsort(axis=1))
    is_gray = rank < round(strength * SIDE_MULTIPLE**2)
    patches = to_patches(images, SIDE_MULTIPLE).masked_fill(is_gray[..., None, None, None], GRAY)
    return from_patches(patches, SIDE_MULTIPLE)


def to_patches(images, grid):
    """(B, 3, H, W) -> (B, grid², 3, H / grid, W / grid), row by row."""
    rows = images.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))  # (B, 3, grid, h, grid, w)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def from_patches(patches, grid):
    """The inverse of `to_patches`."""
    return patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def to_uint8(pixels):
    """Pixels in [0, 1] as uint8, rounded and clipped."""
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8)


# The table


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        function: changes a batch of images; see the top of this file.
        strengths: {level: the function's strength}, from weak to strong. The level is what tables and pictures show.
        unit: what the level is. If it is a severity, the kind and the strengths are those of CIFAR-10-C.
    """

    function: Callable
    strengths: dict
    unit: str = "severity"

    @property
    def in_cifar_c(self):
        return self.unit == "severity"

    def apply(self, images, level, seed):
        """Corrupt uint8 (B, 3, H, W). Equal images, levels and seeds give equal bytes."""
        random = np.random.RandomState(zlib.crc32(f"{self.function.__name__} {level} {seed}".encode()))
        return self.function(images, self.strengths[level], random)


def severities(function, *strengths):
    """A kind of CIFAR-10-C with its strengths at severities 1, 3 and 5."""
    return Corruption(function, dict(zip(("1", "3", "5"), strengths, strict=True)))


CORRUPTIONS = {
    "gaussian noise": severities(gaussian_noise, 0.04, 0.08, 0.10),
    "impulse noise": severities(impulse_noise, 0.01, 0.03, 0.07),
    "defocus blur": severities(defocus_blur, (0.3, 0.4), (0.5, 0.6), (1.5, 0.1)),
    "motion blur": severities(motion_blur, (6, 1), (6, 2), (9, 2.5)),
    "zoom blur": severities(zoom_blur, 1.06, 1.16, 1.26),
    "fog": severities(fog, (0.2, 3), (0.75, 2.5), (1.5, 1.75)),
    "contrast": severities(contrast, 0.75, 0.4, 0.15),
    "brightness": severities(brightness, 0.05, 0.15, 0.3),
    "pixelate": severities(pixelate, 0.95, 0.85, 0.65),
    "JPEG": severities(jpeg, 80, 58, 40),
    "shuffled patches": Corruption(shuffle_patches, {"2×2": 2, "4×4": 4, "8×8": 8}, "grid of patches"),
    "low-pass": Corruption(low_pass, {"12": 12, "8": 8, "4": 4}, "highest frequency kept (cycles per image)"),
    "high-pass": Corruption(high_pass, {"1": 1, "2": 2, "4": 4}, "highest frequency removed (cycles per image)"),
    "occlusion": Corruption(occlude, {"20 %": 0.2, "40 %": 0.4, "60 %": 0.6, "80 %": 0.8}, "part that is gray"),
}
