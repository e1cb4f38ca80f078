"""How training images are disturbed: whole batches at once, on the device they lie on.

    augment = Augment("trivialaugment", train.mean, train.std, num_classes=10, mixup=0.8, cutmix=1.0)
    for images, labels in batches(train, 128):         # uint8
        inputs, targets = augment(images, labels)      # float, normalised; class indices or soft targets

Every image draws its own parameters, from PyTorch's generator of its device (shares for mixing from NumPy's), and no
step waits for the device. The 14 operations of RandAugment and TrivialAugment need three passes over a batch, whichever
image draws which: one that moves pixels, one that looks their values up in a table, one that blends with a grey or
blurred copy.
"""

import functools
import math

import numpy as np
import torch
from torch.nn import functional as F

from vit_cifar10.data.dataset import normalize

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTNESS = range(7)
COLOR, CONTRAST, SHARPNESS, POSTERIZE, SOLARIZE, AUTO_CONTRAST, EQUALIZE = range(7, 14)
POLICIES = ("none", "basic", "randaugment", "trivialaugment")

GREY = (0.2989, 0.587, 0.114)


class Augment:
    """Turns a uint8 batch and its labels into what the network trains on.

    Args:
        policy: "none"; "basic" (crop from a border of an eighth of the side, flip); or one of these after the basic
            ones: "randaugment" (Cubuk et al., 2020; two operations at magnitude 9 of 30) or "trivialaugment" (Müller
            and Hutter, 2021, the wide space; one operation at any magnitude).
        mean, std: float (3,), of the data set, on the batches' device.
        num_classes: width of soft targets.
        mixup, cutmix: alpha of the Beta distribution of Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019);
            0 is off. With both, each image draws one of them.
        random_erasing: probability that a rectangle of an image is set to the mean (Zhong et al., 2020).
        mix_prob: probability that an image is mixed at all.
        compile: compile the operations of RandAugment and TrivialAugment.
    """

    def __init__(
        self,
        policy,
        mean,
        std,
        num_classes,
        mixup=0.0,
        cutmix=0.0,
        random_erasing=0.0,
        mix_prob=1.0,
        compile=False,
    ):
        self.policy = policy
        self.mean = mean
        self.std = std
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.random_erasing = random_erasing
        self.mix_prob = mix_prob
        self.apply = torch.compile(apply_operations) if compile else apply_operations

    def __call__(self, images, labels):
        """uint8 (B, 3, H, W), int64 (B,) -> float (B, 3, H, W), int64 (B,) or, if images are mixed, float (B, C)."""
        if self.policy != "none":
            images = random_crop_and_flip(images)
        if self.policy == "randaugment":
            images = rand_augment(images, self.apply)
        elif self.policy == "trivialaugment":
            images = trivial_augment_wide(images, self.apply)
        inputs = normalize(images, self.mean, self.std)
        if self.random_erasing:
            inputs = random_erase(inputs, self.random_erasing)
        if not (self.mixup or self.cutmix):
            return inputs, labels
        shares = self.draw_shares(inputs)
        if self.mix_prob < 1:
            mixed = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < self.mix_prob
            shares = torch.where(mixed, shares, 1.0)
        return mix(inputs, F.one_hot(labels, self.num_classes).float(), shares)

    def draw_shares(self, inputs):
        """How much of each pixel stays its image's own, (B, 1, H, W) in [0, 1], for Mixup or CutMix as drawn."""
        if not self.cutmix:
            return mixup_shares(inputs, _beta(self.mixup, inputs))
        if not self.mixup:
            return draw_cutmix_shares(inputs, self.cutmix)
        use_mixup = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < 0.5
        blended = mixup_shares(inputs, _beta(self.mixup, inputs))
        return torch.where(use_mixup, blended, draw_cutmix_shares(inputs, self.cutmix))


# Crop and flip


def random_crop_and_flip(images):
    """Crop uint8 (B, 3, H, W) at random out of a black border of an eighth of the side; mirror every second image."""
    padding = images.shape[-1] // 8
    top, left = torch.randint(0, 2 * padding + 1, (2, len(images)), device=images.device)
    flip = torch.rand(len(images), device=images.device) < 0.5
    return crop_and_flip(images, top, left, flip, padding)


def crop_and_flip(images, top, left, flip, padding):
    """Pad images with black, crop each to its old size at its (top, left), mirror where `flip`: one gather for all."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + top[:, None]
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    padded = F.pad(images, (padding,) * 4)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


# RandAugment and TrivialAugment


def rand_augment(images, apply, num_ops=2, magnitude=9, num_bins=31):
    """RandAugment of uint8 images with torchvision's ranges: `num_ops` operations, each drawn for each image.

    `apply` is `apply_operations`, or that compiled.
    """
    for _ in range(num_ops):
        operations = torch.randint(len(OPERATIONS), (len(images),), device=images.device)
        level = torch.full((len(images),), magnitude / (num_bins - 1), device=images.device)
        ranges = _ranges(0.3, 150 / 331 * images.shape[-1], 30, 0.9, 4, images.device)
        images = apply(images, operations, _magnitudes(ranges, operations, level))
    return images


def trivial_augment_wide(images, apply, num_bins=31):
    """TrivialAugmentWide of uint8 images with torchvision's ranges: one operation at one level for each image."""
    operations = torch.randint(len(OPERATIONS), (len(images),), device=images.device)
    level = torch.randint(num_bins, (len(images),), device=images.device) / (num_bins - 1)
    ranges = _ranges(0.99, 32, 135, 0.99, 2, images.device)
    return apply(images, operations, _magnitudes(ranges, operations, level))


