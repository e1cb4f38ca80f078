"""Pictures of test results: confusion matrix, reliability diagram, mistakes, and accuracy per class."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

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


def save_reliability(calibration, path, title=""):
    """Draw a reliability diagram: accuracy against confidence, and below it the number of images per confidence.

    Args:
        calibration: the expected calibration `error`, and for bins of equal width over [0, 1] the number of `images`
            and their mean `confidence` and `accuracy`, which are None in empty bins.
    """
    images = np.array(calibration["images"])
    filled = images > 0
    confidence, accuracy = (100 * np.array(calibration[key], dtype=float)[filled] for key in ("confidence", "accuracy"))
    edges, width = np.linspace(0, 100, len(images), endpoint=False), 100 / len(images)
    bars = {"width": width, "align": "edge", "edgecolor": "white"}
    figure = Figure(figsize=(6, 7.4), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    upper.bar(edges[filled], accuracy, color=LINE_COLORS[0], label="accuracy", **bars)
    upper.plot(confidence, confidence, "o--", color=LINE_COLORS[1], label="perfect calibration: accuracy = confidence")
    upper.set(ylabel="accuracy (%)", ylim=(0, 100), xlim=(0, 100))
    set_title(figure, title)
    error = f"expected calibration error {100 * calibration['error']:.2f} %"
    figure.legend(loc="outside lower center", ncols=2, title=error)
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
    """Plot the recall of each class for several runs, with the classes sorted by their mean recall.

    Args:
        recalls: {run: (C,)}, in [0, 1].
    """
    values = 100 * np.array(list(recalls.values()))
    order = values.mean(axis=0).argsort()
    figure = Figure(figsize=(9, min(0.42 * len(classes), 60) + 1.6 + 0.1 * len(recalls)), layout="constrained")
    axis = figure.subplots()
    heights = np.arange(len(classes))
    axis.hlines(heights, values.min(axis=0)[order], values.max(axis=0)[order], color=GRAY, linewidth=1, zorder=1)
    for row, (color, marker) in zip(values, line_styles(), strict=False):
        axis.scatter(row[order], heights, color=color, marker=marker, s=55, zorder=2)
    axis.set_yticks(heights, [shorten(classes[index], 24) for index in order])
    axis.set(xlabel=f"test images of the class classified correctly (%), {dataset}", ylim=(-0.6, len(classes) - 0.4))
    axis.grid(alpha=0.3)
    add_legend(figure, list(recalls))
    save_figure(figure, path)
