"""Every picture: curves, confusion matrices, attention GIFs. Takes arrays and knows no network.

Colours tell apart for colour-blind eyes too: lines are Okabe and Ito's, maps are viridis. Files are written whole.
"""

import os
import sys

import imageio.v3 as iio
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vit_cifar10.plots.style import COLORMAP, COLORS, GREY, METHOD_COLORS, PERCENT, save_figure, set_title
from vit_cifar10.utils.files import replacing


def save_disagreements(panels, rows, path):
    """Images that one network gets right and the other wrong, with what speaks for the class each of them names.

    Args:
        panels: titles, and for each image (uint8 (H, W, 3), label, [(map (h, w), caption), ...]).
        rows: what the maps of each network are, a line or two each.
    """
    columns = max(4, *(len(images) for _, images in panels))  # with fewer the titles would have no room
    figure = Figure(figsize=(2.05 * columns + 0.5, 6.2 * len(panels) + 0.4), layout="constrained")
    for part, (title, images) in zip(figure.subfigures(len(panels), 1, squeeze=False).ravel(), panels, strict=True):
        part.suptitle(title)
        axes = part.subplots(3, columns, squeeze=False)
        for axis in axes.ravel():
            axis.set_axis_off()
        for axis, name in zip(axes[:, 0], ("test image", *rows), strict=True):
            axis.text(-0.06, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9)
        for column, (image, label, maps) in enumerate(images):
            axes[0, column].imshow(image, interpolation="nearest")
            axes[0, column].set_title(f"label: {label}", fontsize=10, pad=4)
            for axis, (relevance, caption) in zip(axes[1:, column], maps, strict=True):
                _Panel(axis, image).fill(_relative(relevance), caption)
    figure.supxlabel(
        "the brighter, the more it speaks for the named class; each map by its own largest value", fontsize=9
    )
    save_figure(figure, path)


# Maps are shown as multiples of their kind's largest value over all frames, on one scale: a patch that is twice as
# bright in a later frame did become more relevant. The scale is a square root's, or a few patches would hide the rest.

SCALE_LABEL = "relevance (% of the largest in any {frame})"
LAYER_TITLES = {
    "attention": "attention of layer {layer}",
    "rollout": "rollout up to layer {layer}",
    "gradient rollout": "gradient rollout up to {layer}",
}
LAYER_LEGEND = (
    "attention: where this layer looks to collect what the prediction is read from; mean of its heads",
    "rollout: what has been collected so far, through all layers; it knows no class",
    "gradient rollout: what of it speaks for {predicted}",
)


