"""Write frames to an animated GIF, or show one frame in a window."""

import os
import sys

import imageio.v3 as iio
import numpy as np
from PIL import Image

from vit_cifar10.utils.files import atomic_write


def save_gif(frames, path, milliseconds=None, comment=b""):
    """Write frames, uint8 (N, H, W, 3), to a GIF that repeats forever.

    Args:
        milliseconds: how long each frame is shown; by default half a second, and the last one 2.5 seconds.
        comment: text that the file carries, bytes.
    """
    indices, palette = common_palette(frames)
    milliseconds = milliseconds or [500] * (len(frames) - 1) + [2500]
    if len(frames) == 1:
        milliseconds = milliseconds[0]  # Pillow accepts no list for a single frame
    options = {"is_batch": True, "palette": palette, "duration": milliseconds, "loop": 0, "comment": comment}
    gif = iio.imwrite("<bytes>", indices, plugin="pillow", extension=".gif", **options)
    with atomic_write(path) as partial:
        partial.write_bytes(gif)


def common_palette(frames):
    """Choose the 256 colors of a GIF. Return the index of each pixel's color, (N, H, W), and the palette, bytes.

    Pillow's maximum coverage chooses colors that are far apart, so that the few pixels of the color bar keep their
    colors next to the many pixels of a photograph. It is applied to each distinct color once, which is much faster
    than to each frame, and parts that do not change between frames keep their colors.
    """
    is_used = np.zeros(2**24, dtype=bool)
    for frame in frames:
        codes = color_codes(frame).ravel()
        is_used[codes[np.flatnonzero(np.diff(codes, prepend=-1))]] = True  # once for neighbors of the same color
    codes = np.flatnonzero(is_used)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
    quantized = Image.fromarray(colors[None]).quantize(256, Image.Quantize.MAXCOVERAGE)
    index_of = np.zeros(2**24, dtype=np.uint8)
    index_of[codes] = np.asarray(quantized)[0]
    return np.stack([index_of[color_codes(frame)] for frame in frames]), bytes(quantized.getpalette())


def color_codes(frame):
    """One integer per color: uint8 (H, W, 3) to int32 (H, W) from 0 to 2^24 - 1."""
    red, green, blue = frame.transpose(2, 0, 1).astype(np.int32)
    return red << 16 | green << 8 | blue


def show(frame, title):
    """Show a frame, uint8 (H, W, 3), in a window until it is closed. Return False if no window can be opened."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    from matplotlib import pyplot  # imported only here because it searches for a window system

    try:
        figure = pyplot.figure(title, figsize=(frame.shape[1] / 100, frame.shape[0] / 100))
    except ImportError:  # the backend that MPLBACKEND names is not installed, or needs another display
        return False
    if figure.canvas.required_interactive_framework is None:
        return False
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(frame, interpolation="nearest")
    axis.set_axis_off()
    pyplot.show()
    return True
