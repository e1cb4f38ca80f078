"""Pictures of relevance maps: frames for GIFs, stills, images that two networks disagree on, and faithfulness.

GIFs and stills show each map in percent of the largest value that its method has in any of the maps shown. All frames
share this scale, so a patch that is brighter in a later frame has become more relevant. Colors follow the square root
of the value; otherwise a few very bright patches would hide the others. Signed maps have linear colors: red speaks for
the class, blue against it.
"""

import dataclasses
import itertools
import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vit_cifar10.plots.canvas import Canvas
from vit_cifar10.plots.overlay import gray_image, map_colors, map_note, percent_of_maximum
from vit_cifar10.plots.style import GRAY, LINE_COLORS, save_figure, save_pixels, set_title
from vit_cifar10.utils.methods import find_method
from vit_cifar10.utils.text import printable, shorten

HEADS_LEGEND = "heads: the attention of each head, in % of the maximum over all heads and layers"
LINE_HEIGHT = 20  # of a legend, in pixels
BASELINE_LABELS = {"random": "random (baseline)", "edges": "edges (baseline)", "center": "center (baseline)"}
FILL_TITLES = {"mean": "set to the mean color", "blur": "blurred", "ROAD": "interpolated (ROAD)"}  # see removal.py
NOT_DRAWN = ("Grad-CAM, no ReLU",)  # nearly the same curves as Grad-CAM

MOST_HEADS = 40  # more would be too small to see
MOST_COLUMNS = 8  # of a still


@dataclasses.dataclass
class MapRow:
    """The maps of one method for one image.

    Attributes:
        name: the name of the row, usually that of its method.
        maps: (K, h, w), one map for each layer of the network or for each of several classes.
        titles: the names of the K layers or classes.
        is_by_layer: whether there is one map per layer.
        is_signed: whether negative values speak against the class.
    """

    name: str
    maps: np.ndarray
    titles: list
    is_by_layer: bool = False
    is_signed: bool = False

    @property
    def percentages(self):
        """The maps in percent of the largest value in any of them."""
        return percent_of_maximum(self.maps, self.is_signed)

    def title(self, index, width):
        """A title for one map, such as "attention in layer 3" or "Grad-CAM for frog", in lines of `width` pixels."""
        entry = find_method(self.name)
        by_layer = (entry and entry.by_layer) if self.is_by_layer else ""
        word = f" {by_layer or 'for'}" if by_layer or not self.is_signed else ": for and against"
        title = f"{self.name}{word} {self.titles[index]}"
        return textwrap.fill(title, max(12, int(width / 5.8)))

    def only_first(self):
        """The row without its other maps."""
        return dataclasses.replace(self, maps=self.maps[:1], titles=self.titles[:1])


