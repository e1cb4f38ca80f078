"""Every picture: curves, confusion matrices, attention GIFs. Takes arrays and knows no network.

Colours tell apart for colour-blind eyes too: lines are Okabe and Ito's, maps are viridis. Files are written whole.
"""

import os
import sys

import imageio.v3 as iio
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from runtime import replacing

COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
NAMES = {"train": "training", "val": "validation", "test": "test"}
GREY = "#555555"
COLORMAP = "viridis"

matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a file or a class is a $


def save_figure(figure, path, dpi=100):
    """Write a matplotlib figure as PNG."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")


def save_curves(rows, path, title=""):
    """Loss, accuracy and learning rate over the epochs of a run.

    Args:
        rows: dicts with `epoch`, `learning_rate`, and `<split>_loss` and `<split>_accuracy` for the splits that were
            measured, None where they were not; accuracies in [0, 1].
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for axis, quantity, scale, unit in ((axes[0], "loss", 1, "nats"), (axes[1], "accuracy", 100, "%")):
        for split, color in COLORS.items():
            values = [row.get(f"{split}_{quantity}") for row in rows]
            if None not in values:
                scaled = [value * scale for value in values]
                axis.plot(epochs, scaled, color=color, marker=_marker(rows), label=f"{NAMES[split]} {scaled[-1]:.3g}")
        axis.set_ylabel(f"{quantity} ({unit})")
        axis.legend(title="last epoch")
    axes[2].plot(epochs, [row["learning_rate"] for row in rows], color=GREY, marker=_marker(rows))
    axes[2].set_ylabel("learning rate")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    save_figure(figure, path)


def _marker(rows):
    return "o" if len(rows) < 30 else None


def save_confusion_matrix(matrix, classes, path, title=""):
    """Counts and row percentages of a confusion matrix, int (C, C), rows the true classes.

    With many classes the cells carry no numbers.
    """
    matrix = np.asarray(matrix)
    share = 100 * matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    count = len(classes)
    side = min(max(5, 0.75 * count + 2.5), 20)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, cmap=COLORMAP, vmin=0, vmax=100)
    figure.colorbar(image, label="share of the true class (%)", shrink=0.8)
    ticks = range(count)
    axis.set_xticks(ticks, classes, rotation=45 if count <= 20 else 90, ha="right" if count <= 20 else "center")
    axis.set_yticks(ticks, classes)
    if count > 20:
        axis.tick_params(labelsize=6)
    else:
        for row in ticks:
            for column in ticks:
                color = "black" if share[row, column] > 55 else "white"
                text = f"{matrix[row, column]}\n{share[row, column]:.0f} %"
                axis.text(column, row, text, ha="center", va="center", color=color, fontsize=10)
    axis.set(xlabel="predicted class", ylabel="true class", title=title)
    save_figure(figure, path)


def attention_frames(image, attention, rollout, probabilities, classes, caption):
    """The frames of one image's way through the layers, a frame a layer.

    Args:
        image: uint8 (H, W, 3), as the network saw it.
        attention: (depth, grid, grid), what each layer pays attention to.
        rollout: (depth, grid, grid), attention rollout from the input up to each layer.
        probabilities: (C,), the network's, summing to 1.
        classes: names (C,).
        caption: line above the panels.

    Returns:
        uint8 (depth, height, width, 3), 960 pixels wide. Maps are shown in multiples of their mean, so that 1 is the
        average patch, each kind on one scale for all frames.
    """
    maps = [np.asarray(values) / np.mean(values, axis=(1, 2), keepdims=True) for values in (attention, rollout)]
    figure = Figure(figsize=(9.6, 3.3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    panels = [figure.add_axes((left, 0.2, 0.23, 0.23 * 9.6 / 3.3)) for left in (0.015, 0.265, 0.515)]
    panels[0].imshow(image, interpolation="nearest")
    panels[0].set_axis_off()
    panels[0].set_title("input", fontsize=10)
    figure.text(
        0.13,
        0.13,
        f"{image.shape[1]} × {image.shape[0]} pixels, as the\nnetwork sees it",
        ha="center",
        va="top",
        fontsize=9,
    )
    pictures = [_draw_relevance(panel, image, values) for panel, values in zip(panels[1:], maps, strict=True)]
    _draw_probabilities(figure.add_axes((0.785, 0.2, 0.195, 0.67)), probabilities, classes)
    depth, frames = len(attention), []
    for layer in range(depth):
        for picture, values in zip(pictures, maps, strict=True):
            picture.set_data(values[layer])
        panels[1].set_title(f"attention of layer {layer + 1}", fontsize=10)
        panels[2].set_title(f"rollout, layers 1 to {layer + 1}" if layer else "rollout, layer 1", fontsize=10)
        figure.suptitle(f"{caption}   ·   layer {layer + 1} of {depth}", fontsize=12, y=0.985)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)


def _draw_relevance(axis, image, values):
    """A map over the greyed image, patch by patch, with its scale; the values are filled in for each frame."""
    height, width = image.shape[:2]
    axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_axis_off()
    picture = axis.imshow(
        values[0],
        cmap=COLORMAP,
        norm=Normalize(0, max(2.0, np.percentile(values, 98))),  # a few bright patches shall not hide the rest
        alpha=0.6,
        interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    left, bottom, panel_width, _ = axis.get_position().bounds
    scale = axis.figure.add_axes((left, bottom - 0.065, panel_width, 0.035))
    bar = axis.figure.colorbar(picture, cax=scale, orientation="horizontal", extend="max")
    bar.set_label("relevance (1 = average patch)", fontsize=9, labelpad=1)
    bar.ax.tick_params(labelsize=8, pad=1)
    return picture


def _draw_probabilities(axis, probabilities, classes, count=5):
    """The likeliest classes as bars under their names, the likeliest on top."""
    probabilities = np.asarray(probabilities)
    top = np.argsort(-probabilities, kind="stable")[:count]
    places = -np.arange(len(top))
    colors = [COLORS["train"]] + [GREY] * (len(top) - 1)
    axis.barh(places - 0.15, 100 * probabilities[top], height=0.3, color=colors)
    for place, index in zip(places, top, strict=True):
        axis.text(0, place + 0.08, classes[index], va="bottom", fontsize=9)
        axis.text(100, place + 0.08, f"{100 * probabilities[index]:.1f} %", va="bottom", ha="right", fontsize=9)
    axis.set(xlim=(0, 100), ylim=(-len(top) + 0.6, 0.6), yticks=[], xticks=(0, 50, 100))
    axis.set_xlabel("probability (%)", fontsize=9, labelpad=1)
    axis.tick_params(labelsize=8, pad=1)
    axis.spines[["top", "right"]].set_visible(False)


def save_gif(frames, path, seconds=0.5, last_seconds=2.5):
    """Write frames, uint8 (N, H, W, 3), as an endless GIF whose last frame is held."""
    milliseconds = [1000 * seconds] * (len(frames) - 1) + [1000 * last_seconds]
    with replacing(path) as partial:
        iio.imwrite(partial, frames, plugin="pillow", extension=".gif", duration=milliseconds, loop=0)


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
