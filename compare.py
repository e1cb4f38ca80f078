"""Compare trained runs: numbers, curves, the images they disagree on, and whether the difference may be chance.

    python compare.py model/VIT_RUN model/CNN_RUN                # two runs; any number will do
    python compare.py model/vit-seed* model/cnn-seed*            # seeds of one recipe become mean and deviation
    python compare.py model/cnn-500 model/cnn-5000 model/cnn     # accuracy against the number of training images

Takes folders under model/ or output/, checkpoints, or names. Those that can be read are compared, and the status is 2
if there are others. A run whose full test has not been made, or not with these weights, is tested first. Writes to
--compare_path model_comparison.png, class_accuracy.png, disagreements.png, where runs differ in their number of
training images accuracy_by_images.png, and the tables as comparison.md (with the pictures), comparison.json and, the
first of them, comparison.csv.
"""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

from model import VisionTransformer
from vit_cifar10.data import dataset
from vit_cifar10.evaluation.comparison import (
    GROUP_COLUMNS,
    compare_pairs,
    disagreements,
    group_images,
    group_seeds,
    has_whole_test,
    load_run,
    measure,
    most_unlike,
    sample_sizes,
    summarize,
    summarize_group,
)
from vit_cifar10.explain.methods import grad_cam, gradient_rollout
from vit_cifar10.plots.curves import save_comparison, save_sample_sizes
from vit_cifar10.plots.explanations import save_disagreements
from vit_cifar10.plots.scores import save_class_accuracy
from vit_cifar10.plots.style import shorten
from vit_cifar10.utils.cli import ArgumentParser, command, number
from vit_cifar10.utils.device import pick_device
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.files import make_folder, replacing

