"""TODO."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from vit_cifar10.plots.style import COLORS, GREY, NAMES, add_legend, line_styles, save_figure, set_title


def save_curves(rows, path, title=""):
    """Loss, accuracy and learning rate over the epochs of a run.

    Args:
        rows: dicts with `epoch`, `learning_rate`, and `<split>_loss` and `<split>_accuracy` for the splits that were
            measured, None where they were not; accuracies in [0, 1].
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for axis, quantity, scale, unit, last in (
        (axes[0], "loss", 1, "nats", "{:.3f}"),
        (axes[1], "accuracy", 100, "%", "{:.2f} %"),
    ):
        for split, color in COLORS.items():
            values = [row.get(f"{split}_{quantity}") for row in rows]
            if None not in values:
                scaled = [value * scale for value in values]
                label = f"{NAMES[split]} {last.format(scaled[-1])}"
                axis.plot(epochs, scaled, color=color, marker=_marker(rows), label=label)
        axis.set_ylabel(f"{quantity} ({unit})")
        axis.legend(title="last epoch")
    axes[2].plot(epochs, [row["learning_rate"] for row in rows], color=GREY, marker=_marker(rows))
    axes[2].set_ylabel("learning rate")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
    set_title(figure, title)
    save_figure(figure, path)


def _marker(rows):
    return "o" if len(rows) < 30 else None


def save_comparison(curves, path):
    """Loss and accuracy of several runs over their epochs, in one frame each: test solid, training dashed.

    Args:
        curves: names, and for each the histories of one or more seeds, as `rows` of `save_curves`; of several, the mean
            is drawn, and from the lowest to the highest as a band. Epochs are on a logarithmic scale where one run
            has ten times as many as another.
    """
    lengths = [len(rows) for _, histories in curves for rows in histories]
    scale_of_epochs = "log" if max(lengths) >= 10 * min(lengths) else "linear"
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    for axis, (quantity, scale, unit) in zip(
        figure.subplots(1, 2), (("loss", 1, "nats"), ("accuracy", 100, "%")), strict=True
    ):
        for (_, histories), style in zip(curves, line_styles(), strict=False):
            for split in ("test", "train"):
                _draw_seeds(axis, histories, f"{split}_{quantity}", scale, split == "test", *style)
        axis.set(ylabel=f"{quantity} ({unit})", xscale=scale_of_epochs)
        if scale_of_epochs == "linear":
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        else:
            axis.set_xlabel("epoch (logarithmic)")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    title = "test solid, training dashed; accuracy of the weights that were kept"
    if any(len(histories) > 1 for _, histories in curves):
        title += "\nseveral seeds: mean, and from the lowest to the highest"
    add_legend(figure, [name for name, _ in curves], title)
    save_figure(figure, path)


def _draw_seeds(axis, histories, key, scale, is_main, color, marker):
    """One curve over the epochs that all seeds have, if it was measured in all of them."""
    epochs = sorted(set.intersection(*({row["epoch"] for row in rows} for rows in histories)))
    values = [[row.get(key) for row in rows if row["epoch"] in epochs] for rows in histories]
    if any(None in seed for seed in values):
        return
    values = scale * np.array(values)
    line = {"color": color, "linestyle": "-" if is_main else "--", "alpha": 1 if is_main else 0.6}
    line |= {"marker": marker if is_main or len(epochs) == 1 else None}
    line |= {"markevery": None if len(epochs) < 30 else 0.1}  # of the frame's diagonal
    axis.plot(epochs, values.mean(axis=0), **line)
    if len(histories) > 1:
        axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)


def save_sample_sizes(sizes, path):
    """Test accuracy against the number of training images, a dot a run.

    Args:
        sizes: {network: {images: [(share, low, high), ...]}}, the last two the ends of its interval.
    """
    figure = Figure(figsize=(7, 4.6 + 0.2 * len(sizes)), layout="constrained")
    axis = figure.subplots()
    for by_size, (color, marker) in zip(sizes.values(), line_styles(), strict=False):
        counts = sorted(by_size)
        means = [100 * np.mean([share for share, _, _ in by_size[count]]) for count in counts]
        axis.plot(counts, means, color=color)
        for count in counts:
            shares, low, high = 100 * np.array(by_size[count]).T
            axis.vlines([count] * len(low), low, high, color=color, linewidth=3, alpha=0.5)
            axis.scatter([count] * len(shares), shares, color=color, marker=marker, s=45)
    axis.set(xscale="log", xlabel="training images (logarithmic)", ylabel="test accuracy (%), with 95 % intervals")
    counts = sorted({count for by_size in sizes.values() for count in by_size})
    ticks = counts[:1]
    for count in counts[1:]:
        if count / ticks[-1] >= (counts[-1] / counts[0]) ** 0.1:  # else their numbers would touch
            ticks.append(count)
    axis.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    add_legend(figure, list(sizes))
    save_figure(figure, path)