@functools.lru_cache  # a copy to the device a run, not one a batch
def _ranges(shear, translate, rotate, enhance, fewest_bits, device):
    """Each operation's magnitude at level 0 and 1, and whether its sign is drawn: float (14, 3)."""
    ranges = {
        SHEAR_X: (0, shear, 1),
        SHEAR_Y: (0, shear, 1),
        TRANSLATE_X: (0, translate, 1),
        TRANSLATE_Y: (0, translate, 1),
        ROTATE: (0, rotate, 1),
        BRIGHTNESS: (0, enhance, 1),
        COLOR: (0, enhance, 1),
        CONTRAST: (0, enhance, 1),
        SHARPNESS: (0, enhance, 1),
        POSTERIZE: (8, fewest_bits, 0),
        SOLARIZE: (255, 0, 0),
    }
    return torch.tensor([ranges.get(operation, (0, 0, 0)) for operation in range(len(OPERATIONS))]).to(device)


def _magnitudes(ranges, operations, level):
    lowest, highest, signed = ranges[operations].unbind(1)
    magnitude = lowest + (highest - lowest) * level
    negative = (torch.rand_like(level) < 0.5) & (signed > 0)
    return torch.where(negative, -magnitude, magnitude)


def apply_operations(images, operations, magnitudes):
    """Apply to each image its own operation, with torchvision's arithmetic on uint8 images.

    Args:
        images: uint8 (B, 3, H, W).
        operations: int64 (B,), indices into `OPERATIONS`.
        magnitudes: float (B,). Shear: the tangent of the angle; translate: pixels, cut to whole ones; rotate:
            degrees counterclockwise; brightness, color, contrast, sharpness: the factor less 1; posterize: bits kept,
            rounded; solarize: the threshold. The others take none.

    Returns:
        uint8 (B, 3, H, W).
    """
    images = _move(images, operations, magnitudes)
    images = _look_up(images, operations, magnitudes)
    return _blend(images, operations, magnitudes)


def _move(images, operations, magnitudes):
    """Shear, translate, rotate: each pixel is fetched from the nearest source pixel, black from outside."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]  # from the centre of the image
    x = torch.arange(width, device=images.device) - (width - 1) / 2

    def magnitude_of(operation):
        return torch.where(operations == operation, magnitudes, 0.0)[:, None, None]

    angle = magnitude_of(ROTATE) * (math.pi / 180)
    source_x = angle.cos() * x - angle.sin() * y + magnitude_of(SHEAR_X) * (y + height / 2)
    source_y = angle.sin() * x + angle.cos() * y + magnitude_of(SHEAR_Y) * (x + width / 2)
    column = (source_x + (width - 1) / 2 - magnitude_of(TRANSLATE_X).trunc()).round()
    row = (source_y + (height - 1) / 2 - magnitude_of(TRANSLATE_Y).trunc()).round()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    source = source.long().flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, source).view_as(images) * inside[:, None]


def _look_up(images, operations, magnitudes):
    """Operations that change each value for itself: a table of 256 new values for every channel of every image."""
    pixels = images.flatten(2).long()
    level = torch.arange(256.0, device=images.device)
    operation = operations[:, None, None]
    magnitude = magnitudes[:, None, None]
    factor = 1 + magnitude
    low, high = pixels.amin(2, keepdim=True).float(), pixels.amax(2, keepdim=True).float()
    grey_mean = _grey(images).mean(dim=(1, 2, 3))[:, None, None]
    step = 2.0 ** (8 - magnitude.round())
    tables = {
        BRIGHTNESS: factor * level,
        CONTRAST: factor * level + (1 - factor) * grey_mean,
        POSTERIZE: (level / step).floor() * step,
        SOLARIZE: torch.where(level >= magnitude, 255 - level, level),
        AUTO_CONTRAST: torch.where(high > low, (level - low) * (255 / (high - low)), level),
        EQUALIZE: _equalize_table(pixels),
    }
    table = level.expand(len(images), images.shape[1], 256)
    for code, values in tables.items():
        table = torch.where(operation == code, values, table)
    return table.clamp(0, 255).to(torch.uint8).gather(2, pixels).view_as(images)


def _equalize_table(pixels):
    """The table (B, 3, 256) that spreads the values of each channel evenly, as PIL and torchvision make it."""
    ones = torch.ones_like(pixels, dtype=torch.float32)
    histogram = torch.zeros(*pixels.shape[:2], 256, device=pixels.device).scatter_add_(2, pixels, ones)
    brightest = histogram.gather(2, pixels.amax(2, keepdim=True))
    step = ((pixels.shape[2] - brightest) / 255).floor()
    below = histogram.cumsum(2) - histogram
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor()
    return torch.where(step > 0, table, torch.arange(256.0, device=pixels.device))


def _blend(images, operations, magnitudes):
    """Color and sharpness: towards, or away from, a grey or a blurred copy."""
    operation = operations[:, None, None, None]
    is_blend = (operation == COLOR) | (operation == SHARPNESS)
    factor = torch.where(is_blend, 1 + magnitudes[:, None, None, None], 1.0)
    other = torch.where(operation == COLOR, _grey(images), _blur(images))
    return (factor * images + (1 - factor) * other).clamp(0, 255).to(torch.uint8)


def _grey(images):
    """Luma of uint8 (B, 3, H, W), cut to whole numbers: float (B, 1, H, W)."""
    red, green, blue = images.float().split(1, dim=1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).floor()


def _blur(images):
    """PIL's smoothing of uint8 (B, 3, H, W): the 8 neighbours once and the pixel 5 times; the border stays."""
    images = images.float()
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    kernel = (kernel / 13).expand(images.shape[1], 1, 3, 3)
    blurred = images.clone()
    blurred[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel, groups=images.shape[1]).round()
    return blurred