def attention_frames(image, rows, heads, probabilities, classes, caption):
    """Draw how a ViT processes one image, one frame per layer.

    Args:
        image: uint8 (H, W, 3), as the network sees it.
        rows: a list of `MapRow`. Of a row with maps of classes, all frames show the first one.
        heads: (depth, heads, grid, grid), the attention of every head; the first `MOST_HEADS` are drawn.
        probabilities: (C,), in [0, 1].
        classes: the names of the C classes.
        caption: the line above the panels.

    Returns:
        uint8 (depth, height, 960, 3).
    """
    heads = heads[:, :MOST_HEADS]
    depth, num_heads = heads.shape[:2]
    rows = [row if row.is_by_layer else row.only_first() for row in rows]
    side, small = min(232, 744 // (len(rows) + 1) - 12), min(104, 936 // num_heads - 8)
    legend_left = 24 + (small + 8) * num_heads
    legend = []
    if legend_left < 500:  # otherwise there is no room
        legend = legend_lines(rows, classes[int(np.argmax(probabilities))], Canvas.WIDTH - legend_left, HEADS_LEGEND)
    tall = max(side, 150)
    canvas = Canvas(height=tall + 160 + max(small, LINE_HEIGHT * len(legend)))
    canvas.add_input(image, (12, 58, side))
    signed_scope = "over all layers" if any(row.is_by_layer for row in rows if row.is_signed) else "in this map"
    panels = add_panels(canvas, image, rows, (24 + side, 58, side), "over all layers", signed_scope)
    canvas.add_probabilities((788, 52, 156, tall + 14), probabilities, classes)
    head_maps, below = percent_of_maximum(heads), tall + 146
    thumbnails = []
    for head in range(num_heads):
        title = f"head {head + 1}" if small > 40 else str(head + 1)
        thumbnails.append(canvas.add_panel(image, (12 + (small + 8) * head, below, small), title=title))
    canvas.write(legend_left, below, legend)
    shown_caption = canvas.add_caption(changes=True)
    frames = []
    for layer in range(depth):
        for row, percentages, panel in panels:
            panel.fill(percentages[layer], row.title(layer, side))
        for panel, percentages in zip(thumbnails, head_maps[layer], strict=True):
            panel.fill(percentages)
        shown_caption.set_text(printable(f"{caption}   ·   layer {layer + 1} of {depth}"))
        frames.append(canvas.draw())
    return np.stack(frames)


def class_frames(image, rows, chosen, probabilities, classes, caption):
    """Draw the maps of several classes, one frame per class, from the last one to the first.

    Args:
        image: uint8 (H, W, 3), as the network sees it.
        rows: a list of `MapRow`, with one map for each of the classes `chosen`.
        chosen: (K,), indices of classes.
        probabilities, classes, caption: as in `attention_frames`.

    Returns:
        uint8 (K, height, 960, 3).
    """
    side = min(280, 580 // (len(rows) + 1) - 16)
    legend = legend_lines(rows, "the class", Canvas.WIDTH - 24)
    tall = max(side, 150)
    canvas = Canvas(height=tall + 136 + LINE_HEIGHT * len(legend))
    canvas.write(12, tall + 130, legend)
    canvas.add_input(image, (12, 58, side))
    panels = add_panels(canvas, image, rows, (32 + side, 58, side), "over all frames", "over all frames")
    shown_probabilities = canvas.add_probabilities((632, 52, 308, tall + 10), probabilities, classes, changes=True)
    canvas.add_caption(printable(caption))
    frames = []
    for place in reversed(range(len(chosen))):
        for row, percentages, panel in panels:
            panel.fill(percentages[place], row.title(place, side))
        shown_probabilities.mark(chosen[place])
        frames.append(canvas.draw())
    return np.stack(frames)


def legend_lines(rows, predicted, width, *more):
    """What the maps show, as lines of text that fit into `width` pixels, in the order of the panels."""
    entries = filter(None, (find_method(row.name) for row in in_order(rows)))
    texts = [f"{entry.name}: {entry.legend.format(predicted=predicted)}" for entry in entries]
    fitting = int(width / 6.4)  # a letter is less than 6.4 pixels wide on average
    return [line for text in (*texts, *more) for line in textwrap.wrap(text, fitting)]


def in_order(rows):
    """Rows without sign first, so that panels with the same colors are neighbors."""
    return sorted(rows, key=lambda row: row.is_signed)


def add_panels(canvas, image, rows, position, scope, signed_scope):
    """Add one panel with the first map of each row, and a color bar below each group of panels that share it.

    `scope` and `signed_scope` tell of which values the maximum is taken, as in "over all layers".

    Returns:
        A list of (row, percentages, panel) for the rows with several maps.
    """
    left, top, side = position
    changing = []
    for is_signed, group in itertools.groupby(in_order(rows), lambda row: row.is_signed):
        start = left
        for row in group:
            percentages, title = row.percentages, row.title(0, side) if len(row.maps) == 1 else None
            panel = canvas.add_panel(image, (left, top, side), is_signed, title)
            panel.fill(percentages[0])
            if len(row.maps) > 1:
                changing.append((row, percentages, panel))
            left += side + 12
        shown_scope = signed_scope if is_signed else scope
        canvas.add_scale((start, top + side + 12, left - 12 - start, 9), shown_scope, is_signed)
        left += 20  # room for the numbers at the ends of the color bars
    return changing


def save_relevance_grid(path, image, rows, caption):
    """Draw a still: the image, and its maps with one row per method and one column per layer or class.

    If a row has more than `MOST_COLUMNS` maps, evenly spaced ones are shown.

    Args:
        image: uint8 (H, W, 3).
        rows: a list of `MapRow`.
    """
    shown = [np.linspace(0, len(row.maps) - 1, min(MOST_COLUMNS, len(row.maps))).round().astype(int) for row in rows]
    side, gap, title_height, scale_height = 144, 9, 22, 78
    columns = 1 + max(map(len, shown))
    grid_width = (side + gap) * columns - gap
    width = max(624, grid_width + 36)
    left = 27 + (width - 36 - grid_width) // 2  # of the input, after the names of the rows
    caption = textwrap.fill(printable(caption), width // 11)
    grid_top = 14 + 18 * len(caption.splitlines())
    scales_top = grid_top + (title_height + side + gap) * len(rows) + gap
    signs = sorted({row.is_signed for row in rows})
    canvas = Canvas(scales_top + scale_height * len(signs), width, dpi=120)
    canvas.add_caption(caption, fontsize=10)
    for place, (row, indices) in enumerate(zip(rows, shown, strict=True)):
        top = grid_top + (title_height + side + gap) * place + title_height
        canvas.add_text(left - 5, top + side / 2, row.name, ha="right", va="center", fontsize=9, rotation=90)
        canvas.add_image(image, (left, top, side), "" if place else "input")
        percentages = row.percentages
        for column, index in enumerate(indices, 1):
            position = (left + (side + gap) * column, top, side)
            title = shorten(row.titles[index], 14)
            canvas.add_panel(image, position, row.is_signed, title).fill(percentages[index])
    scale_width = 3 * width // 5
    for place, is_signed in enumerate(signs):
        position = (left + (grid_width - scale_width) // 2, scales_top + scale_height * place, scale_width, 16)
        canvas.add_scale(position, "in the row", is_signed)
    save_pixels(canvas.draw(), path, canvas.dpi)


def save_disagreements(panels, rows, path):
    """Draw images that only one of two networks classifies correctly, with what speaks for each one's prediction.

    Args:
        panels: (title, images) pairs; each image is (uint8 (H, W, 3), label, [(map (h, w), caption), ...]), with one
            signed map per network.
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
                draw_signed_map(axis, image, percent_of_maximum(relevance, is_signed=True))
                axis.set_title(caption, fontsize=9, pad=4)
    note = "red speaks for the predicted class, blue against it; each map is scaled to its own maximum"
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path)


def draw_signed_map(axis, image, percentages):
    """Draw a map (h, w) from `percent_of_maximum` over the image, uint8 (H, W, 3)."""
    height, width = image.shape[:2]
    axis.imshow(gray_image(image), interpolation="nearest")
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(map_colors(percentages, is_signed=True), interpolation="nearest", extent=extent)
    note = map_note(percentages, is_signed=True)
    axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", va="center", fontsize=8, color="white")


def save_faithfulness(path, fractions, curves, correlations, by_method, stages, title):
    """Draw the deletion and insertion curves, how maps change when weights are randomized, and class sensitivity.

    Args:
        fractions: (K,), fractions of the patches that are removed or restored.
        curves: {(method, fill, kind): (K,)}, the mean probability of the predicted class. Baselines, for which there
            are no `by_method` rows, are drawn dashed.
        correlations: {method: (1 + stages,)}, rank correlation with the map of the trained network.
        by_method: the rows of `faithfulness.method_rows`.
        stages: the names of the network's parts, in the order in which they are randomized.
    """
    methods = [row["method"] for row in by_method if row["method"] not in NOT_DRAWN]
    colors = itertools.cycle(LINE_COLORS)
    styles = {name: {"color": next(colors), "linewidth": 1.8} for name in methods}
    dashes = zip(BASELINE_LABELS, ("--", ":", "-."), strict=True)
    styles |= {name: {"color": GRAY, "linestyle": dash, "linewidth": 1.2} for name, dash in dashes}
    fills = list(dict.fromkeys(fill for _, fill, _ in curves))
    figure = Figure(figsize=(16, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, len(fills) + 1, width_ratios=(*[1] * len(fills), 1.25))
    for (row, kind), (column, fill) in itertools.product(enumerate(("deletion", "insertion")), enumerate(fills)):
        axis = figure.add_subplot(grid[row, column])
        for name, style in styles.items():
            axis.plot(100 * np.asarray(fractions), 100 * curves[name, fill, kind], **style)
        verb, better = {"deletion": ("removed", "lower"), "insertion": ("restored", "higher")}[kind]
        axis.set_title(f"{kind}: {better} is better\nremoved patches are {FILL_TITLES[fill]}", fontsize=10)
        axis.set(
            xlabel=f"most relevant patches {verb} (%)", ylabel="probability of the predicted class (%)", ylim=(0, None)
        )
        axis.grid(alpha=0.3)
    draw_randomization(figure.add_subplot(grid[0, -1]), correlations, stages, styles)
    draw_class_sensitivity(figure.add_subplot(grid[1, -1]), by_method, styles)
    handles = [Line2D([], [], label=BASELINE_LABELS.get(name, name), **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    set_title(figure, title)
    save_figure(figure, path)


def draw_randomization(axis, correlations, stages, styles):
    for name, values in correlations.items():
        if name in styles:
            axis.plot(range(len(values)), values, marker="o", markersize=4, **styles[name])
    axis.set_xticks(range(len(stages) + 1), ["trained", *stages], rotation=60, ha="right", fontsize=8)
    axis.axhline(0, color=GRAY, linewidth=0.8)
    axis.set(xlabel="weights randomized from the head back to this part", ylim=(-0.3, 1.05))
    axis.set_ylabel("rank correlation with\nthe trained network's map")
    axis.set_title("randomized weights: the correlation\nshould fall to 0", fontsize=10)
    axis.grid(alpha=0.3)


def draw_class_sensitivity(axis, by_method, styles):
    rows = [row for row in by_method if row["method"] in styles and row["class_sensitivity"] is not None]
    for place, row in enumerate(rows):
        value, low, high = (100 * row[f"class_sensitivity{end}"] for end in ("", "_low", "_high"))
        color = styles[row["method"]]["color"]
        axis.errorbar(value, -place, xerr=[[value - low], [high - value]], marker="o", color=color, capsize=3)
    axis.set_yticks([-place for place in range(len(rows))], [row["method"] for row in rows])
    axis.axvline(0, color=GRAY, linewidth=0.8)
    axis.set(ylim=(0.6 - len(rows), 0.6), xlabel="gain in the runner-up's probability (percentage points)")
    axis.set_title(
        "class sensitivity: the runner-up's map should raise\nit more than the predicted class's map", fontsize=10
    )
    axis.grid(alpha=0.3)
