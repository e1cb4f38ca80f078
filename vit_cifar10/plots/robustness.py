"""The picture of networks on corrupted images."""

import numpy as np
from matplotlib.figure import Figure

from vit_cifar10.plots.style import add_legend, line_styles, save_figure, set_title
from vit_cifar10.utils.text import shorten

COLUMNS = 5


def save_robustness(panels, accuracies, images, path):
    """Draw the accuracy that networks retain, one panel per kind of corruption, below an example of its levels.

    Args:
        panels: (kind, unit of the levels, levels, curves, examples) for each kind. `curves` is {run: (values, lows,
            highs)}, each a list of one fraction per level, or of None. `examples` are uint8 images (H, W, 3): the clean
            one, and one per level.
        accuracies: {run: accuracy on the clean images}, in [0, 1].
        images: the number of test images.
    """
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 3.3 * rows + 1), layout="constrained")
    parts = figure.subfigures(rows, COLUMNS, squeeze=False).ravel()
    for part, (kind, unit, levels, curves, examples) in zip(parts, panels, strict=False):
        strip, axis = part.subplots(2, 1, sharex=True, height_ratios=(1, 3))
        places = range(len(levels) + 1)
        framed = [np.pad(image, ((0, 0), (1, 1), (0, 0)), constant_values=255) for image in examples]
        extent = (-0.5, len(levels) + 0.5, 0, 1)
        strip.imshow(np.concatenate(framed, axis=1), extent=extent, aspect="auto", interpolation="nearest")
        strip.set_axis_off()
        strip.set_title(kind, fontsize=10)
        for curve, (color, marker) in zip(curves.values(), line_styles(), strict=False):
            values, lows, highs = (100 * np.array([1.0, *line], dtype=float) for line in curve)
            axis.fill_between(places, lows, highs, color=color, alpha=0.18, linewidth=0)
            axis.plot(places, values, color=color, marker=marker, markersize=4)
        axis.set_xticks(places, ["none", *levels], fontsize=8)
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(axis="y", labelsize=8)
        axis.set(ylim=(0, 105), xlim=(-0.5, len(levels) + 0.5))
        axis.grid(alpha=0.3)
    figure.supylabel("accuracy retained (% of the accuracy on clean images)", fontsize=10)
    names = [f"{shorten(name)}: {100 * value:.1f} % on clean images" for name, value in accuracies.items()]
    note = "bands: 95 % intervals; kinds with severities are in the style of CIFAR-10-C; PGD attacks each network"
    add_legend(figure, names, title=note)
    set_title(figure, f"{images:,} test images, corrupted in the same way for all networks")
    save_figure(figure, path)