# Random erasing


def random_erase(inputs, probability, scale=(0.02, 0.33), ratio=(0.3, 3.3), tries=10):
    """Set a rectangle of normalised images to the mean, each with its own area and aspect ratio, as torchvision draws.

    Of `tries` rectangles the first that fits is taken; an image none of whose rectangles fits stays whole.
    """
    height, width = inputs.shape[-2:]
    drawn = torch.empty(4, len(inputs), tries, device=inputs.device).uniform_(0, 1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * drawn[0])
    aspect = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * drawn[1]).exp()
    erased_height, erased_width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (erased_height < height) & (erased_width < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    erased_height, erased_width, place_y, place_x, fits = (
        values.gather(1, first).squeeze(1) for values in (erased_height, erased_width, drawn[2], drawn[3], fits)
    )
    top = (place_y * (height - erased_height + 1)).floor()
    left = (place_x * (width - erased_width + 1)).floor()
    chosen = fits & (torch.rand(len(inputs), device=inputs.device) < probability)
    return erase(inputs, top, left, erased_height * chosen, erased_width)


def erase(inputs, top, left, height, width):
    """Set to 0, the mean, the rectangle of each image that starts at (top, left); float (B,) each, whole numbers."""
    return inputs.masked_fill(_rectangle(inputs, top, left, top + height, left + width), 0.0)


def _rectangle(inputs, top, left, bottom, right):
    """Which pixels lie in each image's rectangle, ends excluded: bool (B, 1, H, W)."""
    top, left, bottom, right = (side[:, None, None, None] for side in (top, left, bottom, right))
    row = torch.arange(inputs.shape[-2], device=inputs.device)[:, None]
    column = torch.arange(inputs.shape[-1], device=inputs.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


# Mixup and CutMix


def mix(inputs, targets, shares):
    """Mix every image and its target with the image before it in the batch.

    Args:
        inputs: float (B, 3, H, W).
        targets: float (B, C).
        shares: (B, 1, H, W) in [0, 1], how much of a pixel stays the image's own; the targets mix by its mean.
    """
    share = shares.mean(dim=(1, 2, 3))[:, None]
    return (
        inputs * shares + inputs.roll(1, 0) * (1 - shares),
        targets * share + targets.roll(1, 0) * (1 - share),
    )


def mixup_shares(inputs, share):
    """Mixup: the same share, float (B,), for all pixels of an image."""
    return share[:, None, None, None].expand(-1, 1, *inputs.shape[-2:])


def draw_cutmix_shares(inputs, alpha):
    """CutMix at a random place: the rectangle's area is drawn, and cut where it leaves the image."""
    place_y, place_x = torch.rand(2, len(inputs), device=inputs.device)
    return cutmix_shares(inputs, _beta(alpha, inputs), place_y, place_x)


def cutmix_shares(inputs, share, place_y, place_x):
    """CutMix: 0 in a rectangle of area 1 - share about the place drawn, in [0, 1) of the sides; 1 elsewhere."""
    height, width = inputs.shape[-2:]
    half = 0.5 * (1 - share).sqrt()
    y, x = (place_y * height).floor(), (place_x * width).floor()
    half_height, half_width = (half * height).floor(), (half * width).floor()
    cut = _rectangle(inputs, y - half_height, x - half_width, y + half_height, x + half_width)
    return 1 - cut.float()


def _beta(alpha, inputs):
    """A share for each image from Beta(alpha, alpha): float (B,) on the images' device."""
    shares = np.random.beta(alpha, alpha, len(inputs))  # on the CPU: not every device can draw it
    return torch.from_numpy(shares).float().to(inputs.device, non_blocking=True)
