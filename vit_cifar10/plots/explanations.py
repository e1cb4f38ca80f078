"""Pictures of relevance maps: frames for GIFs, stills, images that two networks disagree on, and faithfulness.

GIFs and stills show each map in percent of the largest value that its method has in any frame. All frames share this
scale, so a patch that is brighter in a later frame has become more relevant. Colors follow the square root of the
value; otherwise a few very bright patches would hide the others.
"""

import numpy as np
from matplotlib.figure import Figure

from vit_cifar10.plots.canvas import Canvas, Panel, add_colorbar, percent_of_maximum
from vit_cifar10.plots.style import GRAY, LINE_COLORS, save_figure, set_title

LAYER_TITLES = {
    "attention": "attention in layer {layer}",
    "rollout": "rollout to layer {layer}",
    "gradient rollout": "gradient rollout to layer {layer}",
}
LAYER_LEGEND = (
    "attention: where this layer looks, averaged over its heads",
    "rollout: attention of all layers so far; the same for every class",
    "gradient rollout: the attention so far that raises the score of {predicted}",
)
BASELINE_LABELS = {"random": "random (baseline)", "edges": "edges (baseline)", "centre": "center (baseline)"}
FILL_TITLES = {"mean": "set to the mean color", "blur": "blurred"}  # as in explain/faithfulness.py

MOST_HEADS = 40  # more would be too small to see


def attention_frames(image, maps, heads, probabilities, classes, caption):
    """Draw how a ViT processes one image, one frame per layer.

    Args:
        image: uint8 (H, W, 3), as the network sees it.
        maps: "attention", "rollout" and "gradient rollout", (depth, grid, grid) each.
        heads: (depth, heads, grid, grid), the attention of every head; the first `MOST_HEADS` are drawn.
        probabilities: (C,), in [0, 1].
        classes: the names of the C classes.
        caption: the line above the panels.

    Returns:
        uint8 (depth, height, 960, 3).
    """
    heads = heads[:, :MOST_HEADS]
    depth, num_heads = heads.shape[:2]
    side = min(104, 936 // num_heads - 8)
    canvas = Canvas(height=326 + side)
    canvas.add_input(image, (12, 58, 176))
    panels = [
        (name, percent_of_maximum(values), canvas.add_panel(image, (200 + 188 * column, 58, 176)))
        for column, (name, values) in enumerate(maps.items())
    ]
    canvas.add_scale((200, 246, 188 * len(maps) - 12), "over all layers")
    canvas.show_probabilities((788, 52, 156, 190), probabilities, classes)
    head_maps = percent_of_maximum(heads)
    thumbnails = [canvas.add_panel(image, (12 + (side + 8) * head, 312, side)) for head in range(num_heads)]
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
    """Draw the Grad-CAM maps of several classes, one frame per class.

    Args:
        image: uint8 (H, W, 3), as the network sees it.
        maps: (K, h, w), one relevance map for each of the classes `chosen`.
        chosen: (K,), indices of classes.
        probabilities, classes, caption: as in `attention_frames`.

    Returns:
        uint8 (K, height, 960, 3).
    """
    canvas = Canvas(height=400)
    canvas.add_input(image, (12, 58, 280))
    panel = canvas.add_panel(image, (312, 58, 280))
    canvas.add_scale((312, 350, 280), "over all frames")
    frames = []
    for index, values in zip(chosen, percent_of_maximum(maps), strict=True):
        panel.fill(values, f"Grad-CAM: evidence for {classes[index]}")
        canvas.show_probabilities((632, 52, 308, 290), probabilities, classes, marked=index)
        canvas.set_caption(caption)
        frames.append(canvas.draw())
    return np.stack(frames)


def save_relevance_grid(path, image, rows, columns, caption):
    """Draw a still: the image, and a grid of its maps with one row per method and one column per layer or class.

    If there are more than eight columns, eight evenly spaced ones are shown.

    Args:
        image: uint8 (H, W, 3).
        rows: {method: (K, h, w)}.
        columns: the names of the K columns.
    """
    shown = np.unique(np.linspace(0, len(columns) - 1, min(8, len(columns))).round().astype(int))
    width, height = 1.3 * (len(shown) + 1), 1.35 * len(rows) + 1.1
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), len(shown) + 1, squeeze=False)
    for row, (name, values) in zip(axes, rows.items(), strict=True):
        row[0].imshow(image, interpolation="nearest")
        row[0].set_ylabel(name, fontsize=9)
        row[0].set(xticks=[], yticks=[])
        percentages = percent_of_maximum(values)
        for axis, index in zip(row[1:], shown, strict=True):
            Panel(axis, image).fill(percentages[index], "")
    axes[0, 0].set_title("input", fontsize=9)
    for axis, index in zip(axes[0, 1:], shown, strict=True):
        axis.set_title(columns[index], fontsize=9)
    bar = {"location": "bottom", "shrink": 0.6, "aspect": 50, "ticks": (0, 5, 25, 50, 100)}
    add_colorbar(figure, "over the row", ax=axes, **bar)
    figure.suptitle(caption, fontsize=10)
    save_figure(figure, path, dpi=120)


