"""Data augmentation of whole batches, on the device that holds them.

    augment = Augment("trivialaugment", mean=train.mean, std=train.std, num_classes=10, mixup=0.8, cutmix=1.0)
    for images, labels in batches(train, 128):         # uint8
        inputs, targets = augment(images, labels)      # float, normalized; class indices or soft targets

Each image draws its own parameters. They come from PyTorch's generator for the device, except `lam`, the fraction of an
image that Mixup and CutMix keep, which NumPy draws, because not every device has the Beta distribution.

The 14 operations of RandAugment and TrivialAugment take three passes over a batch, whichever operations its images
draw: one moves pixels, one maps pixel values through a table, and one blends images with a gray or blurred copy.
"""

import functools
import math
import pkgutil

import numpy as np
import torch
from torch.nn import functional as F

from vit_cifar10.data.dataset import normalize
from vit_cifar10.data.tables import POLICIES
from vit_cifar10.utils.device import to_device

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness"),
    *("Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTNESS = range(7)
COLOR, CONTRAST, SHARPNESS, POSTERIZE, SOLARIZE, AUTO_CONTRAST, EQUALIZE = range(7, 14)

GRAY = (0.2989, 0.587, 0.114)  # weights of red, green and blue in the luma


class Augment:
    """Turn a batch of uint8 images and its labels into the network's inputs and targets.

    Args:
        policy: one of `POLICIES` in data/tables.py.
        mean, std: float (3,), mean and standard deviation of the data set, on the same device as the batches.
        num_classes: width C of the soft targets.
        mixup, cutmix: alpha of the Beta distribution that `lam` is drawn from; 0 turns the method off. With both, each
            image draws one of the two.
        random_erasing: probability that a rectangle of an image is set to the mean.
        crop_padding: pixels of padding on each side before the random crop; None pads by 1/8 of the side.
        crop_border: what the padding shows, "black" or, with "reflect", the mirrored image.
        flips: whether the policies that crop also mirror each image with probability 1/2.
        mix_prob: probability that Mixup or CutMix is applied to an image.
        compile: whether to compile the augmentation.
    """

    def __init__(
        self,
        policy,
        *,
        mean,
        std,
        num_classes,
        mixup=0.0,
        cutmix=0.0,
        random_erasing=0.0,
        mix_prob=1.0,
        crop_padding=None,
        crop_border="black",
        flips=True,
        compile=False,
    ):
        entry = POLICIES[policy]
        self.crops = entry.crops
        self.operations, self.make_ranges = (
            place and pkgutil.resolve_name(place) for place in (entry.operations, entry.ranges)
        )
        self.mean = mean
        self.std = std
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.random_erasing = random_erasing
        self.mix_prob = mix_prob
        self.crop_padding = crop_padding
        self.crop_border = crop_border
        self.flips = flips
        self.augment = torch.compile(self.augment_batch, dynamic=False) if compile else self.augment_batch

    def __call__(self, images, labels, seed=None):
        """uint8 (B, 3, H, W), int64 (B,) -> float (B, 3, H, W), and int64 (B,) or, with mixing, float (B, C).

        `seed`: of the draws of `lam`; by default, NumPy's global generator chooses it.
        """
        lams = self.draw_lams(np.random.randint(2**31) if seed is None else seed, len(images))
        return self.augment(images, labels, lams, self.ranges(images.shape[-1], images.device))

    def draw_lams(self, seed, batch_size):
        """Draw `lam` from Beta(alpha, alpha) for Mixup and for CutMix, for the images of a batch.

        Returns:
            float (n, B) on the images' device, with a row for each of the n methods that are used.
        """
        alphas = [alpha for alpha in (self.mixup, self.cutmix) if alpha]
        if not alphas:
            return torch.empty(0, batch_size)
        generator = np.random.RandomState(seed % 2**32)
        lams = np.array([generator.beta(alpha, alpha, batch_size) for alpha in alphas])
        return to_device(torch.tensor(lams, dtype=torch.float32), self.mean.device)

    def ranges(self, side, device):
        """The magnitudes of the policy's operations for images of this side; None if they need none."""
        return self.make_ranges and self.make_ranges(side, device)

    def augment_batch(self, images, labels, lams, ranges):
        """`__call__`, without anything that happens on the CPU."""
        if self.crops:
            padding = images.shape[-1] // 8 if self.crop_padding is None else self.crop_padding
            images = random_crop_and_flip(images, padding, self.crop_border, self.flips)
        if self.operations:
            images = self.operations(images, ranges)
        inputs = normalize(images, self.mean, self.std)
        if self.random_erasing:
            inputs = random_erase(inputs, self.random_erasing)
        if not (self.mixup or self.cutmix):
            return inputs, labels
        lam_map = self.draw_lam_map(inputs, lams)
        if self.mix_prob < 1:
            is_mixed = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < self.mix_prob
            lam_map = torch.where(is_mixed, lam_map, 1.0)
        return mix(inputs, F.one_hot(labels, self.num_classes).float(), lam_map)

    def draw_lam_map(self, inputs, lams):
        """Draw Mixup or CutMix for each image, and CutMix's box: `lam_map`, (B, 1, H, W) in [0, 1]; see `mix`."""
        if not self.cutmix:
            return mixup_lam(inputs, lams[0])
        if not self.mixup:
            return draw_cutmix_lam(inputs, lams[0])
        use_mixup = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < 0.5
        return torch.where(use_mixup, mixup_lam(inputs, lams[0]), draw_cutmix_lam(inputs, lams[1]))


# Crop and flip


def random_crop_and_flip(images, padding, border="black", flips=True):
    """Crop uint8 (B, 3, H, W) at random positions, as in `crop_and_flip`. With `flips`, flip with probability 1/2."""
    top, left = torch.randint(0, 2 * padding + 1, (2, len(images)), device=images.device)
    flip = torch.rand(len(images), device=images.device) < 0.5 * flips
    return crop_and_flip(images, top, left, flip, padding, border)


def crop_and_flip(images, top, left, flip, padding, border="black"):
    """Pad images, crop each one to its original size, and flip it where `flip` is true, in one gather.

    `top`, `left`: int64 (B,), where the crop starts in the padded image. `flip`: bool (B,). `padding`: pixels per side,
    which are black, or with `border="reflect"` mirror the image without repeating its outermost pixels.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + top[:, None]
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    if border == "reflect":
        rows, columns = _reflect(rows - padding, height), _reflect(columns - padding, width)
    else:
        images = F.pad(images, (padding,) * 4)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _reflect(index, size):
    """Mirror indices below 0 and above `size` - 1 back into the range, without repeating the ends."""
    last = size - 1
    return last - (last - index.abs()).abs()


# RandAugment and TrivialAugment


def rand_augment(images, ranges, num_ops=2, magnitude=9, num_bins=31):
    """RandAugment (https://arxiv.org/abs/1909.13719): each image draws `num_ops` operations.

    `images`: uint8 (B, 3, H, W). `ranges`: the magnitudes of the operations, from `Augment.ranges`.
    """
    for _ in range(num_ops):
        operations = torch.randint(len(OPERATIONS), (len(images),), device=images.device)
        level = torch.full((len(images),), magnitude / (num_bins - 1), device=images.device)
        images = apply_operations(images, operations, _magnitudes(ranges, operations, level))
    return images


def trivial_augment_wide(images, ranges, num_bins=31):
    """TrivialAugment (https://arxiv.org/abs/2103.10158): each image draws one operation.

    Each image also draws its magnitude, from `num_bins` levels. `images` and `ranges` are as in `rand_augment`.
    """
    operations = torch.randint(len(OPERATIONS), (len(images),), device=images.device)
    level = torch.randint(num_bins, (len(images),), device=images.device) / (num_bins - 1)
    return apply_operations(images, operations, _magnitudes(ranges, operations, level))


def rand_augment_ranges(side, device):
    return _ranges(0.3, 150 / 331 * side, 30, 0.9, 4, device)


def trivial_augment_ranges(side, device):
    return _ranges(0.99, 32, 135, 0.99, 2, device)


@functools.lru_cache  # copies the table to the device once, not for every batch
def _ranges(shear, translate, rotate, enhance, min_bits, device):
    """Each operation's magnitude at level 0 and at level 1, and whether its sign is random (1 or 0): float (14, 3).

    RandAugment and TrivialAugment have torchvision's ranges; for TrivialAugment, they are the wide ones.
    """
    ranges = {
        **dict.fromkeys((SHEAR_X, SHEAR_Y), (0, shear, 1)),
        **dict.fromkeys((TRANSLATE_X, TRANSLATE_Y), (0, translate, 1)),
        **dict.fromkeys((BRIGHTNESS, COLOR, CONTRAST, SHARPNESS), (0, enhance, 1)),
        **{ROTATE: (0, rotate, 1), POSTERIZE: (8, min_bits, 0), SOLARIZE: (255, 0, 0)},
    }
    return torch.tensor([ranges.get(operation, (0, 0, 0)) for operation in range(len(OPERATIONS))]).to(device)


def _magnitudes(ranges, operations, level):
    """The magnitude, float (B,), of each image's operation at its level in [0, 1], with a random sign where allowed."""
    at_0, at_1, is_signed = ranges[operations].unbind(1)
    magnitude = at_0 + (at_1 - at_0) * level
    is_negative = (torch.rand_like(level) < 0.5) & (is_signed > 0)
    return torch.where(is_negative, -magnitude, magnitude)


def apply_operations(images, operations, magnitudes):
    """Apply one operation to each image, with torchvision's arithmetic for uint8 images.

    Args:
        images: uint8 (B, 3, H, W).
        operations: int64 (B,), indices into `OPERATIONS`.
        magnitudes: float (B,). Shear: the tangent of the angle. Translate: pixels, truncated to an integer. Rotate:
            degrees counterclockwise. Brightness, color, contrast, sharpness: the factor minus 1. Posterize: the number
            of bits to keep, rounded. Solarize: the threshold. The other operations ignore it.

    Returns:
        uint8 (B, 3, H, W).
    """
    images = _warp(images, operations, magnitudes)
    images = _map_values(images, operations, magnitudes)
    return _blend(images, operations, magnitudes)


def _warp(images, operations, magnitudes):
    """Shear, translate and rotate. Every pixel is a copy of the nearest source pixel, or black outside the image."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]  # relative to the image's center
    x = torch.arange(width, device=images.device) - (width - 1) / 2

    def magnitude_of(operation):
        return torch.where(operations == operation, magnitudes, 0.0)[:, None, None]

    angle = magnitude_of(ROTATE) * (math.pi / 180)
    source_x = angle.cos() * x - angle.sin() * y + magnitude_of(SHEAR_X) * (y + height / 2)
    source_y = angle.sin() * x + angle.cos() * y + magnitude_of(SHEAR_Y) * (x + width / 2)
    column = (source_x + (width - 1) / 2 - magnitude_of(TRANSLATE_X).trunc()).round()
    row = (source_y + (height - 1) / 2 - magnitude_of(TRANSLATE_Y).trunc()).round()
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    source = source.long().flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, source).view_as(images) * is_inside[:, None]


def _map_values(images, operations, magnitudes):
    """Apply the operations that map each value separately, through a table of 256 new values per image and channel."""
    pixels = images.flatten(2).long()
    value = torch.arange(256.0, device=images.device)
    operation = operations[:, None, None]
    magnitude = magnitudes[:, None, None]
    factor = 1 + magnitude
    low, high = pixels.amin(2, keepdim=True).float(), pixels.amax(2, keepdim=True).float()
    gray_mean = _gray(images).mean(dim=(1, 2, 3))[:, None, None]
    step = 2.0 ** (8 - magnitude.round())
    tables = {
        BRIGHTNESS: factor * value,
        CONTRAST: factor * value + (1 - factor) * gray_mean,
        POSTERIZE: (value / step).floor() * step,
        SOLARIZE: torch.where(value >= magnitude, 255 - value, value),
        AUTO_CONTRAST: torch.where(high > low, (value - low) * (255 / (high - low)), value),
        EQUALIZE: _equalize_table(pixels),
    }
    table = value.expand(len(images), images.shape[1], 256)
    for index, new_values in tables.items():
        table = torch.where(operation == index, new_values, table)
    return table.clamp(0, 255).to(torch.uint8).gather(2, pixels).view_as(images)


def _equalize_table(pixels):
    """The tables of histogram equalization, float (B, 3, 256), computed as in PIL and torchvision."""
    ones = torch.ones_like(pixels, dtype=torch.float32)
    histogram = torch.zeros(*pixels.shape[:2], 256, device=pixels.device).scatter_add_(2, pixels, ones)
    brightest_count = histogram.gather(2, pixels.amax(2, keepdim=True))
    step = ((pixels.shape[2] - brightest_count) / 255).floor()
    below = histogram.cumsum(2) - histogram
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor()
    return torch.where(step > 0, table, torch.arange(256.0, device=pixels.device))


def _blend(images, operations, magnitudes):
    """Color and sharpness: blend an image with a gray or blurred copy. A factor above 1 moves away from the copy."""
    operation = operations[:, None, None, None]
    is_blend = (operation == COLOR) | (operation == SHARPNESS)
    factor = torch.where(is_blend, 1 + magnitudes[:, None, None, None], 1.0)
    copy = torch.where(operation == COLOR, _gray(images), _blur(images))
    return (factor * images + (1 - factor) * copy).clamp(0, 255).to(torch.uint8)


def _gray(images):
    """The luma of uint8 (B, 3, H, W), rounded down: float (B, 1, H, W)."""
    red, green, blue = images.float().split(1, dim=1)
    return (GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue).floor()


def _blur(images):
    """PIL's smoothing filter on uint8 (B, 3, H, W): weight 5 for the pixel, 1 for its 8 neighbors; keeps the border."""
    images = images.float()
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * images[..., 1:-1, 1:-1]
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = (sums / 13).round()
    return blurred


# Random erasing


def random_erase(inputs, probability, scale=(0.02, 0.33), ratio=(0.3, 3.3), tries=10):
    """Random Erasing (https://arxiv.org/abs/1708.04896): set a random rectangle of each image to the mean.

    Each image draws `tries` rectangles, from the same distribution as torchvision. It uses the first one that fits, and
    stays unchanged if none does.

    Args:
        inputs: float (B, 3, H, W), normalized, so that the mean is 0.
        probability: probability of erasing a rectangle of an image.
        scale: range of the rectangle's area, as a fraction of the image's.
        ratio: range of the rectangle's aspect ratio, height / width.
        tries: number of rectangles to draw per image.
    """
    height, width = inputs.shape[-2:]
    draws = torch.empty(4, len(inputs), tries, device=inputs.device).uniform_(0, 1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    aspect = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * draws[1]).exp()
    erased_height, erased_width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (erased_height < height) & (erased_width < width)
    first_fit = fits.int().argmax(dim=1, keepdim=True)
    erased_height, erased_width, y, x, fits = (
        values.gather(1, first_fit).squeeze(1) for values in (erased_height, erased_width, draws[2], draws[3], fits)
    )
    top = (y * (height - erased_height + 1)).floor()
    left = (x * (width - erased_width + 1)).floor()
    is_erased = fits & (torch.rand(len(inputs), device=inputs.device) < probability)
    return erase(inputs, top, left, erased_height * is_erased, erased_width)


def erase(inputs, top, left, height, width):
    """Set a rectangle of each image to 0, the mean. Its corner and sides are float (B,), whole numbers of pixels."""
    return inputs.masked_fill(_rectangle(inputs, top, left, top + height, left + width), 0.0)


def _rectangle(inputs, top, left, bottom, right):
    """Whether each pixel is in its image's rectangle, which excludes `bottom` and `right`: bool (B, 1, H, W)."""
    top, left, bottom, right = (side[:, None, None, None] for side in (top, left, bottom, right))
    row = torch.arange(inputs.shape[-2], device=inputs.device)[:, None]
    column = torch.arange(inputs.shape[-1], device=inputs.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


# Mixup and CutMix


def mix(inputs, targets, lam_map):
    """Mix every image and its target with the image before it in the batch.

    Args:
        inputs: float (B, 3, H, W).
        targets: float (B, C).
        lam_map: (B, 1, H, W) in [0, 1], the fraction of each pixel that comes from the image itself. Its mean over an
            image is the `lam` that mixes the targets.
    """
    lam = lam_map.mean(dim=(1, 2, 3))[:, None]
    return (
        inputs * lam_map + inputs.roll(1, 0) * (1 - lam_map),
        targets * lam + targets.roll(1, 0) * (1 - lam),
    )


def mixup_lam(inputs, lam):
    """The `lam_map` of Mixup (https://arxiv.org/abs/1710.09412): an image's `lam`, float (B,), at every pixel."""
    return lam[:, None, None, None].expand(-1, 1, *inputs.shape[-2:])


def draw_cutmix_lam(inputs, lam):
    """Draw a box position for each image; return the `lam_map` of CutMix for `lam`, float (B,)."""
    y, x = torch.rand(2, len(inputs), device=inputs.device)
    return cutmix_lam(inputs, lam, y, x)


def cutmix_lam(inputs, lam, y, x):
    """The `lam_map` of CutMix (https://arxiv.org/abs/1905.04899): 0 in a box of area 1 - `lam`, 1 elsewhere.

    `y` and `x`, float (B,) in [0, 1), are the box's center as fractions of the sides. The box is clipped to the image.
    """
    height, width = inputs.shape[-2:]
    half = 0.5 * (1 - lam).sqrt()
    y, x = (y * height).floor(), (x * width).floor()
    half_height, half_width = (half * height).floor(), (half * width).floor()
    box = _rectangle(inputs, y - half_height, x - half_width, y + half_height, x + half_width)
    return 1 - box.float()
