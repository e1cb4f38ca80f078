"""Write frames to an animated GIF, or show one frame in a window."""

import os
import sys

import imageio.v3 as iio
import numpy as np
from PIL import Image

from vit_cifar10.utils.files import atomic_write


def save_gif(frames, path, seconds=0.5, last_seconds=2.5):
    """Write frames, uint8 (N, H, W, 3), to a GIF that repeats forever and holds its last frame.

    A GIF frame has 256 colors. Pillow's maximum coverage chooses colors that are far apart, so that the few pixels of
    the color bar keep their colors next to the many pixels of a photograph.
    """
    quantized = [
        np.asarray(Image.fromarray(frame).quantize(256, Image.Quantize.MAXCOVERAGE).convert("RGB")) for frame in frames
    ]
    milliseconds = [1000 * seconds] * (len(frames) - 1) + [1000 * last_seconds]
    if len(frames) == 1:
        milliseconds = milliseconds[0]  # Pillow accepts no list for a single frame
    gif = iio.imwrite("<bytes>", quantized, plugin="pillow", extension=".gif", duration=milliseconds, loop=0)
    with atomic_write(path) as partial:
        partial.write_bytes(gif)


def show(frame, title):
    """Show a frame, uint8 (H, W, 3), in a window until it is closed. Return False if no window can be opened."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    from matplotlib import pyplot  # imported only here because it searches for a window system

    figure = pyplot.figure(title, figsize=(frame.shape[1] / 100, frame.shape[0] / 100))
    if figure.canvas.required_interactive_framework is None:
        return False
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(frame, interpolation="nearest")
    axis.set_axis_off()
    pyplot.show()
    return True
