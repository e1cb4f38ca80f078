"""One relevance map over its image in gray, as pixels.

The map must be seen, not the photo. Therefore, the photo keeps only `CONTRAST` of its contrast, around a medium gray,
and the colors of an unsigned map hide `OPACITY` of it. A color bar is drawn through the same blend. The page draws its
maps with the same two numbers, see explain/page/pictures.js.

All maps of a method have one scale per image, from 0 to the largest value in any layer, so a patch that is brighter in
a later layer has become more relevant. So have all heads. Bars of attention show percent of a token's attention, and
mark 1 / N, what each of the N tokens would get if attention were uniform. Other bars show percent of the maximum.
Colors follow the square root of the value; otherwise a few very bright patches would hide the others. Signed maps have
linear colors: red speaks for the class, blue against it.
"""

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap

from vit_cifar10.plots.style import COLORMAP, PERCENT, SIGNED_COLORMAP, SIGNED_PERCENT

CONTRAST, OPACITY, MEDIUM_GRAY = 0.35, 0.75, 127.5


def percent_of_maximum(values, is_signed=False, maximum=None):
    """Scale relevance to percent of its maximum over the whole array: to 0 ... 100 or, if signed, to -100 ... 100.

    Negative values of unsigned relevance become 0. A `maximum` replaces the largest value.
    """
    values = np.asarray(values, dtype=np.float64)
    if not is_signed:
        values = values.clip(min=0)
    return 100 * values / max(np.abs(values).max() if maximum is None else maximum, np.finfo(np.float64).tiny)


def color_table(name):
    """The 256 colors of a color map of matplotlib, uint8 (256, 3)."""
    return (255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).round().astype(np.uint8)


def gray_image(image):
    """The image below a map: uint8 (H, W, 3) to gray uint8 (H, W, 3) of low contrast."""
    gray = MEDIUM_GRAY + CONTRAST * (image.mean(axis=2, keepdims=True) - MEDIUM_GRAY)
    return gray.round().astype(np.uint8).repeat(3, axis=2)


def map_colors(percentages, is_signed=False):
    """The transparent colors of a map (h, w) from `percent_of_maximum`: RGBA, uint8 (h, w, 4)."""
    if is_signed:
        alpha = 0.08 + 0.77 * np.sqrt(np.abs(percentages) / 100)  # colors near 0 are white and would hide the image
        return matplotlib.colormaps[SIGNED_COLORMAP](SIGNED_PERCENT(percentages), alpha=alpha, bytes=True)
    return matplotlib.colormaps[COLORMAP](PERCENT(percentages), alpha=OPACITY, bytes=True)


def bar_colormap(is_signed=False):
    """The colors of a color bar, as they look in a map over medium gray."""
    percentages = (SIGNED_PERCENT if is_signed else PERCENT).inverse(np.linspace(0, 1, 256))
    below = np.full((1, 256, 3), MEDIUM_GRAY, dtype=np.uint8)
    return ListedColormap(blend(below, map_colors(percentages[None], is_signed))[0] / 255)


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
