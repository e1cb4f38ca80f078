"""Line plots: the training curves of one run, several runs compared, and accuracy against the number of images."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from vit_cifar10.plots.style import GRAY, LINE_COLORS, add_legend, line_styles, save_figure, set_title

SPLITS = {  # name in the legend and color of each split
    "train": ("training", LINE_COLORS[0]),
    "val": ("validation", LINE_COLORS[1]),
    "test": ("test", LINE_COLORS[2]),
}


ABOVE_TRAINING = (
    "Training is measured on augmented images while the weights still change, and test after the epoch on images as"
    " they are.\nTherefore, test can lie above training."
)


def save_curves(history, path, title="", small_epochs=0):
    """Plot the loss, accuracy and learning rate of one run against its epochs.

    Args:
        history: one dict per epoch, with `epoch`, `learning_rate`, and `<split>_loss` and `<split>_accuracy` for the
            splits of `SPLITS`. Accuracies are in [0, 1]. Epochs in which a value is missing or None are left out.
        small_epochs: the number of first epochs on images of half the side; a line marks where the images grow.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, quantity, scale, unit, last_format in (
        (axes[0], "loss", 1, "nats", "{:.3f}"),
        (axes[1], "accuracy", 100, "%", "{:.2f} %"),
    ):
        for split, (name, color) in SPLITS.items():
            points = measured(history, f"{split}_{quantity}")
            if points:
                scaled = [value * scale for value in points.values()]
                label = f"{name} {last_format.format(scaled[-1])}"
                axis.plot(list(points), scaled, color=color, marker=marker_for(points), label=label)
        axis.set_ylabel(f"{quantity} ({unit})")
        axis.legend(title="last value")
    rates = measured(history, "learning_rate")
    axes[2].plot(list(rates), list(rates.values()), color=GRAY, marker=marker_for(rates))
    axes[2].set_ylabel("learning rate")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        if 0 < small_epochs < history[-1]["epoch"]:
            axis.axvline(small_epochs + 0.5, color=GRAY, linestyle=":")
            style = {"ha": "center", "va": "bottom", "fontsize": 8, "color": GRAY}
            axis.text(small_epochs + 0.5, 1.01, "images grow", transform=axis.get_xaxis_transform(), **style)
    if is_above_training(history):
        figure.supxlabel(ABOVE_TRAINING, fontsize=9, color=GRAY)
    set_title(figure, title)
    save_figure(figure, path)


def is_above_training(history):
    """Whether the test accuracy of any epoch is above the training accuracy."""
    train, test = (measured(history, f"{split}_accuracy") for split in ("train", "test"))
    return any(test[epoch] > train[epoch] for epoch in test if epoch in train)


def marker_for(points):
    """The marker of a curve, if it has few points."""
    return "o" if len(points) < 30 else None


def measured(history, key):
    """The epochs in which a metric was measured, {epoch: value}."""
    return {metrics["epoch"]: metrics[key] for metrics in history if metrics.get(key) is not None}


def save_comparison(curves, path):
    """Plot the loss and accuracy of several runs against their epochs: test solid, training dashed.

    The epoch axis is logarithmic if one run has at least ten times as many epochs as another.

    Args:
        curves: (name, histories) pairs; the histories belong to one or more seeds and have the form that `save_curves`
            takes. Several seeds are drawn as their mean, with a band from the lowest value to the highest.
    """
    lengths = [len(history) for _, histories in curves for history in histories]
    epoch_scale = "log" if max(lengths) >= 10 * min(lengths) else "linear"
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    for axis, (quantity, scale, unit) in zip(
        figure.subplots(1, 2), (("loss", 1, "nats"), ("accuracy", 100, "%")), strict=True
    ):
        for (_, histories), style in zip(curves, line_styles(), strict=False):
            for split in ("test", "train"):
                _draw_seeds(axis, histories, f"{split}_{quantity}", scale, split == "test", *style)
        axis.set(ylabel=f"{quantity} ({unit})", xscale=epoch_scale)
        if epoch_scale == "linear":
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        else:
            axis.set_xlabel("epoch (logarithmic)")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    title = "solid: test; dashed: training; percentages: test accuracy of the kept weights"
    if any(len(histories) > 1 for _, histories in curves):
        title += "\nseveral seeds: mean, with a band from the lowest to the highest"
    add_legend(figure, [name for name, _ in curves], title)
    save_figure(figure, path)


def _draw_seeds(axis, histories, key, scale, is_main, color, marker):
    """Draw one curve over the epochs in which all seeds have the metric `key`."""
    seeds = [measured(history, key) for history in histories]
    epochs = sorted(set.intersection(*map(set, seeds)))
    if not epochs:
        return
    values = scale * np.array([[seed[epoch] for epoch in epochs] for seed in seeds])
    line = {"color": color, "linestyle": "-" if is_main else "--", "alpha": 1 if is_main else 0.6}
    line |= {"marker": marker if is_main or len(epochs) == 1 else None}
    line |= {"markevery": None if len(epochs) < 30 else 0.1}  # a fraction of the diagonal of the axes
    axis.plot(epochs, values.mean(axis=0), **line)
    if len(histories) > 1:
        axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)


def save_sample_sizes(sizes, path):
    """Plot test accuracy against the number of training images: one dot per run, with its 95 % interval.

    Args:
        sizes: {network: {number of images: [(accuracy, low, high), ...]}}, with `low` and `high` the ends of the
            interval, all in [0, 1].
    """
    figure = Figure(figsize=(7, 4.6 + 0.2 * len(sizes)), layout="constrained")
    axis = figure.subplots()
    for place, (by_size, (color, marker)) in enumerate(zip(sizes.values(), line_styles(), strict=False)):
        counts = sorted(by_size)
        beside = 1.04 ** (place - (len(sizes) - 1) / 2)  # so that intervals of several networks do not hide each other
        means = [100 * np.mean([accuracy for accuracy, _, _ in by_size[count]]) for count in counts]
        axis.plot(beside * np.array(counts), means, color=color, linewidth=1)
        for count in counts:
            accuracies, low, high = 100 * np.array(by_size[count]).T
            style = {"fmt": marker, "color": color, "markersize": 3.5, "capsize": 5, "elinewidth": 1.5}
            axis.errorbar([beside * count] * len(low), accuracies, yerr=(accuracies - low, high - accuracies), **style)
    axis.set(xscale="log", xlabel="training images (logarithmic)", ylabel="test accuracy (%), with 95 % intervals")
    counts = sorted({count for by_size in sizes.values() for count in by_size})
    ticks = counts[:1]
    for count in counts[1:]:
        if count / ticks[-1] >= (counts[-1] / counts[0]) ** 0.1:  # closer labels would overlap
            ticks.append(count)
    axis.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    add_legend(figure, list(sizes))
    save_figure(figure, path)
