"""One relevance map over its image in gray, as pixels."""

import matplotlib
import numpy as np

from vit_cifar10.plots.style import COLORMAP, PERCENT, SIGNED_COLORMAP, SIGNED_PERCENT


def percent_of_maximum(values, is_signed=False):
    """Scale relevance to percent of its maximum over the whole array: to 0 ... 100 or, if signed, to -100 ... 100.

    Negative values of unsigned relevance become 0.
    """
    values = np.asarray(values, dtype=np.float64)
    if not is_signed:
        values = values.clip(min=0)
    return 100 * values / max(np.abs(values).max(), np.finfo(np.float64).tiny)


def color_table(name):
    """The 256 colors of a color map of matplotlib, uint8 (256, 3)."""
    return (255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).round().astype(np.uint8)


def gray_image(image):
    """The image below a map: uint8 (H, W, 3) to gray uint8 (H, W, 3)."""
    return matplotlib.colormaps["gray"](image.mean(axis=2) / 255, bytes=True)[..., :3]


def map_colors(percentages, is_signed=False):
    """The transparent colors of a map (h, w) from `percent_of_maximum`: RGBA, uint8 (h, w, 4)."""
    if is_signed:
        alpha = 0.08 + 0.77 * np.sqrt(np.abs(percentages) / 100)  # colors near 0 are white and would hide the image
        return matplotlib.colormaps[SIGNED_COLORMAP](SIGNED_PERCENT(percentages), alpha=alpha, bytes=True)
    return matplotlib.colormaps[COLORMAP](PERCENT(percentages), alpha=0.6, bytes=True)


def map_note(percentages, is_signed=False):
    """The text over a map that shows nothing. For other maps, it is empty."""
    if is_signed:
        return "" if percentages.any() else "no evidence"
    return "" if percentages.max() > 0 else "no positive\nevidence"


def enlarge(pixels, side):
    """Resize (h, w, channels) to (side, side, channels): every pixel takes the color at its center.

    A center on the border of two colors takes the first one, as in matplotlib's pictures.
    """
    rows, columns = (((2 * np.arange(side) + 1) * size - 1) // (2 * side) for size in pixels.shape[:2])
    return pixels.take(rows, axis=0).take(columns, axis=1)


def overlay(image, colors, side):
    """Draw the `map_colors` of a map over a `gray_image`, with the size (side, side)."""
    height, patches = len(image), len(colors)
    size = height if height % patches == 0 and height < side else side  # blend no pixel more than once
    return enlarge(blend(enlarge(image, size), enlarge(colors, size)), side)


def blend(below, above):
    """Draw transparent colors, uint8 (H, W, 4), over opaque ones, uint8 (H, W, 3).

    The integer arithmetic is that of Agg, which draws matplotlib's pictures, so both give the same colors.
    """
    below, above = 255 * below.astype(np.int32), above.astype(np.int32)
    alpha = above[..., 3:]
    return (((256 * above[..., :3] - below) * alpha + 256 * below) // (alpha + 255 * 256)).astype(np.uint8)
