"""Tests of the corruptions: each equals a slow implementation with scikit-image, Pillow or SciPy, to one level."""

import inspect
import io
import statistics
import zlib

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import skimage.color
import skimage.filters
import skimage.util
import torch
from PIL import Image

from vit_cifar10.data.corruptions import CORRUPTIONS

pytestmark = pytest.mark.quick
SEED, COUNT, SIDE = 7, 6, 32


def photos():
    """Images with smooth parts, edges and noise, as photos have: uint8 (COUNT, 3, SIDE, SIDE)."""
    random = np.random.RandomState(0)
    smooth = scipy.ndimage.zoom(random.uniform(0, 255, (COUNT, 3, 5, 5)), (1, 1, SIDE / 5, SIDE / 5), order=1)
    smooth[1::2, :, :, SIDE // 2 :] *= 0.3
    smooth[2, :, 4:9] = 0
    smooth[3, :, :, 20:25] = 255
    noisy = smooth + random.normal(0, 6, smooth.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


# The references take one image, float (H, W, 3) in [0, 1], or a PIL image where Pillow does the work, and a strength.


def blur_with(image, kernel, mode):
    return np.stack([scipy.ndimage.correlate(image[..., color], kernel, mode=mode) for color in range(3)], axis=2)


def defocus_blur(image, strength, draw):
    radius, sigma = strength
    disk = np.array([[x * x + y * y <= radius**2 for x in range(-8, 9)] for y in range(-8, 9)], dtype=float)
    kernel = skimage.filters.gaussian(disk / disk.sum(), sigma, truncate=1 / sigma, mode="constant")
    return blur_with(image, kernel, "mirror")


def motion_blur(image, strength, draw):
    radius, sigma = strength
    angle = np.radians(draw["angle"])
    kernel = np.zeros((4 * radius + 3,) * 2)
    for distance in range(2 * radius + 1):
        down, right = (int(np.ceil(distance * part - 0.5)) for part in (np.sin(angle), np.cos(angle)))
        kernel[2 * radius + 1 + down, 2 * radius + 1 + right] += np.exp(-(distance**2) / 2 / sigma**2)
    return blur_with(image, kernel / kernel.sum(), "nearest")


def zoom_blur(image, strength, draw):
    factors = np.arange(1, strength, 0.01)
    total = image.copy()
    for factor in factors:
        seen = int(np.ceil(SIDE / factor))
        top = (SIDE - seen) // 2
        part = scipy.ndimage.zoom(image[top : top + seen, top : top + seen], (factor, factor, 1), order=1)
        cut = (len(part) - SIDE) // 2
        total += part[cut : cut + SIDE, cut : cut + SIDE]
    return total / (len(factors) + 1)


def fog(image, strength, draw):
    """The diamond-square algorithm point by point."""
    amount, decay = strength
    heights, step, amplitude, noise = np.zeros((SIDE, SIDE)), SIDE, 100, draw["noise"]

    def set_points(rows, columns, neighbors):
        for y in rows:
            for x in columns:
                around = [heights[(y + dy) % SIDE, (x + dx) % SIDE] for dy, dx in neighbors]
                heights[y, x] = np.mean(around) + amplitude**2 * noise.uniform(-1, 1)

    while step > 1:
        half = step // 2
        on, between = range(0, SIDE, step), range(half, SIDE, step)
        set_points(between, between, [(-half, -half), (-half, half), (half, -half), (half, half)])
        around = [(-half, 0), (half, 0), (0, -half), (0, half)]
        set_points(on, between, around)
        set_points(between, on, around)
        step, amplitude = half, amplitude / decay
    clouds = (heights - heights.min()) / np.ptp(heights)
    return (image + amount * clouds[..., None]) * image.max() / (image.max() + amount)


def contrast(image, strength, draw):
    result = np.empty_like(image)
    means = [statistics.fmean(image[..., color].flat) for color in range(3)]
    for y, x, color in np.ndindex(image.shape):
        result[y, x, color] = strength * image[y, x, color] + (1 - strength) * means[color]
    return result


def brightness(image, strength, draw):
    hsv = skimage.color.rgb2hsv(image)
    hsv[..., 2] = np.clip(hsv[..., 2] + strength, 0, 1)
    return skimage.color.hsv2rgb(hsv)


def pixelate(image, strength, draw):
    side = int(SIDE * strength)
    small = to_pil(image).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX)) / 255


def jpeg(image, strength, draw):
    file = io.BytesIO()
    to_pil(image).save(file, "JPEG", quality=strength)
    return np.asarray(Image.open(file)) / 255


