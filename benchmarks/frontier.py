"""The accuracy that the recipes reach on a CPU against their cost, next to published results: cpu-frontier.png.

draw(recipe_points(read_results()), path)

The operations of published results are those of the forward passes in their papers and repositories, times three for
the backward pass, times images and epochs.
"""

from matplotlib.figure import Figure

from tables import TABLE_RECIPES, group_by_device, mean_train_seconds
from vit_cifar10.evaluation.comparison import over_seeds
from vit_cifar10.plots.style import GRAY, LINE_COLORS, save_figure, set_title

PUBLISHED = {  # (PFLOP, accuracy in %); all on GPUs
    "airbench94, six views": (0.29, 94.0),  # https://github.com/KellerJordan/cifar10-airbench
    "ViT-Lite-7/4": (14, 91.38),  # https://arxiv.org/abs/2104.05704
    "DeiT-Ti, 4 h on a T4": (26, 90.9),  # an earlier project; see recipes/vit-layer12-36ep.txt
}
CNN_COLOR, VIT_COLOR = LINE_COLORS[1], LINE_COLORS[0]  # as ViT and CNN have in a comparison


def recipe_points(results):
    """What the recipes reached: (recipe, PFLOP, minutes times threads, mean accuracy in %, its standard deviation)."""
    points = []
    for recipe in TABLE_RECIPES:
        for runs in group_by_device(recipe, results):
            last = runs[-1]
            if not last.device.endswith(("CPU thread", "CPU threads")):
                continue
            mean, *deviation = over_seeds([100 * run.test_accuracy for run in runs])
            minutes = mean_train_seconds(runs) * int(last.device.split()[0]) / 60
            points.append((recipe, last.pflop, minutes, mean, *(deviation or [0])))
    return points


def draw(points, path):
    """Draw one panel over the operations, with the published results, and one over the minutes on one core."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    first, second = figure.subplots(1, 2, sharey=True)
    published = [(name, *values) for name, values in PUBLISHED.items()]
    draw_panel(first, [(name, pflop, *accuracy) for name, pflop, _, *accuracy in points], published, (0.1, 1, 10))
    first.set(xlabel="PFLOP of the whole training", ylabel="test accuracy (%)", xlim=(0.05, 60))
    draw_panel(second, [(name, minutes, *accuracy) for name, _, minutes, *accuracy in points], [], (10, 30, 100))
    second.set(xlabel="minutes on one core", xlim=(6, 300))
    set_title(figure, "CIFAR-10 on one CPU core: CNNs (orange) and ViTs (blue), next to published GPU results (gray)")
    save_figure(figure, path)


def draw_panel(axis, measured, published, ticks):
    """Draw (name, cost, accuracy, its spread) of recipes and (name, cost, accuracy) of others over the cost."""
    labels = [(name, cost, accuracy) for name, cost, accuracy, _ in measured] + published
    for name, cost, accuracy, deviation in measured:
        axis.errorbar(cost, accuracy, yerr=deviation, color=CNN_COLOR if "cnn" in name else VIT_COLOR, marker="o")
    for _, cost, accuracy in published:
        axis.plot(cost, accuracy, color=GRAY, marker="x")
    for name, cost, accuracy in labels:
        is_below = any(0 < other[2] - accuracy < 1.5 and cost / 4 < other[1] < 4 * cost for other in labels)
        place = (0, -16) if is_below else (0, 8)  # below its point if another one is close above it
        axis.annotate(name, (cost, accuracy), place, textcoords="offset points", fontsize=9, ha="center")
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.grid(alpha=0.3)
    axis.margins(y=0.08)
