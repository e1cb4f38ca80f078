"""JPEG compression of whole batches, with the arithmetic of libjpeg, so that Pillow decodes the same pixels.

    compressed = compress(images, quality=40)     # uint8 (B, 3, H, W) -> uint8 (B, 3, H, W)

What is lost is lost in two places: colors are stored at half the resolution (4:2:0), and the cosine transform of each
block of 8 × 8 pixels is rounded to multiples of a table (ITU-T T.81, annex K, https://www.w3.org/Graphics/JPEG/itu-t81.pdf).
The rest, coding the numbers in few bits, loses nothing and is left out.

All values are whole numbers in float64, in which products of matrices are fast and exact.
"""

import torch
from torch.nn import functional as F

LUMA_TABLE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMA_TABLE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
HALF_COSINES = (  # 8192 √2 cos(...) as the sums of rounded constants in libjpeg's slow, accurate transform
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))  # times 2^16, as are the next
TO_RGB = ((65536, 0, 91881), (65536, -22554, -46802), (65536, 116130, 0))


def compress(images, quality):
    """Compress uint8 (B, 3, H, W) as JPEG of a quality from 1 to 100, and decode it again."""
    height, width = images.shape[2:]
    padded = F.pad(images.double(), (0, -width % 16, 0, height % 2), mode="replicate")
    luma, *chroma = convert_colors(padded, TO_YCC, offsets=(32768, 2**23 + 32767, 2**23 + 32767)).unbind(1)
    luma_steps, chroma_steps = (quantization(table, quality) for table in (LUMA_TABLE, CHROMA_TABLE))
    half = (-(-height // 2), -(-width // 2))
    small = [transform_blocks(halve(color), chroma_steps)[:, :, : half[1]] for color in chroma]
    colors = [transform_blocks(luma, luma_steps), *(double(color) - 128 for color in small)]
    colors = torch.stack([color[:, :height, :width] for color in colors], dim=1)
    return convert_colors(colors, TO_RGB, offsets=(32768,) * 3).clamp(0, 255).to(torch.uint8)


def convert_colors(images, matrix, offsets):
    """Multiply the colors of (B, 3, H, W) by a matrix, add the offsets, and divide by 2^16, rounding down."""
    products = torch.einsum("ij,bjhw->bihw", torch.tensor(matrix).double(), images)
    return shift(products + torch.tensor(offsets).double()[:, None, None], 16)


def quantization(table, quality):
    """The steps (8, 8) to which the cosine transform of a block is rounded."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = torch.tensor([(int(step) * percent + 50) // 100 for step in table.split()])
    return steps.clamp(1, 255).view(8, 8).double()


def halve(color):
    """Means of 2 × 2 pixels, (B, H, W) -> (B, H / 2, W / 2); a half is rounded down and up in turn."""
    sums = 4 * F.avg_pool2d(color[:, None], 2)[:, 0]
    bias = 1 + torch.arange(sums.shape[-1]) % 2
    return shift(sums + bias, 2)


def double(color):
    """Double both sides of (B, h, w). A pixel is 9/16 the nearest one, 3/16 each of two others, and 1/16 a fourth."""
    height, width = color.shape[1:]
    padded = F.pad(color[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    above, below = padded[:, :-2], padded[:, 2:]
    rows = torch.stack([3 * padded[:, 1:-1] + above, 3 * padded[:, 1:-1] + below], dim=2).flatten(1, 2)
    left, middle, right = rows[:, :, :-2], rows[:, :, 1:-1], rows[:, :, 2:]
    pairs = torch.stack([shift(3 * middle + left + 8, 4), shift(3 * middle + right + 7, 4)], dim=3)
    return pairs.view(len(color), 2 * height, 2 * width)


def transform_blocks(color, steps):
    """What is left of (B, H, W) when the cosine transforms of its blocks are rounded to multiples of `steps`."""
    height = color.shape[1]
    padded = F.pad(color[:, None], (0, 0, 0, -height % 8), mode="replicate")[:, 0]
    blocks = padded.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).transpose(2, 3) - 128  # (B, rows, columns, 8, 8)
    half = torch.tensor(HALF_COSINES).double()
    sign = torch.tensor([1.0, -1.0] * 4).double()[:, None]  # the cosines of odd rows change their sign at the middle
    cosines = torch.cat([half, sign * half.flip(1)], dim=1)
    waves = round_shift(cosines @ round_shift(blocks @ cosines.T, 11), 15)
    steps = 8 * steps  # the transform is larger by a factor of 8
    waves = waves.sign() * ((waves.abs() + steps // 2) / steps).floor() * (steps // 8)
    pixels = round_shift(round_shift(cosines.T @ waves, 11) @ cosines, 18)
    return (pixels + 128).clamp(0, 255).transpose(2, 3).flatten(3).flatten(1, 2)[:, :height]


def shift(values, bits):
    """Divide whole numbers by 2^bits, rounding down."""
    return (values / 2**bits).floor()


def round_shift(values, bits):
    """Divide whole numbers by 2^bits, rounding to the nearest whole number, and halves up."""
    return shift(values + 2 ** (bits - 1), bits)
