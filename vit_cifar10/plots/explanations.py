"""Pictures of relevance maps: frames for GIFs, stills, images that two networks disagree on, and faithfulness.

overlay.py describes the colors and their scales.
"""

import dataclasses
import functools
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

HEADS_LEGEND = "heads: where each head of this layer looks"
LENS_LEGEND = "bars: what the network would answer if it ended after this layer (logit lens)"
LINE_HEIGHT = 20  # of a legend, in pixels
BASELINE_LABELS = {"random": "random (baseline)", "edges": "edges (baseline)", "center": "center (baseline)"}
FILL_TITLES = {"mean": "set to the mean color", "blur": "blurred", "ROAD": "interpolated (ROAD)"}  # see removal.py
NOT_DRAWN = ("Grad-CAM, no ReLU",)  # nearly the same curves as Grad-CAM

MOST_CLASSES = 5  # whose probabilities are shown
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
        tokens: of maps of attention, the number of tokens over which it is spread; 0 for other maps.
    """

    name: str
    maps: np.ndarray
    titles: list
    is_by_layer: bool = False
    is_signed: bool = False
    tokens: int = 0

    @property
    def maximum(self):
        """The end of the scale of all maps: the largest value, or uniform attention if that is larger."""
        return max(np.abs(self.maps).max(), 1 / self.tokens if self.tokens else 0)

    @property
    def percentages(self):
        """The maps in percent of `maximum`."""
        return percent_of_maximum(self.maps, self.is_signed, self.maximum)

    def title(self, index, width):
        """A title for one map, such as "attention in layer 3" or "Grad-CAM for frog", in lines of `width` pixels."""
        entry = find_method(self.name)
        by_layer = (entry and entry.by_layer) if self.is_by_layer else ""
        word = f" {by_layer or 'for'}" if by_layer or not self.is_signed else ": for and against"
        title = f"{self.name}{word} {shorten(self.titles[index], 24)}"
        return textwrap.fill(title, max(12, int((width + 10) / 6.4)), max_lines=2, placeholder=" …")

    def scale_label(self, scope):
        """The label of the color bar. `scope` completes it, as in "over all layers"."""
        label = f"{'against ← ' * self.is_signed}% of maximum{' → for' * self.is_signed}"
        return f"{'attention to a patch (%)' if self.tokens else label}\n{scope}"

    def only_first(self):
        """The row without its other maps."""
        return dataclasses.replace(self, maps=self.maps[:1], titles=self.titles[:1])


def attention_frames(image, rows, heads, probabilities, classes, caption, has_own_scales=False):
    """Draw how a ViT processes one image, one frame per layer.

    Args:
        image: uint8 (H, W, 3), as the network sees it.
        rows: a list of `MapRow`. Of a row with maps of classes, all frames show the first one.
        heads: a `MapRow` for each head, with its attention in each layer; the first `MOST_HEADS` are drawn.
        probabilities: (depth, C), in [0, 1], what the network would answer after each layer.
        classes: the names of the C classes.
        caption: the line above the panels.
        has_own_scales: whether each map of a head has its own scale. Otherwise, all of them share one.

    Returns:
        uint8 (depth, height, 960, 3).
    """
    depth, heads = len(probabilities), heads[:MOST_HEADS]
    rows = [row if row.is_by_layer else row.only_first() for row in rows]
    answer = classes[int(np.argmax(probabilities[-1]))]
    is_beside = len(heads) <= 4  # the legend is beside the heads, otherwise below them
    small = min(140, (560 if is_beside else 936) // len(heads) - 8)
    legend_left = 36 + (small + 8) * len(heads) if is_beside else 12
    legend = legend_lines(rows, answer, Canvas.WIDTH - legend_left, HEADS_LEGEND, LENS_LEGEND)
    bottom = panels_bottom(rows)
    below = bottom + 46  # the upper edge of the heads
    legend_top = below if is_beside else below + small + 84
    canvas = Canvas(height=max(below + small + 84, legend_top + LINE_HEIGHT * len(legend) + 8))
    canvas.add_caption(printable(caption))
    panels, bars = add_panels(canvas, image, rows, "over all layers", likely_classes(probabilities), classes)
    heads_title = canvas.add_text(12, bottom + 8, "", changes=True, va="center", fontsize=9, fontweight="bold")
    show_heads = add_heads(canvas, image, heads, (12, below, small), has_own_scales)
    canvas.write(legend_left, legend_top, legend)
    frames = []
    for layer, after in enumerate(probabilities, 1):
        for row, percentages, panel in panels:
            panel.fill(percentages[layer - 1], row.title(layer - 1, panel.side))
        for show in show_heads:
            show(layer - 1)
        heads_title.set_text(f"attention of the heads in layer {layer}")
        bars.fill(after, np.argmax(after), f"after layer {layer} of {depth}" if layer < depth else "answer")
        frames.append(canvas.draw())
    return np.stack(frames)


def likely_classes(probabilities):
    """The classes to show, most probable ones at last first: the answer, classes that lead in any layer, and others."""
    last = probabilities[-1]
    leads = np.bincount(probabilities.argmax(axis=1), minlength=len(last))
    leads[last.argmax()] = len(probabilities) + 1
    chosen = np.lexsort((-last, -leads))[:MOST_CLASSES]
    return chosen[np.argsort(-last[chosen], kind="stable")]


def add_heads(canvas, image, heads, position, has_own_scales):
    """Add the maps of heads in a line, with color bars below. Return one function per head that shows a layer."""
    left, top, side = position
    maximum, show = max(head.maximum for head in heads), []
    for place, head in enumerate(heads):
        title = f"head {place + 1}" if side > 40 else str(place + 1)
        at = left + (side + 8) * place
        panel = canvas.add_panel(image, (at, top, side), title=title)
        scale = canvas.add_own_scale((at, top + side + 8, side, 9), head.tokens) if has_own_scales else None
        show.append(functools.partial(show_head, head, panel, maximum, scale))
    width = min(420, (side + 8) * len(heads) - 8)
    if not has_own_scales:
        label = heads[0].scale_label("over all heads and layers")
        canvas.add_scale((left, top + side + 19, max(width, 104), 9), label, maximum=maximum, tokens=heads[0].tokens)
    return show


def show_head(head, panel, maximum, own_scale, layer):
    """Show the attention of a head in a layer, on the scale up to `maximum` or, if there is one, on its own scale."""
    if own_scale:
        maximum = dataclasses.replace(head, maps=head.maps[layer]).maximum
        own_scale.fill(maximum)
    panel.fill(percent_of_maximum(head.maps[layer], maximum=maximum))


def class_frames(image, rows, chosen, probabilities, classes, caption):
    """Draw the maps of several classes, one frame per class, from the last one to the first.

    Args:
        image: uint8 (H, W, 3), as the network sees it.
        rows: a list of `MapRow`, with one map for each of the classes `chosen`.
        chosen: (K,), indices of classes.
        probabilities: (C,), in [0, 1].
        classes, caption: as in `attention_frames`.

    Returns:
        uint8 (K, height, 960, 3).
    """
    legend, legend_top = legend_lines(rows, "the class", Canvas.WIDTH - 24), panels_bottom(rows) + 8
    canvas = Canvas(legend_top + LINE_HEIGHT * len(legend) + 8)
    canvas.add_caption(printable(caption))
    shown = likely_classes(np.asarray(probabilities)[None])
    panels, bars = add_panels(canvas, image, rows, "over all frames", shown, classes)
    canvas.write(12, legend_top, legend)
    frames = []
    for place in reversed(range(len(chosen))):
        for row, percentages, panel in panels:
            panel.fill(percentages[place], row.title(place, panel.side))
        bars.fill(probabilities, chosen[place])
        frames.append(canvas.draw())
    return np.stack(frames)


def legend_lines(rows, predicted, width, *more):
    """What the maps show, as lines of text that fit into `width` pixels, in the order of the panels."""
    entries = filter(None, (find_method(row.name) for row in in_order(rows)))
    texts = [f"{entry.name}: {entry.legend.format(predicted=shorten(predicted, 24))}" for entry in entries]
    fitting = int(width / 6.4)  # a letter is less than 6.4 pixels wide on average
    return [line for text in (*texts, *more) for line in textwrap.wrap(text, fitting)]


def in_order(rows):
    """Rows without sign first."""
    return sorted(rows, key=lambda row: row.is_signed)


PANELS_TOP, PANELS_PER_LINE = 62, 4  # with the image, which is the first one
SCALE_HEIGHT, TITLE_HEIGHT = 78, 34  # of a panel: its color bar below, and its title above, in pixels


def panel_side(rows):
    """The side of the panels of the rows, so that the image, up to three panels and the probabilities fill a line."""
    return min(280, 744 // min(len(rows) + 1, PANELS_PER_LINE) - 12)


def panels_bottom(rows):
    """Where the last line of panels ends, with its color bars."""
    lines = -(-(len(rows) + 1) // PANELS_PER_LINE)
    return PANELS_TOP + lines * (panel_side(rows) + SCALE_HEIGHT + TITLE_HEIGHT) - TITLE_HEIGHT


def add_panels(canvas, image, rows, scope, shown, classes):
    """Add the image, one panel with the first map of each row and a color bar below it, and the probabilities.

    Args:
        scope: of which maps a scale is shared, as in "over all layers".
        shown: (K,), the classes whose probabilities are shown.

    Returns:
        A list of (row, percentages, panel) for the rows with several maps, and the `Probabilities`.
    """
    side, left, changing = panel_side(rows), 12, []
    step = side + 12
    canvas.add_input(image, (left, PANELS_TOP, side))
    for place, row in enumerate(in_order(rows), 1):
        line, column = divmod(place, PANELS_PER_LINE)
        position = (left + step * column, PANELS_TOP + line * (side + SCALE_HEIGHT + TITLE_HEIGHT), side)
        percentages, is_fixed = row.percentages, len(row.maps) == 1
        panel = canvas.add_panel(image, position, row.is_signed, row.title(0, side) if is_fixed else None)
        panel.fill(percentages[0])
        if not is_fixed:
            changing.append((row, percentages, panel))
        label = row.scale_label("in this map" if is_fixed else scope)
        bar = (position[0] + 12, position[1] + side + 18, side - 24, 9)  # the numbers at its ends need room
        canvas.add_scale(bar, label, row.is_signed, row.maximum, row.tokens)
    start = left + step * min(len(rows) + 1, PANELS_PER_LINE) + 16
    bars = canvas.add_probabilities((start, PANELS_TOP, canvas.width - 16 - start, side + 4), shown, classes)
    return changing, bars


def save_relevance_grid(path, image, rows, caption):
    """Draw a still: the image, large, and its maps with one row per method and one column per layer or class.

    If a row has more than `MOST_COLUMNS` maps, evenly spaced ones are shown. A single row takes two lines. All rows of
    attention share one scale.

    Args:
        image: uint8 (H, W, 3).
        rows: a list of `MapRow`.
    """
    lines = [(row, np.linspace(0, len(row.maps) - 1, min(MOST_COLUMNS, len(row.maps))).round()) for row in rows]
    if len(lines) == 1 and len(lines[0][1]) > 2:
        lines = [(rows[0], part) for part in np.array_split(lines[0][1], 2)]
    side, gap, title_height = 144, 9, 22
    height = title_height + side + gap
    large = side if len(lines) == 1 else 2 * height - title_height - gap
    scales = list({(row.is_signed, row.tokens): row for row in rows}.values())
    attention = max((row.maximum for row in rows if row.tokens), default=0)
    scale_width = 230
    grid_left = 18 + large + 40  # the names of the rows stand in between
    width = grid_left + max((side + gap) * max(len(indices) for _, indices in lines), (scale_width + 40) * len(scales))
    caption = textwrap.fill(printable(caption), width // 11)
    grid_top = 14 + 18 * len(caption.splitlines())
    scales_top = grid_top + height * len(lines) + 26
    canvas = Canvas(scales_top + 70, width, dpi=120)
    canvas.add_caption(caption, fontsize=10)
    canvas.add_image(image, (18, grid_top + title_height, large), "input")
    for place, (row, indices) in enumerate(lines):
        top = grid_top + height * place + title_height
        canvas.add_text(grid_left - 5, top + side / 2, row.name, ha="right", va="center", fontsize=9, rotation=90)
        percentages = percent_of_maximum(row.maps, row.is_signed, attention if row.tokens else row.maximum)
        for column, index in enumerate(indices.astype(int)):
            title = shorten(row.titles[index], 14)
            position = (grid_left + (side + gap) * column, top, side)
            canvas.add_panel(image, position, row.is_signed, title).fill(percentages[index])
    for place, row in enumerate(scales):
        position = (grid_left + 12 + (scale_width + 40) * place, scales_top, scale_width, 14)
        label = row.scale_label("in all layers" if row.tokens else "in the row")
        canvas.add_scale(position, label, row.is_signed, attention, row.tokens)
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
        curves: {(method, fill, kind): (3, K)}, the mean probability of the predicted class with the ends of its
            interval, which is drawn as a band. Baselines, for which there are no `by_method` rows, are drawn dashed.
            The best method of each fill and kind is labeled.
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
        shown = {name: 100 * np.asarray(curves[name, fill, kind]) for name in styles}
        draw_curves(axis, 100 * np.asarray(fractions), shown, styles, methods, 1 if kind == "deletion" else -1)
        verb, better = {"deletion": ("removed", "lower"), "insertion": ("restored", "higher")}[kind]
        axis.set_title(f"{kind}: {better} is better\nremoved patches are {FILL_TITLES[fill]}", fontsize=10)
        axis.set(
            xlabel=f"most relevant patches {verb} (%)", ylabel="probability of the predicted class (%)", ylim=(0, 100)
        )
        axis.grid(alpha=0.3)
    draw_randomization(figure.add_subplot(grid[0, -1]), correlations, stages, styles)
    draw_class_sensitivity(figure.add_subplot(grid[1, -1]), by_method, styles)
    handles = [Line2D([], [], label=BASELINE_LABELS.get(name, name), **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    set_title(figure, title)
    save_figure(figure, path)


def draw_curves(axis, percentages, curves, styles, methods, sign):
    """Draw the curves of one fill and kind. Label the method with the smallest or, if `sign` is -1, the largest area.

    Args:
        curves: {name: (mean, low, high)}, in percent.
        methods: the names of the curves that are not baselines.
    """
    best = min(methods, key=lambda name: sign * np.trapezoid(curves[name][0], percentages))
    for name, (mean, low, high) in curves.items():
        axis.plot(percentages, mean, **styles[name] | ({"linewidth": 3} if name == best else {}))
        if name in methods:
            axis.fill_between(percentages, low, high, color=styles[name]["color"], alpha=0.15, linewidth=0)
    at = len(percentages) // 2
    area = np.trapezoid(curves[best][0], percentages) / 100
    place = {"xytext": (0, -8 * sign), "textcoords": "offset points", "va": "top" if sign > 0 else "bottom"}
    style = {"color": styles[best]["color"], "fontweight": "bold", "fontsize": 9, "ha": "center"}
    axis.annotate(f"{best}: {area:.1f} %", (percentages[at], curves[best][0][at]), **place, **style)


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
