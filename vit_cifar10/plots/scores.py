"""Pictures of test results: confusion matrix, reliability diagram, mistakes, and accuracy per class."""

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vit_cifar10.plots.style import (
    COLORMAP,
    GRAY,
    LINE_COLORS,
    PERCENT,
    add_legend,
    line_styles,
    save_figure,
    set_title,
)
from vit_cifar10.utils.text import shorten


def save_confusion_matrix(matrix, classes, path, title=""):
    """Draw a confusion matrix, int (C, C), whose rows are the true classes, with counts and row percentages.

    Cells with a count of 0 have no text. With more than 20 classes, no cell has text.
    """
    matrix = np.asarray(matrix)
    percentages = 100 * matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    count = len(classes)
    side = min(max(5, 0.75 * count + 2.5), 20)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(percentages, cmap=COLORMAP, norm=PERCENT)
    figure.colorbar(image, label="fraction of the true class (%)", shrink=0.8, ticks=(0, 1, 5, 10, 25, 50, 75, 100))
    ticks, names = range(count), [shorten(name, 20) for name in classes]
    axis.set_xticks(ticks, names, rotation=45 if count <= 20 else 90, ha="right" if count <= 20 else "center")
    axis.set_yticks(ticks, names)
    if count > 20:
        axis.tick_params(labelsize=6)
    else:
        for row, column in zip(*matrix.nonzero(), strict=True):
            color = "black" if percentages[row, column] > 35 else "white"
            text = f"{matrix[row, column]}\n{percentages[row, column]:.1f} %"
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=10)
    axis.set(xlabel="predicted class", ylabel="true class")
    set_title(figure, title)
    save_figure(figure, path)


FEW_IMAGES = 30  # a bin of a reliability diagram with fewer images is faded


def save_reliability(calibration, path, name=""):
    """Draw a reliability diagram: accuracy against confidence, and below it the number of images per confidence.

    Args:
        calibration: from `metrics.calibration`.
        name: of the network. The title tells whether it is right more or less often than it claims.
    """
    images = np.array(calibration["images"])
    filled, width = images > 0, 100 / len(images)
    confidence, accuracy = (np.array(calibration[key], dtype=float)[filled] for key in ("confidence", "accuracy"))
    intervals = np.array([ends for ends in calibration["accuracy_interval"] if ends])
    edges = np.linspace(0, 100, len(images), endpoint=False)
    figure = Figure(figsize=(6, 7.6), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    bars = {"width": width, "align": "edge", "edgecolor": "white"}
    parts = zip(upper.bar(edges[filled], 100 * accuracy, color=LINE_COLORS[0], **bars), images[filled], strict=True)
    for bar, count in parts:
        bar.set_alpha(1 if count >= FEW_IMAGES else 0.3)
    errors = 100 * np.abs(intervals - accuracy[:, None]).T
    style = {"fmt": "none", "ecolor": "black", "elinewidth": 1.2, "capsize": 3}
    upper.errorbar(edges[filled] + width / 2, 100 * accuracy, yerr=errors, **style)
    upper.plot((0, 100), (0, 100), "--", color="black", linewidth=1.8)
    upper.set(ylabel="accuracy (%)", ylim=(0, 102), xlim=(0, 100))
    right, claimed = (100 * np.average(values, weights=images[filled]) for values in (accuracy, confidence))
    judged = (
        "about as often as" if abs(right - claimed) < 1 else "more often than" if right > claimed else "less often than"
    )
    set_title(figure, f"{name} is right {judged} it claims\nright: {right:.1f} %, claimed: {claimed:.1f} % on average")
    handles = [
        Patch(color=LINE_COLORS[0], label="accuracy, with 95 % interval"),
        Patch(color=LINE_COLORS[0], alpha=0.3, label=f"from fewer than {FEW_IMAGES} images"),
        Line2D([], [], linestyle="--", color="black", label="right as often as it claims"),
    ]
    error = f"expected calibration error {100 * calibration['error']:.2f} %"
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=error)
    lower.bar(edges, 100 * images / images.sum(), color=GRAY, **bars)
    lower.set(xlabel="confidence in the predicted class (%)", ylabel="images (%)")
    save_figure(figure, path)


def save_mistakes(images, captions, path, title=""):
    """Draw up to 25 images, uint8 (K, H, W, 3), with a caption below each."""
    columns = 5
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(10.8, 2.35 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(images) :]:
        axis.set_axis_off()
    for axis, image, caption in zip(axes, images, captions, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel("\n".join(textwrap.fill(line, 28) for line in caption.splitlines()), fontsize=10)
    set_title(figure, title)
    save_figure(figure, path)


def save_class_accuracy(recalls, classes, dataset, path):
    """Plot the recall of each class for several runs, with 95 % intervals, sorted by the mean recall of the classes.

    Args:
        recalls: {run: (C, 3)}, each class's recall and the ends of its interval, in [0, 1].
    """
    values = 100 * np.array(list(recalls.values()))  # (runs, C, 3)
    order = values[..., 0].mean(axis=0).argsort()
    row_height = 0.3 + 0.12 * min(len(recalls), 6)
    figure = Figure(figsize=(9, min(row_height * len(classes), 60) + 1.6 + 0.1 * len(recalls)), layout="constrained")
    axis, heights = figure.subplots(), np.arange(len(classes))
    offsets = np.linspace(0.25, -0.25, len(recalls)) if len(recalls) > 1 else [0]
    for of_run, offset, (color, marker) in zip(values[:, order], offsets, line_styles(), strict=False):
        recall, errors = of_run[:, 0], np.abs(of_run[:, 1:] - of_run[:, :1]).T
        axis.errorbar(recall, heights + offset, xerr=errors, fmt=marker, color=color, markersize=5, capsize=2.5)
    for height in heights[1::2]:
        axis.axhspan(height - 0.5, height + 0.5, color="#f2f2f2", zorder=0)
    axis.set_yticks(heights, [shorten(classes[index], 24) for index in order])
    label = f"test images of the class classified correctly (%), with 95 % intervals, {dataset}"
    axis.set(xlabel=label, ylim=(-0.6, len(classes) - 0.4))
    axis.grid(alpha=0.3, axis="x")
    add_legend(figure, list(recalls))
    save_figure(figure, path)