def low_pass(image, strength, draw):
    waves = scipy.fft.fftshift(scipy.fft.fft2(image, axes=(0, 1)), axes=(0, 1))
    for row, column in np.ndindex(SIDE, SIDE):
        if np.hypot(row - SIDE // 2, column - SIDE // 2) > strength:
            waves[row, column] = 0
    return scipy.fft.ifft2(scipy.fft.ifftshift(waves, axes=(0, 1)), axes=(0, 1)).real


def high_pass(image, strength, draw):
    return image - low_pass(image, strength, draw) + image.mean(axis=(0, 1))


def to_pil(image):
    return Image.fromarray((255 * image).round().astype(np.uint8))


REFERENCES = {
    **{"defocus blur": defocus_blur, "motion blur": motion_blur, "zoom blur": zoom_blur, "fog": fog},
    **{"contrast": contrast, "brightness": brightness, "pixelate": pixelate, "JPEG": jpeg},
    **{"low-pass": low_pass, "high-pass": high_pass},
}
LEVELS = [(kind, level) for kind, corruption in CORRUPTIONS.items() for level in corruption.strengths]


def random_state(kind, level):
    """The random numbers that a corruption draws."""
    return np.random.RandomState(zlib.crc32(f"{CORRUPTIONS[kind].function.__name__} {level} {SEED}".encode()))


@pytest.mark.parametrize(("kind", "level"), [(kind, level) for kind, level in LEVELS if kind in REFERENCES])
def test_corruptions_equal_slow_ones_to_one_level(kind, level):
    images, corruption = photos(), CORRUPTIONS[kind]
    if kind == "fog":  # which draws its numbers for all images in turn
        images = images[:1]
    ours = corruption.apply(images, level, SEED)
    assert ours.dtype == torch.uint8
    assert ours.shape == images.shape
    angles = random_state(kind, level).uniform(-45, 45, len(images))
    for image, corrupted, angle in zip(images, ours, angles, strict=True):
        draw = {"angle": angle, "noise": random_state(kind, level)}
        pixels = image.permute(1, 2, 0).numpy() / 255
        theirs = REFERENCES[kind](pixels, corruption.strengths[level], draw)
        difference = corrupted.permute(1, 2, 0).numpy() - 255 * np.clip(theirs, 0, 1)
        assert abs(difference).max() <= (0.51 if kind != "JPEG" else 0), f"{kind} at {level}"
        assert not np.array_equal(image, corrupted)


@pytest.mark.parametrize("level", ["1", "3", "5"])
def test_noise_equals_that_of_scikit_image(level):
    images = photos()
    strength = CORRUPTIONS["impulse noise"].strengths[level]
    same_bits = np.random.Generator(random_state("impulse noise", level)._bit_generator)
    theirs = skimage.util.random_noise(images.numpy() / 255, mode="s&p", amount=strength, rng=same_bits)
    assert np.array_equal(CORRUPTIONS["impulse noise"].apply(images, level, SEED), (255 * theirs).round())
    strength, noise = CORRUPTIONS["gaussian noise"].strengths[level], random_state("gaussian noise", level)
    ours = CORRUPTIONS["gaussian noise"].apply(images, level, SEED).flatten().tolist()
    for before, after, draw in zip(images.flatten().tolist(), ours, noise.normal(0, strength, len(ours)), strict=True):
        assert abs(min(max(before + 255 * draw, 0), 255) - after) <= 0.51


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_shuffled_patches_are_all_still_there(grid):
    images = photos()
    ours = CORRUPTIONS["shuffled patches"].apply(images, f"{grid}×{grid}", SEED)
    side = SIDE // grid
    for image, shuffled in zip(images.numpy(), ours.numpy(), strict=True):
        before, after = (
            [part[:, y : y + side, x : x + side].tobytes() for y in range(0, SIDE, side) for x in range(0, SIDE, side)]
            for part in (image, shuffled)
        )
        assert before != after
        assert sorted(before) == sorted(after)


@pytest.mark.parametrize(("level", "count"), [("20 %", 13), ("40 %", 26), ("60 %", 38), ("80 %", 51)])
def test_occluded_patches_are_gray_and_the_others_unchanged(level, count):
    images = photos()
    side, places = SIDE // 8, []
    for image, occluded in zip(
        images.numpy(), CORRUPTIONS["occlusion"].apply(images, level, SEED).numpy(), strict=True
    ):
        gray = []
        for y, x in np.ndindex(8, 8):
            patch = (slice(None), slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
            if (occluded[patch] == 128).all():
                gray.append((y, x))
            else:
                assert np.array_equal(occluded[patch], image[patch])
        assert len(gray) == count
        places.append(gray)
    assert places[0] != places[1]


@pytest.mark.parametrize(("kind", "level"), LEVELS)
def test_corruptions_depend_only_on_images_level_and_seed(kind, level):
    images, corruption = photos(), CORRUPTIONS[kind]
    before = images.clone()
    first = corruption.apply(images, level, SEED)
    np.random.seed(9)
    torch.manual_seed(9)
    assert torch.equal(corruption.apply(images, level, SEED), first)
    assert torch.equal(images, before)
    if "random." in inspect.getsource(corruption.function):
        assert not torch.equal(corruption.apply(images, level, SEED + 1), first)


def test_images_of_other_sizes_are_corrupted_too():
    for side in (24, 40, 64):
        images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
        for kind, level in LEVELS:
            assert CORRUPTIONS[kind].apply(images, level, SEED).shape == images.shape
        file = io.BytesIO()
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
        assert np.array_equal(Image.open(file), CORRUPTIONS["JPEG"].apply(images, "5", SEED)[0].permute(1, 2, 0))