def save_disagreements(panels, rows, path):
    """Draw images that only one of two networks classifies correctly, with the evidence for each one's prediction.

    Args:
        panels: (title, images) pairs; each image is (uint8 (H, W, 3), label, [(map (h, w), caption), ...]), with one
            map per network.
        rows: the name of each network and its method, on one or two lines.
    """
    columns = max(4, *(len(images) for _, images in panels))  # fewer would leave too little room for the titles
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
                Panel(axis, image).fill(percent_of_maximum(relevance), caption)
    note = "brighter patches are stronger evidence for the predicted class; each map is scaled to its own maximum"
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path)


def save_faithfulness(path, fractions, curves, correlations, stages, title):
    """Draw the deletion and insertion curves, and how maps change when the weights are randomized.

    Baselines, for which there are no correlations, are drawn dashed.

    Args:
        fractions: (K,), fractions of the patches that are removed or restored.
        curves: {(method, fill, kind): (K,)}, the mean probability of the predicted class.
        correlations: {method: (1 + stages,)}, rank correlation with the map of the trained network.
        stages: the names of the network's parts, in the order in which they are randomized.
    """
    methods = list(dict.fromkeys(method for method, _, _ in curves))
    styles = {
        method: {"color": LINE_COLORS[index % len(LINE_COLORS)], "linestyle": "-" if method in correlations else "--"}
        for index, method in enumerate(methods)
    }
    panels = list(dict.fromkeys((fill, kind) for _, fill, kind in curves))
    figure = Figure(figsize=(13, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.1))
    for index, (fill, kind) in enumerate(panels):
        axis = figure.add_subplot(grid[index // 2, index % 2])
        for method in methods:
            label = BASELINE_LABELS.get(method, method)
            axis.plot(100 * np.asarray(fractions), 100 * curves[method, fill, kind], label=label, **styles[method])
        verb, better = {"deletion": ("removed", "lower"), "insertion": ("restored", "higher")}[kind]
        axis.set_title(f"{kind}: {better} is better\nremoved patches are {FILL_TITLES[fill]}", fontsize=10)
        axis.set(xlabel=f"most relevant patches {verb} (%)", ylabel="probability of the class (%)", ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.axes[1].legend(fontsize=8)  # insertion curves leave room at the lower right
    axis = figure.add_subplot(grid[:, 2])
    for method, values in correlations.items():
        axis.plot(range(len(values)), values, marker="o", label=method, **styles[method])
    axis.set_xticks(range(len(stages) + 1), ["trained", *stages], rotation=60, ha="right")
    axis.axhline(0, color=GRAY, linewidth=0.8)
    axis.set(xlabel="weights randomized from the output back to", ylim=(-0.3, 1.05))
    axis.set_ylabel("rank correlation with the trained network's map")
    axis.set_title("randomized weights: the correlation\nshould fall to 0", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    set_title(figure, title)
    save_figure(figure, path)