def attention_frames(image, maps, heads, probabilities, classes, caption):
    """One image's way through the layers of a ViT, a frame a layer.

    Args:
        image: uint8 (H, W, 3), as the network saw it.
        maps: "attention", "rollout" and "gradient rollout", (depth, grid, grid) each.
        heads: (depth, heads, grid, grid), the attention of every head.
        probabilities: (C,), the network's, summing to 1.
        classes: names (C,).
        caption: line above the panels.

    Returns:
        uint8 (depth, height, 960, 3).
    """
    depth, num_heads = heads.shape[:2]
    side = min(104, 936 // num_heads - 8)
    canvas = _Canvas(height=326 + side)
    canvas.show_input(image, (12, 58, 176))
    panels = [
        (name, _relative(values), canvas.add_map(image, (200 + 188 * place, 58, 176)))
        for place, (name, values) in enumerate(maps.items())
    ]
    canvas.add_scale((200, 246, 188 * len(maps) - 12), "layer")
    canvas.show_probabilities((788, 52, 156, 190), probabilities, classes)
    head_maps = _relative(heads)
    thumbnails = [canvas.add_map(image, (12 + (side + 8) * head, 312, side)) for head in range(num_heads)]
    legend_left = 24 + (side + 8) * num_heads
    if legend_left < 500:
        predicted = classes[int(np.argmax(probabilities))]
        canvas.write(legend_left, 312, [line.format(predicted=predicted) for line in LAYER_LEGEND])
    frames = []
    for layer in range(depth):
        for name, values, panel in panels:
            panel.fill(values[layer], LAYER_TITLES[name].format(layer=layer + 1))
        for head, panel in enumerate(thumbnails):
            panel.fill(head_maps[layer, head], f"head {head + 1}" if side > 40 else str(head + 1))
        canvas.set_caption(f"{caption}   ·   layer {layer + 1} of {depth}")
        frames.append(canvas.draw())
    return np.stack(frames)


def class_frames(image, maps, chosen, probabilities, classes, caption):
    """What speaks for each of some classes, a frame a class.

    Args:
        image: uint8 (H, W, 3), as the network saw it.
        maps: (K, h, w), relevance for each of the classes `chosen`, (K,) indices.
        probabilities, classes, caption: as in `attention_frames`.

    Returns:
        uint8 (K, height, 960, 3).
    """
    canvas = _Canvas(height=400)
    canvas.show_input(image, (12, 58, 280))
    panel = canvas.add_map(image, (312, 58, 280))
    canvas.add_scale((312, 350, 280), "frame")
    frames = []
    for index, values in zip(chosen, _relative(maps), strict=True):
        panel.fill(values, f"Grad-CAM: what speaks for {classes[index]}")
        canvas.show_probabilities((632, 52, 308, 290), probabilities, classes, marked=index)
        canvas.set_caption(caption)
        frames.append(canvas.draw())
    return np.stack(frames)


def save_relevance_grid(path, image, rows, columns, caption):
    """A still of the same: a row a kind of relevance, a column a layer or a class, beside the input.

    Args:
        rows: names of the kinds and values, (K, h, w) each.
        columns: names (K,).
    """
    shown = np.unique(np.linspace(0, len(columns) - 1, min(8, len(columns))).round().astype(int))
    width, height = 1.3 * (len(shown) + 1), 1.35 * len(rows) + 1.1
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), len(shown) + 1, squeeze=False)
    for row, (name, values) in zip(axes, rows.items(), strict=True):
        row[0].imshow(image, interpolation="nearest")
        row[0].set_ylabel(name, fontsize=9)
        row[0].set(xticks=[], yticks=[])
        relative = _relative(values)
        for axis, index in zip(row[1:], shown, strict=True):
            _Panel(axis, image).fill(relative[index], "")
    axes[0, 0].set_title("input", fontsize=9)
    for axis, index in zip(axes[0, 1:], shown, strict=True):
        axis.set_title(columns[index], fontsize=9)
    bar = figure.colorbar(_scale_colors(), ax=axes, location="bottom", shrink=0.6, aspect=50, ticks=(0, 5, 25, 50, 100))
    bar.set_label(SCALE_LABEL.format(frame="column of the row"), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(caption, fontsize=10)
    save_figure(figure, path, dpi=120)


def save_faithfulness(path, fractions, curves, correlations, stages, title):
    """Curves of removing and restoring patches, and what is left of the maps of a network that forgets.

    Args:
        fractions: (K,), shares of the patches.
        curves: {(method, fill, kind): (K,)}, mean probability of the predicted class.
        correlations: {method: (1 + stages,)}, rank correlation with the trained network's maps.
        stages: names of the parts that were randomised, in turn.
    """
    methods = list(dict.fromkeys(method for method, _, _ in curves))
    styles = {
        method: {
            "color": METHOD_COLORS[place % len(METHOD_COLORS)],
            "linestyle": "-" if method in correlations else "--",
        }
        for place, method in enumerate(methods)
    }
    panels = list(dict.fromkeys((fill, kind) for _, fill, kind in curves))
    figure = Figure(figsize=(13, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.1))
    for place, (fill, kind) in enumerate(panels):
        axis = figure.add_subplot(grid[place // 2, place % 2])
        for method in methods:
            axis.plot(100 * np.asarray(fractions), 100 * curves[method, fill, kind], label=method, **styles[method])
        verb = "removed" if kind == "deletion" else "restored"
        better = "lower" if kind == "deletion" else "higher"
        axis.set_title(f"{kind}, removed is {fill}: {better} is better", fontsize=10)
        axis.set(xlabel=f"most relevant patches {verb} (%)", ylabel="probability of the class (%)", ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    axis = figure.add_subplot(grid[:, 2])
    for method, values in correlations.items():
        axis.plot(range(len(values)), values, marker="o", label=method, **styles[method])
    axis.set_xticks(range(len(stages) + 1), ["trained", *stages], rotation=60, ha="right")
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set(xlabel="randomised down to", ylabel="rank correlation with the trained network's map", ylim=(-0.3, 1.05))
    axis.set_title("maps of a network that forgets: should fall to 0", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    set_title(figure, title)
    save_figure(figure, path)


def _relative(values):
    """Percent of the largest value; 0 where nothing is positive."""
    values = np.asarray(values, dtype=np.float64).clip(min=0)
    return 100 * values / max(values.max(), np.finfo(np.float64).tiny)


def _scale_colors():
    return matplotlib.cm.ScalarMappable(PERCENT, COLORMAP)


class _Panel:
    """A relevance map over the greyed image, patch by patch, that each frame fills anew."""

    def __init__(self, axis, image):
        height, width = image.shape[:2]
        axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_axis_off()
        self.picture = axis.imshow(
            np.zeros((1, 1)),
            cmap=COLORMAP,
            norm=PERCENT,
            alpha=0.6,
            interpolation="nearest",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        self.axis = axis
        self.note = axis.text(
            0.5, 0.5, "", transform=axis.transAxes, ha="center", va="center", fontsize=8, color="white"
        )

    def fill(self, values, title):
        """Show values in percent; without any above 0, say so."""
        self.picture.set_data(values)
        self.note.set_text("" if values.max() > 0 else "no positive\nevidence")
        self.axis.set_title(title, fontsize=9, pad=4)


class _Canvas:
    """A picture 960 pixels wide whose parts are placed in pixels from its top left corner."""

    WIDTH = 960

    def __init__(self, height):
        self.height = height
        self.figure = Figure(figsize=(self.WIDTH / 100, height / 100), dpi=100)
        self.canvas = FigureCanvasAgg(self.figure)
        self.bars = None

    def place(self, left, top, width, height):
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.WIDTH, bottom / self.height, width / self.WIDTH, height / self.height))

    def show_input(self, image, place):
        left, top, side = place
        axis = self.place(left, top, side, side)
        axis.imshow(image, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title("input", fontsize=9, pad=4)
        size = f"{image.shape[1]} × {image.shape[0]} pixels, as the network sees it"
        axis.text(0.5, -0.04, size, transform=axis.transAxes, ha="center", va="top", fontsize=7.5)

    def add_map(self, image, place):
        left, top, side = place
        return _Panel(self.place(left, top, side, side), image)

    def add_scale(self, place, frame):
        left, top, width = place
        axis = self.place(left, top, width, 9)
        bar = self.figure.colorbar(
            _scale_colors(), cax=axis, orientation="horizontal", ticks=(0, 1, 5, 10, 25, 50, 100)
        )
        bar.set_label(SCALE_LABEL.format(frame=frame), fontsize=8, labelpad=1)
        bar.ax.tick_params(labelsize=8, pad=1)

    def show_probabilities(self, place, probabilities, classes, marked=None, count=5):
        """The likeliest classes as bars under their names, the likeliest on top, one of them marked by its colour."""
        if self.bars:
            self.bars.remove()
        self.bars = axis = self.place(*place)
        top = np.argsort(-np.asarray(probabilities), kind="stable")[:count]
        marked = top[0] if marked is None else marked
        for place_, index in enumerate(top):
            percent = 100 * probabilities[index]
            axis.barh(-place_ - 0.15, percent, height=0.3, color=COLORS["train"] if index == marked else GREY)
            weight = "bold" if index == marked else "normal"
            axis.text(0, 0.08 - place_, classes[index], va="bottom", fontsize=9, weight=weight)
            axis.text(100, 0.08 - place_, f"{percent:.1f} %", va="bottom", ha="right", fontsize=9, weight=weight)
        axis.set(xlim=(0, 100), ylim=(0.6 - len(top), 0.6), yticks=[], xticks=(0, 50, 100))
        axis.set_xlabel("probability (%)", fontsize=8, labelpad=1)
        axis.tick_params(labelsize=8, pad=1)
        axis.spines[["top", "right"]].set_visible(False)

    def write(self, left, top, lines):
        """Lines of text, the first one's top at `top`."""
        text = "\n".join(lines)
        place = (left / self.WIDTH, 1 - top / self.height)
        self.figure.text(*place, text, va="top", fontsize=8.5, linespacing=1.7, color=GREY)

    def set_caption(self, caption):
        self.figure.suptitle(caption, fontsize=11, y=1 - 8 / self.height)

    def draw(self):
        """The picture as it is: uint8 (height, 960, 3)."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def save_gif(frames, path, seconds=0.5, last_seconds=2.5):
    """Write frames, uint8 (N, H, W, 3), as an endless GIF whose last frame is held.

    A GIF has 256 colours a frame. Pillow's maximum coverage chooses them to be far apart, so that the few pixels of a
    colour scale keep theirs beside the many of a photograph.
    """
    few_colors = [
        np.asarray(Image.fromarray(frame).quantize(256, Image.Quantize.MAXCOVERAGE).convert("RGB")) for frame in frames
    ]
    milliseconds = [1000 * seconds] * (len(frames) - 1) + [1000 * last_seconds]
    if len(frames) == 1:
        milliseconds = milliseconds[0]  # Pillow takes no list for a picture that does not move
    gif = iio.imwrite("<bytes>", few_colors, plugin="pillow", extension=".gif", duration=milliseconds, loop=0)
    with replacing(path) as partial:
        partial.write_bytes(gif)


def show(picture, title):
    """Show a picture, uint8 (H, W, 3), in a window until it is closed. Returns False where no window can be opened."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    from matplotlib import pyplot  # looks for a window system, which pictures for files have no need of

    figure = pyplot.figure(title, figsize=(picture.shape[1] / 100, picture.shape[0] / 100))
    if figure.canvas.required_interactive_framework is None:
        return False
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(picture, interpolation="nearest")
    axis.set_axis_off()
    pyplot.show()
    return True
