"""Drawing primitives for pictures of relevance maps: one map over its image, and a canvas laid out in pixels.

The frames of a GIF are drawn on one `Canvas`. Only the parts that differ between frames are drawn again.
"""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_cifar10.plots.style import COLORMAP, GRAY, LINE_COLORS, PERCENT, SIGNED_COLORMAP, SIGNED_PERCENT
from vit_cifar10.utils.text import printable


def percent_of_maximum(values, is_signed=False):
    """Scale relevance to percent of its maximum over the whole array: to 0 ... 100 or, if signed, to -100 ... 100.

    Negative values of unsigned relevance become 0.
    """
    values = np.asarray(values, dtype=np.float64)
    if not is_signed:
        values = values.clip(min=0)
    return 100 * values / max(np.abs(values).max(), np.finfo(np.float64).tiny)


def add_colorbar(figure, scope, is_signed=False, **options):
    """Add a color bar for relevance in percent. `scope` completes the label, as in "over all layers"."""
    label = f"{'against ← ' * is_signed}% of the maximum{' → for' * is_signed}\n{scope}"
    colors = (SIGNED_PERCENT, SIGNED_COLORMAP) if is_signed else (PERCENT, COLORMAP)
    ticks = (-100, -50, 0, 50, 100) if is_signed else (0, 5, 25, 50, 100)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(*colors), ticks=ticks, **options)
    bar.set_label(label, fontsize=8, labelpad=1)
    bar.ax.tick_params(labelsize=8, pad=1)


class Panel:
    """A relevance map over the image in gray, with one square per patch. `fill` replaces the map for each frame."""

    def __init__(self, axis, image, is_signed=False):
        height, width = image.shape[:2]
        axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_axis_off()
        self.overlay = axis.imshow(
            np.zeros((1, 1)),
            cmap=SIGNED_COLORMAP if is_signed else COLORMAP,
            norm=SIGNED_PERCENT if is_signed else PERCENT,
            alpha=0.6,
            interpolation="nearest",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        self.axis, self.is_signed = axis, is_signed
        self.note = axis.text(
            0.5, 0.5, "", transform=axis.transAxes, ha="center", va="center", fontsize=8, color="white"
        )

    def fill(self, percentages, title):
        """Show a map (h, w) from `percent_of_maximum`, with a note if it shows nothing."""
        self.overlay.set_data(percentages)
        if self.is_signed:  # colors near 0 are white and would hide the image
            self.overlay.set_alpha(0.08 + 0.77 * np.sqrt(np.abs(percentages) / 100))
        is_empty = not percentages.any() if self.is_signed else percentages.max() <= 0
        self.note.set_text(("no evidence" if self.is_signed else "no positive\nevidence") if is_empty else "")
        self.axis.set_title(title, fontsize=9, pad=4)


class Canvas:
    """A picture, 960 pixels wide, with parts that are placed in pixels from its top left corner.

    A square part has the position (left, top, side).
    """

    WIDTH = 960

    def __init__(self, height):
        self.height = height
        self.figure = Figure(figsize=(self.WIDTH / 100, height / 100), dpi=100)
        self.canvas = FigureCanvasAgg(self.figure)
        self.bars = None

    def add_axes(self, left, top, width, height):
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.WIDTH, bottom / self.height, width / self.WIDTH, height / self.height))

    def add_input(self, image, position):
        """Add the image, uint8 (H, W, 3), with its size."""
        left, top, side = position
        axis = self.add_axes(left, top, side, side)
        axis.imshow(image, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title("input", fontsize=9, pad=4)
        size = f"{image.shape[1]} × {image.shape[0]} pixels" + (", as the network sees it" if side > 170 else "")
        axis.text(0.5, -0.04, size, transform=axis.transAxes, ha="center", va="top", fontsize=7.5)

    def add_panel(self, image, position, is_signed=False):
        left, top, side = position
        return Panel(self.add_axes(left, top, side, side), image, is_signed)

    def add_scale(self, position, scope, is_signed=False):
        """Add the color bar at (left, top, width). `scope` is as in `add_colorbar`."""
        left, top, width = position
        axis = self.add_axes(left, top, width, 9)
        add_colorbar(self.figure, scope, is_signed, cax=axis, orientation="horizontal")

    def show_probabilities(self, position, probabilities, classes, marked=None, count=5):
        """Draw the `count` most probable classes as bars, the most probable one on top. They replace earlier bars.

        The class with index `marked`, by default the most probable one, is shown in color.
        """
        if self.bars:
            self.bars.remove()
        self.bars = axis = self.add_axes(*position)
        top = np.argsort(-np.asarray(probabilities), kind="stable")[:count]
        marked = top[0] if marked is None else marked
        for row, index in enumerate(top):
            percent = 100 * probabilities[index]
            axis.barh(-row - 0.15, percent, height=0.3, color=LINE_COLORS[0] if index == marked else GRAY)
            weight = "bold" if index == marked else "normal"
            axis.text(1, 0.08 - row, classes[index], va="bottom", fontsize=9, weight=weight)
            axis.text(100, 0.08 - row, f"{percent:.1f} %", va="bottom", ha="right", fontsize=9, weight=weight)
        axis.set(xlim=(0, 100), ylim=(0.6 - len(top), 0.6), yticks=[], xticks=(0, 50, 100))
        axis.set_xlabel("probability (%)", fontsize=8, labelpad=1)
        axis.tick_params(labelsize=8, pad=1)
        axis.spines[["top", "right"]].set_visible(False)

    def write(self, left, top, lines):
        """Write lines of text, the first one below `top`."""
        position = (left / self.WIDTH, 1 - top / self.height)
        self.figure.text(*position, "\n".join(lines), va="top", fontsize=8.5, linespacing=1.7, color=GRAY)

    def set_caption(self, caption):
        self.figure.suptitle(printable(caption), fontsize=11, y=1 - 8 / self.height)

    def draw(self):
        """The picture in its current state, uint8 (height, 960, 3)."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
