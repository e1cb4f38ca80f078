"""A canvas for pictures of relevance maps, laid out in pixels.

matplotlib takes long to draw a picture. Therefore, a canvas draws only once what all frames of a GIF share. For each
frame, it pastes the maps as pixels and draws the few texts that change.
"""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_cifar10.plots.overlay import bar_colormap, enlarge, gray_image, map_colors, map_note, overlay
from vit_cifar10.plots.style import GRAY, LINE_COLORS, PERCENT, SIGNED_PERCENT
from vit_cifar10.utils.text import shorten

TICKS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)  # of attention, where they have room


class Panel:
    """A relevance map over the image in gray, with one square per patch. `fill` replaces the map for each frame."""

    def __init__(self, image, side, is_signed, title, note):
        self.image, self.is_signed, self.title, self.note = gray_image(image), is_signed, title, note
        self.pixels, self.side = enlarge(self.image, side), side

    def fill(self, percentages, title=None):
        """Show a map (h, w) from `percent_of_maximum`, with a note if it shows nothing. None keeps the title."""
        colors = map_colors(percentages, self.is_signed)
        self.pixels[:] = overlay(self.image, colors, len(self.pixels))
        self.note.set_text(map_note(percentages, self.is_signed))
        if title is not None:
            self.title.set_text(title)


class OwnScale:
    """A color bar for one map of attention to `tokens` tokens. Its end changes, and so does its mark of uniform."""

    def __init__(self, width, height, text, tokens):
        self.colors = bar_colormap()(np.linspace(0, 1, width), bytes=True)[None, :, :3].repeat(height, axis=0)
        self.pixels, self.text, self.tokens = self.colors.copy(), text, tokens

    def fill(self, maximum):
        """Show the scale from 0 to `maximum`."""
        self.pixels[:] = self.colors
        at = round((len(self.colors[0]) - 1) * (1 / self.tokens / maximum) ** 0.5)
        self.pixels[:, max(0, at - 2) : at + 3] = 255
        self.pixels[:, max(0, at - 1) : at + 1] = 0
        width = len(self.colors[0])
        uniform = f"uniform {short_percent(1 / self.tokens)}, " if width > 100 else ""
        self.text.set_text(f"{uniform}to {short_percent(maximum)} %" if width > 40 else "")


class Probabilities:
    """The probabilities of the classes `shown`, (K,) indices, as bars. Names are cut to `longest` letters."""

    def __init__(self, axis, shown, classes, longest):
        self.axis, self.shown, rows = axis, shown, np.arange(len(shown))
        self.bars = axis.barh(-rows - 0.15, 0 * rows, height=0.3)
        style = {"va": "bottom", "fontsize": 9}
        self.names = [axis.text(1, 0.08 - row, shorten(classes[shown[row]], longest), **style) for row in rows]
        self.values = [axis.text(100, 0.08 - row, "", ha="right", **style) for row in rows]
        axis.set(xlim=(0, 100), ylim=(0.6 - len(rows), 0.6), yticks=[], xticks=(0, 50, 100))
        axis.set_xlabel("probability (%)", fontsize=8, labelpad=1)
        axis.tick_params(labelsize=8, pad=1)
        axis.spines[["top", "right"]].set_visible(False)

    def fill(self, probabilities, marked, title=""):
        """Show probabilities (C,) in [0, 1]. The class with the index `marked` is shown in color."""
        self.axis.set_title(title, fontsize=9, pad=4)
        for index, bar, name, value in zip(self.shown, self.bars, self.names, self.values, strict=True):
            bar.set(width=100 * probabilities[index], facecolor=LINE_COLORS[0] if index == marked else GRAY)
            value.set_text(f"{100 * probabilities[index]:.1f} %")
            for text in (name, value):
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
            picture[top : top + len(pixels), left : left + pixels.shape[1], :3] = pixels
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
        size = f"{image.shape[1]} × {image.shape[0]} pixels" + (", as the network sees it" if side > 190 else "")
        self.add_text(left + side / 2, top + 1.04 * side, size, ha="center", va="top", fontsize=7.5)

    def add_panel(self, image, position, is_signed=False, title=None):
        """Add a panel. If `title` is None, the title is set when the panel is filled."""
        left, top, side = position
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white"}
        note = self.add_text(left + side / 2, top + side / 2, "", changes=True, **style)
        panel = Panel(image, side, is_signed, self.add_title(position, title or "", changes=title is None), note)
        self.images.append((panel.pixels, left, top))
        return panel

    def add_scale(self, position, label, is_signed=False, maximum=None, tokens=0):
        """Add the color bar of a map at (left, top, width, height).

        With `tokens`, the map holds attention to so many tokens, and `maximum` is the end of its scale. The bar then
        marks uniform attention. Without, the bar shows percent of a maximum.
        """
        axis, norm = self.add_axes(*position), SIGNED_PERCENT if is_signed else PERCENT
        options = {"cax": axis, "orientation": "horizontal"}
        bar = self.figure.colorbar(matplotlib.cm.ScalarMappable(norm, bar_colormap(is_signed)), **options)
        ticks = (-100, -50, 0, 50, 100) if is_signed else (0, 5, 25, 50, 100)
        bar.set_ticks(ticks)
        if tokens:
            ticks = attention_ticks(maximum)
            bar.set_ticks([100 * tick / maximum for tick in ticks], labels=list(map(short_percent, ticks)))
            mark_uniform(axis, maximum, tokens)
        bar.set_label(label, fontsize=8, labelpad=1)
        axis.tick_params(labelsize=8, pad=1)

    def add_own_scale(self, position, tokens):
        """Add the color bar of a map of attention whose scale changes at (left, top, width, height)."""
        left, top, width, height = position
        style = {"ha": "center", "va": "top", "fontsize": 7.5}
        scale = OwnScale(width, height, self.add_text(left + width / 2, top + height + 4, "", True, **style), tokens)
        self.images.append((scale.pixels, left, top))
        return scale

    def add_probabilities(self, position, shown, classes):
        """Add bars for the probabilities of classes at (left, top, width, height)."""
        longest = int((position[2] - 60) / 9)  # letters next to the number
        return Probabilities(self.add_artist(self.add_axes(*position), changes=True), shown, classes, longest)

    def write(self, left, top, lines):
        """Write lines of text, the first one below `top`."""
        self.add_text(left, top, "\n".join(lines), va="top", fontsize=8.5, linespacing=1.7, color=GRAY)


def attention_ticks(maximum):
    """Round values of attention from 0 to `maximum`, far enough apart on a scale of square roots."""
    ticks = [maximum]
    for tick in TICKS:
        if min((ticks[-1] / maximum) ** 0.5 - (tick / maximum) ** 0.5, (tick / maximum) ** 0.5) >= 0.17:
            ticks.append(tick)
    return [0, *reversed(ticks)]


def short_percent(fraction):
    """A percentage with two digits, without a sign."""
    return f"{100 * fraction:.{0 if fraction >= 0.095 else 1}f}".removesuffix(".0")


def mark_uniform(axis, maximum, tokens):
    """Mark the attention that each of the tokens would get if it were uniform, on a color bar up to `maximum`."""
    at = 100 / tokens / maximum
    for color, width in (("white", 4), ("black", 1.5)):
        axis.axvline(at, color=color, linewidth=width)
    place = (at / 100) ** 0.5
    side = "left" if place < 0.35 else "right" if place > 0.65 else "center"
    text = f"uniform {short_percent(1 / tokens)} %"
    axis.text(place, 1.3, text, transform=axis.transAxes, ha=side, va="bottom", fontsize=7.5)