COLUMNS = {  # of the table: heading, and how a number is shown
    "run": ("run", str),
    "network": ("network", str),
    "dataset": ("data set", str),
    "parameters": ("parameters", "{:,}".format),
    "flops": ("MFLOP an image", lambda value: f"{value / 1e6:,.1f}"),
    "train_images": ("training images", "{:,}".format),
    "progress": ("epochs", str),
    "kept_epoch": ("kept epoch", "{:,}".format),
    "train_seconds": ("training (s)", lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.2f}"),
    "images_per_second": ("images/s", "{:,.0f}".format),
    "test_images": ("test images", "{:,}".format),
    "accuracy": ("test accuracy", lambda value: f"{100 * value:.2f} %"),
    "interval": ("95 % interval", lambda ends: f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"),
    "final_accuracy": ("at the last epoch", lambda value: f"{100 * value:.2f} %"),
    "weighted_f1": ("weighted F1", lambda value: f"{100 * value:.2f} %"),
    "calibration_error": ("calibration error", lambda value: f"{100 * value:.2f} %"),
}
PAIRS_NOTE = """By how many points of accuracy A is better than B, with its 95 % interval; how many test images only one
of them gets right; and the probability that two equally good networks differ as much (McNemar's exact test). It is
about these two networks, not about others trained alike; of twenty pairs that do not differ, one is below 0.05."""
PICTURES = {
    "model_comparison.png": "Loss and accuracy over the epochs",
    "class_accuracy.png": "Share of each class's test images that is named right",
    "accuracy_by_images.png": "Test accuracy against the number of training images",
    "disagreements.png": "Images that one gets right and the other wrong",
}


def build_parser():
    parser = ArgumentParser(prog="compare.py", description="Compare trained runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a checkpoint, or a run's name")
    parser.add_argument("--model_path", default="./model", help="folder of the runs' checkpoints")
    parser.add_argument("--output_path", default="./output", help="folder of the runs' metrics and test results")
    parser.add_argument("--compare_path", default="./output/comparison", help="folder for tables and pictures")
    parser.add_argument("--data_path", default="./data", help="where the data set is, or is downloaded to")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    parser.add_argument("--batch_size", type=number(int, at_least=1), default=1000, help="test images at once")
    parser.add_argument(
        "--num_workers", type=number(int, at_least=0), default=2, help="processes that decode a folder of images"
    )
    return parser


def load_runs(args, device):
    """The runs that can be read, each once, and how many cannot.

    The latter, and what is missing, are said on standard error.

    Raises:
        UserError: there is nothing left to compare.
    """
    runs, errors = [], []
    for path in args.runs:
        try:
            run = load_run(path, args.model_path, args.output_path, device)
        except UserError as error:
            errors.append(str(error))
            continue
        same_name = [other for other in runs if other.name == run.name]
        if any(run.checkpoint_path.resolve() != other.checkpoint_path.resolve() for other in same_name):
            errors.append(f"{path} is left out: a run of the name {run.name} is compared already; rename its folder")
        elif not same_name:
            runs.append(run)
    for note in [*errors, *(note for run in runs for note in run.notes)]:
        warn(note)
    if not runs:
        raise UserError("none of these is a run that can be read; name folders under model/ that train.py has written")
    if errors and len(runs) == 1:
        raise UserError(f"{runs[0].name} is the only one left; there is nothing to compare it with")
    return runs, len(errors)


def warn(message):
    print(f"compare.py: {message}", file=sys.stderr)


def measure_all(runs, args):
    """Test every run on its data set's images, which are read once; returns them, {(data set, size): Split or None}.

    Where they are not there, runs that have been tested before keep those results.
    """
    tests = {}
    for run in runs:
        key = test_key(run)
        if key not in tests:
            tests[key] = load_test_images(*key, args)
        try:
            measure(run, tests[key], args.batch_size)
        except UserError as error:
            warn(f"{run.name}: {error}" if run.measured else f"{run.name} cannot be tested: {error}")
        if tests[key] is None and not run.measured:
            warn(f"{run.name} cannot be tested without its test images")
    names = {run.dataset for run in runs}
    if len(names) > 1:
        names = ", ".join(sorted(names))
        warn(f"these runs are of different data sets ({names}); only those of one are paired and shown class by class")
    return tests


def load_test_images(name, size, args):
    """The test images of a data set, or None, said on standard error, where it is not there."""
    try:
        return dataset.load_test(name, args.data_path, image_size=size, num_workers=args.num_workers)
    except UserError as error:
        warn(str(error))
        return None


def test_key(run):
    """Which test images a run takes: the data set, and the side in pixels."""
    return run.dataset, run.network.image_size


def cells(row):
    """A row of `summarize` as text, {column: text}; empty where nothing is known."""
    ends, epochs, planned = (row["accuracy_low"], row["accuracy_high"]), row["epochs"], row["planned_epochs"]
    progress = epochs and (f"{epochs:,} of {planned:,}" if planned and epochs < planned else f"{epochs:,}")
    values = {**row, "interval": None if None in ends else ends, "progress": progress}
    return {column: "" if values[column] is None else show(values[column]) for column, (_, show) in COLUMNS.items()}


def as_markdown(headings, rows):
    """A Markdown table, its columns as wide as their longest cell."""
    headings, *rows = [[re.sub(r"([\\|*<`])", r"\\\1", cell) for cell in line] for line in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def runs_table(rows):
    """A row a run, or, where that is narrower, a column a run; what is known of no run is left out."""
    lines = [[heading for heading, _ in COLUMNS.values()], *(list(cells(row).values()) for row in rows)]
    upright = known_columns(lines)
    lines = list(zip(*upright, strict=True))
    return min((as_markdown(*table) for table in ((lines[0], lines[1:]), (upright[0], upright[1:]))), key=width)


def known_columns(lines):
    """The columns of a table's lines, the first of which are headings, without those that are empty below theirs."""
    return [column for column in zip(*lines, strict=True) if any(column[1:])]


def width(table):
    return len(table.splitlines()[0])


def seed_groups(runs, rows):
    """Runs of several seeds: [{"runs": names, column: (mean, deviation), ...}]."""
    by_name = {row["run"]: row for row in rows}
    groups = [[run.name for run in group] for group in group_seeds(runs) if len(group) > 1]
    return [{"runs": names, **summarize_group([by_name[name] for name in names])} for names in groups]


def groups_table(groups):
    """Mean and deviation of runs that differ in their seeds alone."""
    rows = []
    for means in groups:
        name = ", ".join(means["runs"])
        shown = []
        for column in GROUP_COLUMNS:
            show = COLUMNS[column][1]
            shown.append(" ± ".join(map(show, means[column])).replace(" % ±", " ±") if column in means else "")
        rows.append([name, str(len(means["runs"])), *shown])
    headings = ["runs", "seeds", *(COLUMNS[column][0] for column in GROUP_COLUMNS)]
    headings, *rows = zip(*known_columns([headings, *rows]), strict=True)
    return as_markdown(headings, rows)


def pairs_table(pairs):
    rows = []
    for pair in pairs:
        p_value = f"{pair['p']:.2g}" if pair["p"] >= 1e-300 else "below 1e-300"
        difference, low, high = (f"{100 * pair[key]:+.2f}" for key in ("difference", "low", "high"))
        only = [str(pair[key]) for key in ("only_one", "only_other")]
        rows.append([pair["one"], pair["other"], difference, f"{low} to {high}", *only, p_value])
    headings = ["A", "B", "A - B (points)", "95 % interval", "only A right", "only B right", "McNemar's p"]
    return as_markdown(headings, rows)


def comparable(runs):
    """The lists of two or more runs that saw the same test images."""
    return [group for group in group_images(runs) if len(group) > 1]


def recall(run):
    return run.results["by_class"]["recall"]


def class_recalls(runs):
    """Each class's share of test images that every run names right: [{"class": name, "recall": {run: share}}, ...]."""
    recalls = {run.name: recall(run) for run in runs}
    return [
        {"class": name, "recall": {run: shares[place] for run, shares in recalls.items()}}
        for place, name in enumerate(runs[0].network.classes)
    ]


def classes_table(rows):
    """The same as Markdown; of two runs also the difference."""
    names, shown = list(rows[0]["recall"]), []
    for row in rows:
        shares = list(row["recall"].values())
        difference = [f"{100 * (shares[0] - shares[1]):+.1f}"] if len(names) == 2 else []
        shown.append([row["class"], *(f"{100 * share:.1f} %" for share in shares), *difference])
    return as_markdown(["class", *names, *["difference (points)"] * (len(names) == 2)], shown)


def report(rows, groups, pairs, classes):
    """All tables with their headings, as Markdown."""
    parts = ["## Runs", runs_table(rows)]
    if groups:
        parts += ["## Seeds", "Mean ± sample deviation of runs that differ in their seed alone.", groups_table(groups)]
    if pairs:
        parts += ["## Pairs", PAIRS_NOTE, pairs_table(pairs)]
    for group in classes:
        heading = f"## Classes of {group['dataset']}"
        parts += [heading, "Share of each class's test images that is named right.", classes_table(group["classes"])]
    return "\n\n".join(parts) + "\n"


def write_tables(folder, rows, **others):
    """comparison.csv, and comparison.json with the `others` too."""
    with replacing(folder / "comparison.csv") as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with replacing(folder / "comparison.json") as partial:
        partial.write_text(json.dumps({"runs": rows, **others}, indent=2) + "\n")


def write_report(folder, text, pictures=()):
    """comparison.md: the tables and the pictures."""
    shown = "\n".join(f"![{PICTURES[name]}]({name})\n" for name in pictures)
    with replacing(folder / "comparison.md") as partial:
        partial.write_text(f"# Comparison\n\n{text}\n{shown}".strip() + "\n")


def draw(folder, runs, tests):
    """Curves, classes, sizes of the training set, and disagreements; yields the names of the pictures.

    Those of an earlier comparison are removed.
    """
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    groups = group_seeds(runs)
    curves = [(label(group) + curve_note(group), [run.rows for run in group if run.rows]) for group in groups]
    curves = [(name, histories) for name, histories in curves if histories]
    if curves:
        save_comparison(curves, folder / "model_comparison.png")
        yield "model_comparison.png"
    for group in comparable(runs)[:1]:
        recalls = {
            label(seeds): [statistics.mean(shares) for shares in zip(*map(recall, seeds), strict=True)]
            for seeds in group_seeds(group)
        }
        save_class_accuracy(recalls, group[0].network.classes, group[0].dataset, folder / "class_accuracy.png")
        yield "class_accuracy.png"
    sizes = sample_sizes(runs)
    sizes = {name: points for name, points in sizes.items() if len(points) > 1}
    if sizes:
        save_sample_sizes(sizes, folder / "accuracy_by_images.png")
        yield "accuracy_by_images.png"
    pair = most_unlike(runs)
    if pair and all(tests[test_key(run)] for run in pair):
        tests = [tests[test_key(run)] for run in pair]
        panels = [
            (f"{shorten(one.name, 30)} is right, {shorten(other.name, 30)} is wrong", disagreements(one, other))
            for one, other in (pair, pair[::-1])
        ]
        shown = [(title, [explained(index, pair, tests) for index in indices]) for title, indices in panels]
        if any(images for _, images in shown):
            methods = ["gradient rollout" if is_vit(run) else "Grad-CAM" for run in pair]
            names = [f"{shorten(run.name, 22)}\n{method}" for run, method in zip(pair, methods, strict=True)]
            save_disagreements(shown, names, folder / "disagreements.png")
            yield "disagreements.png"


def is_vit(run):
    return isinstance(run.network.model, VisionTransformer)


def label(group):
    """What a legend says of a run, or of several seeds."""
    first = group[0]
    parts = [f"{shorten(first.name)}{f' and {len(group) - 1} more' if len(group) > 1 else ''}"]
    accuracies = [run.results["accuracy"] for run in group if run.measured]
    mean = "mean " if len(group) > 1 else ""
    parts += [f": {mean}{100 * sum(accuracies) / len(accuracies):.2f} %"] if accuracies else []
    parts += [] if first.is_finished else [" (unfinished)"]
    return "".join(parts)


def curve_note(group):
    """What a legend adds where the epochs of a run, or of several seeds, were not measured on all test images."""
    counts = sorted({run.flags["num_test_images"] for run in group if not has_whole_test(run)})
    return f" (curve of {' or '.join(map('{:,}'.format, counts))} test images)" if counts else ""


def explained(index, pair, tests):
    """One test image, and for both networks what speaks for the class they name: (image, label, [(map, caption)])."""
    maps = []
    for run, test in zip(pair, tests, strict=True):
        explain = gradient_rollout if is_vit(run) else grad_cam
        inputs = run.network.prepare(test.images[index : index + 1])
        relevance = explain(run.network.model, inputs)[0].cpu().numpy()
        probabilities = run.measured.logits[index].softmax(dim=0)
        name = shorten(run.network.classes[probabilities.argmax()], 16)
        maps.append((relevance, f"{name} {100 * probabilities.max():.0f} %"))
    image = tests[0].images[index].permute(1, 2, 0).cpu().numpy()
    return image, shorten(tests[0].classes[tests[0].labels[index]], 16), maps


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    with out_of_memory_advice("lower --batch_size, or use --device cpu"):
        compare(args)


def compare(args):
    runs, unread = load_runs(args, pick_device(args.device))
    folder = Path(args.compare_path)
    make_folder(folder)
    tests = measure_all(runs, args)
    rows = [summarize(run) for run in runs]
    pairs = compare_pairs(runs)
    groups = seed_groups(runs, rows)
    classes = [{"dataset": group[0].dataset, "classes": class_recalls(group)} for group in comparable(runs)]
    text = report(rows, groups, pairs, classes)
    print(text)
    write_tables(folder, rows, seeds=groups, pairs=pairs, classes=classes)
    write_report(folder, text)
    pictures = list(draw(folder, runs, tests))
    write_report(folder, text, pictures)
    print(f"wrote {', '.join(['comparison.md', 'comparison.csv', 'comparison.json', *pictures])} to {folder}")
    if unread:
        raise UserError(f"{unread} of the runs named could not be compared; see above")


if __name__ == "__main__":
    main()
