"""A comparison as text: Markdown tables that fit into a terminal, CSV and JSON."""

import csv
import json
import re
import statistics
import textwrap

from vit_cifar10.evaluation.comparison import GROUP_COLUMNS, over_seeds
from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.text import LINE, shorten


def percent(fraction, digits=2):
    return f"{100 * fraction:.{digits}f} %"


COLUMNS = {  # of the table of runs: heading, and how to show a value
    "run": ("run", str),
    "network": ("network", str),
    "dataset": ("data set", str),
    "parameters": ("parameters", "{:,}".format),
    "flops": ("MFLOP per image", lambda value: f"{value / 1e6:,.1f}"),
    "train_images": ("training images", "{:,}".format),
    "progress": ("epochs", str),
    "kept_epoch": ("kept epoch", "{:,}".format),
    "train_seconds": ("training (s)", lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.2f}"),
    "images_per_second": ("images/s", "{:,.0f}".format),
    "test_images": ("test images", "{:,}".format),
    "accuracy": ("test accuracy", percent),
    "interval": ("95 % interval", lambda ends: f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"),
    "final_accuracy": ("at the last epoch", percent),
    "weighted_f1": ("weighted F1", percent),
    "calibration_error": ("calibration error", percent),
}
PAIRS_NOTE = textwrap.fill(
    "This table shows how much more accurate A is than B, in percentage points, with a 95 % interval, and how many test"
    " images only one of them gets right. p, from McNemar's exact test, is the probability that two equally accurate"
    " networks differ at least this much. The test is about these two networks, not about others trained in the same"
    " way. Of twenty pairs of equally accurate networks, one is expected to have a p below 0.05.",
    LINE,
)
ROBUSTNESS_NOTE = textwrap.fill(
    "This table shows how much of its accuracy on clean images each run retains on corrupted ones, with a 95 % "
    "interval that is paired image by image, and how much more a run retains than the first one. All runs see the "
    "same {images} test images. The kinds down to JPEG, at severities 1, 3 and 5, are in the style of CIFAR-10-C, but "
    "are not its images. The levels of the others are: the grid of patches, the highest frequency that is kept or "
    "removed in cycles per image, the fraction that is gray, and the largest change of a pixel value.",
    LINE,
)


def fitted(headings, rows):
    """A Markdown table that fits into a terminal: as it is or, if it is too wide, turned, with a column for each row.

    If that is too wide, too, it becomes several tables below each other.
    """
    lines = [[shorten(cell, 50) for cell in line] for line in (headings, *rows)]
    table = as_markdown(*split_head(lines))
    return table if width_of(table) <= LINE else stacked(list(zip(*lines, strict=True)))


def stacked(lines, fixed=1):
    """A table, its headings first, as tables that fit into a terminal. Each begins with the `fixed` first columns."""
    columns = list(zip(*lines, strict=True))
    first, tables = columns[:fixed], []
    kept = list(first)
    for column in columns[fixed:]:
        wider = as_markdown(*split_head(list(zip(*kept, column, strict=True))))
        if len(kept) > fixed and width_of(wider) > LINE:
            tables.append(kept)
            kept = list(first)
        kept.append(column)
    return "\n\n".join(as_markdown(*split_head(list(zip(*part, strict=True)))) for part in (*tables, kept))


def split_head(lines):
    return lines[0], lines[1:]


def width_of(table):
    return len(table.splitlines()[0])


def as_markdown(headings, rows):
    """A Markdown table of plain text, with its columns padded."""
    lines = [[re.sub(r"([\\|*<`])", r"\\\1", cell) for cell in line] for line in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    headings, *rows = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return markdown_table(headings, rows)


def markdown_table(headings, rows):
    """A Markdown table. Its cells may hold Markdown."""
    lines = [headings, ["-" * max(1, len(heading)) for heading in headings], *rows]
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines)


def drop_empty_columns(lines):
    """The columns of a table whose first line holds the headings, without columns that are empty below the heading."""
    return [column for column in zip(*lines, strict=True) if any(column[1:])]


def cells(row):
    """A row of `summarize` as text, {column: text}; empty where the value is unknown."""
    ends, epochs, planned = (row["accuracy_low"], row["accuracy_high"]), row["epochs"], row["planned_epochs"]
    progress = epochs and (f"{epochs:,} of {planned:,}" if planned and epochs < planned else f"{epochs:,}")
    values = {**row, "interval": None if None in ends else ends, "progress": progress}
    return {column: "" if values[column] is None else show(values[column]) for column, (_, show) in COLUMNS.items()}


def runs_table(rows):
    """One row per run or, if that is too wide, one column per run, without columns that are unknown for all runs."""
    lines = [[heading for heading, _ in COLUMNS.values()], *(list(cells(row).values()) for row in rows)]
    headings, *rows = zip(*drop_empty_columns(lines), strict=True)
    return fitted(headings, rows)


def seeds_table(summaries):
    """Mean and sample standard deviation of runs that differ only in their seed."""
    rows = []
    for summary in summaries:
        shown = []
        for column in GROUP_COLUMNS:
            show = COLUMNS[column][1]
            shown.append(show_over_seeds(summary[column], show) if column in summary else "")
        rows.append([", ".join(summary["runs"]), str(len(summary["runs"])), *shown])
    headings = ["runs", "seeds", *(COLUMNS[column][0] for column in GROUP_COLUMNS)]
    headings, *rows = zip(*drop_empty_columns([headings, *rows]), strict=True)
    return fitted(headings, rows)


def show_over_seeds(values, show):
    """What `over_seeds` returns as text, such as "88.45 ± 0.18 %"."""
    return " ± ".join(map(show, values)).replace(" % ±", " ±")


def pairs_table(pairs):
    rows = []
    for pair in pairs:
        p_value = f"{pair['p']:.2g}" if pair["p"] >= 1e-300 else "below 1e-300"
        difference, low, high = (f"{100 * pair[key]:+.2f}" for key in ("difference", "low", "high"))
        counts = [str(pair[key]) for key in ("only_one", "only_other")]
        rows.append([pair["one"], pair["other"], difference, f"{low} to {high}", *counts, p_value])
    return fitted(["A", "B", "A - B", "95 % interval", "only A", "only B", "p"], rows)


def classes_table(rows):
    """The recall of each class in every run; for two runs also the difference."""
    names, shown = list(rows[0]["recall"]), []
    for row in rows:
        values = list(row["recall"].values())
        difference = [f"{100 * (values[0] - values[1]):+.1f}"] if len(names) == 2 else []
        shown.append([row["class"], *(f"{100 * value:.1f} %" for value in values), *difference])
    headings = ["class", *names, *["points"] * (len(names) == 2)]
    return stacked([[shorten(cell, 50) for cell in line] for line in (headings, *shown)])


def robustness_table(rows):
    """A line per kind and level of corruption, from `robustness_rows`; the first line has the clean accuracies."""
    names, lines = list(dict.fromkeys(row["run"] for row in rows)), {}
    for row in rows:
        lines.setdefault((row["corruption"], row["level"]), []).append(row)
    shown = []
    for place, (condition, line) in enumerate(lines.items()):
        if place:
            cells = [show_interval(row, "retained", ".1f", " %") for row in line]
            cells += [show_interval(row, "difference", "+.1f") for row in line[1:]]
        else:
            cells = [f"accuracy {percent(row['accuracy'], 1)}" for row in line] + [""] * (len(line) - 1)
        shown.append([*condition, *cells])
    headings = ["corruption", "level", *names, *(f"{name} - {names[0]} (points)" for name in names[1:])]
    return stacked([[shorten(cell, 45) for cell in line] for line in (headings, *shown)], fixed=2)


def show_interval(row, key, digits, unit=""):
    """A fraction in percent with its interval, such as "61.2 % (58.0 to 64.5)"; empty if it is unknown."""
    if row[key] is None:
        return ""
    value, low, high = (f"{100 * row[f'{key}{end}']:{digits}}" for end in ("", "_low", "_high"))
    return f"{value}{unit} ({low} to {high})"


def robustness_section(rows):
    """The table of robustness with its heading, as Markdown."""
    note = ROBUSTNESS_NOTE.format(images=f"{rows[0]['images']:,}")
    return "\n\n".join(["## Robustness", note, robustness_table(rows)]) + "\n"


def all_tables(rows, seeds, pairs, classes):
    """All tables with their headings, as Markdown."""
    parts = ["## Runs", runs_table(rows)]
    if seeds:
        note = "Mean ± sample standard deviation of runs that differ only in their seed."
        parts += ["## Seeds", note, seeds_table(seeds)]
    if pairs:
        parts += ["## Pairs", PAIRS_NOTE, pairs_table(pairs)]
    for group in classes:
        heading = f"## Classes of {group['dataset']}"
        parts += [heading, "Fraction of each class's test images that is classified correctly."]
        parts += [classes_table(group["classes"])]
    return "\n\n".join(parts) + "\n"


def write_tables(folder, rows, **others):
    """Write the runs to comparison.csv, and the runs and the `others` to comparison.json."""
    with atomic_write(folder / "comparison.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(folder / "comparison.json") as partial:
        partial.write_text(json.dumps({"runs": rows, **others}, indent=2) + "\n", encoding="utf-8")


def conclusion(groups, pairs):
    """A sentence about the two most accurate runs or recipes; empty if no two runs were tested on the same images.

    Args:
        groups: from `group_seeds`.
        pairs: from `compare_pairs`.
    """
    compared = {pair[side] for pair in pairs for side in ("one", "other")}
    groups = [[run for run in group if run.name in compared] for group in groups]
    accuracies = {group[0].name: [run.results["accuracy"] for run in group] for group in groups if group}
    if len(accuracies) < 2:
        return ""
    titles = {group[0].name: f"the {group[0].network.model.title}" for group in groups if group}
    is_clear = len(titles) == 2 == len(set(titles.values()))  # without the names of the runs
    names = titles if is_clear else dict(zip(titles, titles, strict=True))
    means = {name: statistics.mean(values) for name, values in accuracies.items()}
    best, other = sorted(means, key=lambda name: -means[name])[:2]
    lead = f"{names[best]} is {100 * (means[best] - means[other]):.1f} points ahead"
    lead += "" if is_clear else f" of {names[other]}"
    if max(map(len, accuracies.values())) > 1:
        shown = [show_over_seeds(over_seeds(accuracies[name]), percent) for name in (best, other)]
        return sentence(f"{lead} on average over seeds ({shown[0]} and {shown[1]})")
    pair = next((pair for pair in pairs if {pair["one"], pair["other"]} == {best, other}), None)
    if pair is None:  # they were tested on different images
        return ""
    low, high = sorted((100 if pair["one"] == best else -100) * pair[end] for end in ("low", "high"))
    doubt = "" if low > 0 else f"{names[best]} and {names[other]} may be equally accurate: "
    return sentence(f"{doubt}{lead} (95 %: {low:.1f} to {high:.1f})")


def sentence(text):
    return f"T{text[1:]}." if text.startswith("the ") else f"{text}."


def write_markdown(folder, sentence, text, pictures):
    """Write comparison.md: the conclusion, the tables, then the `pictures`, {file name: caption}."""
    shown = "\n".join(f"![{caption}]({name})\n" for name, caption in pictures.items())
    with atomic_write(folder / "comparison.md") as partial:
        partial.write_text(f"# Comparison\n\n{sentence}\n\n{text}\n{shown}".strip() + "\n", encoding="utf-8")
