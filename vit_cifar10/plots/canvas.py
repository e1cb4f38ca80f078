"""A canvas for pictures of relevance maps, laid out in pixels.

matplotlib takes long to draw a picture. Therefore, a canvas draws only once what all frames of a GIF share. For each
frame, it pastes the maps as pixels and draws the few texts that change.
"""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_cifar10.plots.overlay import enlarge, gray_image, map_colors, map_note, overlay
from vit_cifar10.plots.style import COLORMAP, GRAY, LINE_COLORS, PERCENT, SIGNED_COLORMAP, SIGNED_PERCENT


class Panel:
    """A relevance map over the image in gray, with one square per patch. `fill` replaces the map for each frame."""

    def __init__(self, image, side, is_signed, title, note):
        self.image, self.is_signed, self.title, self.note = gray_image(image), is_signed, title, note
        self.pixels = enlarge(self.image, side)

    def fill(self, percentages, title=None):
        """Show a map (h, w) from `percent_of_maximum`, with a note if it shows nothing. None keeps the title."""
        colors = map_colors(percentages, self.is_signed)
        self.pixels[:] = overlay(self.image, colors, len(self.pixels))
        self.note.set_text(map_note(percentages, self.is_signed))
        if title is not None:
            self.title.set_text(title)


class Probabilities:
    """The `count` most probable classes as bars, the most probable one on top and in color."""

    def __init__(self, axis, probabilities, classes, count=5):
        self.top = np.argsort(-np.asarray(probabilities), kind="stable")[:count]
        rows, percentages = np.arange(len(self.top)), [100 * probabilities[index] for index in self.top]
        self.bars = axis.barh(-rows - 0.15, percentages, height=0.3)
        self.names = [axis.text(1, 0.08 - row, classes[self.top[row]], va="bottom", fontsize=9) for row in rows]
        self.values = [
            axis.text(100, 0.08 - row, f"{percentages[row]:.1f} %", va="bottom", ha="right", fontsize=9) for row in rows
        ]
        axis.set(xlim=(0, 100), ylim=(0.6 - len(rows), 0.6), yticks=[], xticks=(0, 50, 100))
        axis.set_xlabel("probability (%)", fontsize=8, labelpad=1)
        axis.tick_params(labelsize=8, pad=1)
        axis.spines[["top", "right"]].set_visible(False)
        self.mark(self.top[0])

    def mark(self, marked):
        """Show the class with the index `marked` in color, instead of the most probable one."""
        for index, bar, *texts in zip(self.top, self.bars, self.names, self.values, strict=True):
            bar.set_facecolor(LINE_COLORS[0] if index == marked else GRAY)
            for text in texts:
                text.set_fontweight("bold" if index == marked else "normal")


class Canvas:
    """A picture with parts that are placed in pixels from its top left corner.

    A square part has the position (left, top, side). Only parts that are added with `changes=True`, and the maps of
    panels, may change after the first frame is drawn.
    """

    WIDTH = 960

    def __init__(self, height, width=WIDTH, dpi=100):
        self.height, self.width, self.dpi = height, width, dpi
        self.figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
        self.canvas = FigureCanvasAgg(self.figure)
        self.images, self.changing, self.background = [], [], None

    def draw(self):
        """The picture in its current state, uint8 (height, width, 3)."""
        if self.background is None:
            self.canvas.draw()
            self.background = np.array(self.canvas.buffer_rgba())
        picture = np.asarray(self.canvas.buffer_rgba())
        picture[:] = self.background
        for pixels, left, top in self.images:
            picture[top : top + len(pixels), left : left + len(pixels), :3] = pixels
        for artist in self.changing:
            self.figure.draw_artist(artist)
        return picture.take((0, 1, 2), axis=2)  # without the alpha channel; copying picture[..., :3] is slower

    def add_artist(self, artist, changes):
        """Draw an artist of the figure once or, if it changes, for each frame."""
        if changes:
            artist.set_animated(True)  # matplotlib leaves animated artists out of the background
            self.changing.append(artist)
        return artist

    def add_axes(self, left, top, width, height):
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def add_text(self, left, top, text, changes=False, **options):
        return self.add_artist(self.figure.text(left / self.width, 1 - top / self.height, text, **options), changes)

    def add_caption(self, caption="", changes=False, fontsize=11):
        """Add the line above everything else."""
        return self.add_text(self.width / 2, 8, caption, changes, ha="center", va="top", fontsize=fontsize)

    def add_title(self, position, title="", changes=False):
        """Add the title of a square part."""
        left, top, side = position
        return self.add_text(left + side / 2, top - 4 * self.dpi / 72, title, changes, ha="center", fontsize=9)

    def add_image(self, image, position, title=""):
        """Add an image, uint8 (H, W, 3)."""
        left, top, side = position
        self.images.append((enlarge(image, side), left, top))
        self.add_title(position, title)

    def add_input(self, image, position):
        """Add the image, uint8 (H, W, 3), with its size."""
        left, top, side = position
        self.add_image(image, position, "input")
        size = f"{image.shape[1]} × {image.shape[0]} pixels" + (", as the network sees it" if side > 170 else "")
        self.add_text(left + side / 2, top + 1.04 * side, size, ha="center", va="top", fontsize=7.5)

    def add_panel(self, image, position, is_signed=False, title=None):
        """Add a panel. If `title` is None, the title is set when the panel is filled."""
        left, top, side = position
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white"}
        note = self.add_text(left + side / 2, top + side / 2, "", changes=True, **style)
        panel = Panel(image, side, is_signed, self.add_title(position, title or "", changes=title is None), note)
        self.images.append((panel.pixels, left, top))
        return panel

    def add_scale(self, position, scope, is_signed=False):
        """Add the color bar for relevance in percent at (left, top, width, height).

        `scope` completes the label, as in "over all layers".
        """
        label = f"{'against ← ' * is_signed}% of the maximum{' → for' * is_signed}\n{scope}"
        colors = (SIGNED_PERCENT, SIGNED_COLORMAP) if is_signed else (PERCENT, COLORMAP)
        ticks = (-100, -50, 0, 50, 100) if is_signed else (0, 5, 25, 50, 100)
        options = {"cax": self.add_axes(*position), "orientation": "horizontal"}
        bar = self.figure.colorbar(matplotlib.cm.ScalarMappable(*colors), ticks=ticks, **options)
        bar.set_label(label, fontsize=8, labelpad=1)
        bar.ax.tick_params(labelsize=8, pad=1)

    def add_probabilities(self, position, probabilities, classes, changes=False):
        """Add the most probable classes at (left, top, width, height)."""
        return Probabilities(self.add_artist(self.add_axes(*position), changes), probabilities, classes)

    def write(self, left, top, lines):
        """Write lines of text, the first one below `top`."""
        self.add_text(left, top, "\n".join(lines), va="top", fontsize=8.5, linespacing=1.7, color=GRAY)
