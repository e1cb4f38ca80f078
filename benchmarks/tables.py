"""The results of recipes: the rows of results.csv, and the tables that are generated from them.

results = read_results()
write_tables(results)      # docs/results.md, README.md and the `# measured` lines of the recipes
"""

import csv
import dataclasses
import io
import math
import re
import statistics
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write

RECIPES = ROOT / "recipes"
RESULTS = ROOT / "benchmarks" / "results.csv"
RESULTS_PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
TABLE_RECIPES = (  # in the order of the table
    "vit-fast",
    "vit-best",
    "cnn-fast",
    "deit-ti",
    "deit-ti-adamw",
    "vit-layer12",
    "vit-layer6",
    "vit-256x8",
    "vit-patch8-12ep",
    "fast-cnn",
    "cnn-12ep",
    "cnn-small",
    "vit-laptop-layer6",
    "vit-layer6-36ep",
    "vit-layer12-36ep",
)
OTHER_RECIPES = (  # not in the table because they do not train on CIFAR-10 alone
    "shapes",
    "finetune-cifar100",
    "finetune-folder",
)
HEADLINE = {  # the first of these that have been measured make up the README's table
    "vit-best": "ViT, 8 layers, 384 wide",
    "vit-fast": "ViT, 7 layers, 384 wide",
    "cnn-fast": "CNN, double width",
    "deit-ti": "ViT of DeiT-Ti's size",
    "vit-layer12-36ep": "ViT, 12 layers, 192 wide",
    "vit-layer6-36ep": "ViT, 6 layers, 192 wide",
    "vit-patch8-12ep": "ViT, 6 layers, 8-pixel patches",
    "fast-cnn": "fast CNN, 7 convolutions",
    "cnn-small": "CNN, 4 narrow convolutions",
    "cnn-12ep": "CNN, 4 convolutions",
}
HEADLINE_ROWS = 5


@dataclasses.dataclass
class Result:
    """One row of results.csv: one run of a recipe.

    Accuracies are fractions between 0 and 1, times are in seconds, and memory is in units of 10^9 bytes.
    `train_seconds` is the time of the training steps; the first step, which compiles, counts as an average one.
    `total_seconds` is the time of all epochs, including compilation and evaluation. `kept` tells how the weights were
    chosen. `jobs` is the number of recipes that trained on the device at the same time; with more than one,
    `train_seconds` is estimated from a short run that trained alone, or None, and `total_seconds` is None.
    """

    recipe: str
    seed: int
    test_accuracy: float
    val_accuracy: float | None
    kept: str
    epochs: int
    parameters: int
    train_seconds: float | None
    total_seconds: float | None
    gpu_memory_gb: float | None
    device: str
    precision: str
    torch: str
    commit: str
    date: str
    jobs: int = 1

    @property
    def key(self):
        """What no two rows share."""
        return self.recipe, self.seed, self.device

    @property
    def run_name(self):
        return run_name(self.recipe, self.seed)


def run_name(recipe, seed):
    """The name of a recipe's run in model/ and output/."""
    return f"{recipe}-seed{seed}"


def read_results():
    """Return the rows of results.csv, in order."""
    if not RESULTS.exists():
        return []
    return parse_rows(RESULTS.read_text())


def parse_rows(text):
    """Convert the text of a results.csv to a list of `Result`. Raises `ValueError` or `KeyError` if it is none."""
    return [parse_row(row) for row in csv.DictReader(text.splitlines())]


def parse_row(row):
    """Convert a row of strings, {column: text}, to a `Result`."""
    types = {"int": int, "float": float, "str": str}
    values = {}
    for field in dataclasses.fields(Result):
        type_name, text = str(getattr(field.type, "__name__", field.type)), row[field.name]
        is_none = not text and "None" in type_name
        values[field.name] = None if is_none else types[type_name.split(" ", maxsplit=1)[0]](text)
    return Result(**values)


def format_rows(results):
    """The reverse of `parse_rows`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(result) for result in results)
    return file.getvalue()


def record(result):
    """Add a row to results.csv, in place of an earlier one for the same run, and generate the tables again."""
    others = [other for other in read_results() if other.key != result.key]
    replace_text(RESULTS, format_rows([*others, result]))
    write_tables([*others, result])


# Tables


def read_header(recipe):
    """Read the comments at the top of a recipe: {"title": ..., "earlier projects": ..., "measured": ...}."""
    lines = re.findall(r"^# (.*)$", (RECIPES / f"{recipe}.txt").read_text(), re.MULTILINE)
    return {"title": lines[0], **dict(line.split(": ", 1) for line in lines[1:] if ": " in line)}


def group_by_device(recipe, results):
    """Return the results of a recipe, one list per device, in the order of results.csv."""
    runs = [result for result in results if result.recipe == recipe]
    devices = dict.fromkeys(result.device for result in runs)
    return [[result for result in runs if result.device == device] for device in devices]


def summarize(runs):
    """Return the table cells, {column: text}, for runs of one recipe on one device that differ only in their seed."""
    accuracies = [100 * result.test_accuracy for result in runs]
    std = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
    last = runs[-1]
    return {
        "accuracy": f"{statistics.mean(accuracies):.2f}{std} %",
        "seeds": f"seed{'s' if len(runs) > 1 else ''} {', '.join(str(result.seed) for result in runs)}",
        "time": (time := duration(mean_train_seconds(runs))),
        "training": f" {time} of training" if time else " trained together with others",
        "device": last.device,
        "precision": last.precision,
        "torch": last.torch,
        "kept": last.kept,
        "memory": "" if last.gpu_memory_gb is None else f", {last.gpu_memory_gb:g} GB",
        "epochs": str(last.epochs),
        "parameters": f"{last.parameters / 1e6:.2f} M",
    }


def mean_train_seconds(runs):
    """The mean time of training, or infinity if it is unknown for some of the runs."""
    times = [result.train_seconds for result in runs]
    return math.inf if None in times else statistics.mean(times)


def duration(seconds):
    """Format a duration in seconds, minutes or hours, such as "8.3 s", "61 s", "19 min" or "1.8 h"; "" if infinite."""
    if seconds == math.inf:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def measured_lines(recipe, results):
    """Return the `# measured` lines of a recipe, one per device."""
    rows = [summarize(runs) for runs in group_by_device(recipe, results)]
    if not rows:
        return "# measured: not yet"
    return "\n".join(
        f"# measured: {row['accuracy']} on the test images ({row['seeds']}; {row['kept']}),"
        f"{row['training']}{row['memory']}, {row['device']}, {row['precision']}, torch {row['torch']}"
        for row in rows
    )


def full_table(results):
    """Return the table of docs/results.md: all recipes that have been measured, one row per device."""
    rows = []
    for recipe in TABLE_RECIPES:
        reported = read_header(recipe).get("earlier projects", "")
        for row in map(summarize, group_by_device(recipe, results)):
            cells = (row[column] for column in ("parameters", "epochs", "accuracy", "time", "device"))
            rows.append([f"[`{recipe}`](../recipes/{recipe}.txt)", *cells, reported])
    columns = ("recipe", "parameters", "epochs", "test accuracy", "training time", "device", "earlier projects report")
    return markdown_table(columns, rows)


def unmeasured_list(results):
    """Return the list of docs/results.md: each recipe that has not been measured, and the command that runs it."""
    items = []
    for recipe in TABLE_RECIPES:
        if not group_by_device(recipe, results):
            header = read_header(recipe)
            reported = header.get("earlier projects")
            report = f" Earlier projects report {reported}." if reported else ""
            text = f"- [`{recipe}`](../recipes/{recipe}.txt): {header['title']}{report}"
            lines = textwrap.wrap(text, width=120, subsequent_indent="  ", break_on_hyphens=False)
            items += [*lines, f"  `python train.py @recipes/{recipe}.txt`"]
    return "\n".join(items) or "Every recipe has been measured."


def headline_table(results):
    """Return the README's table: the first `HEADLINE_ROWS` recipes of `HEADLINE` that have been measured.

    If a recipe was measured on several devices, its row is for the device with the most seeds, and among these for
    the fastest.
    """
    rows = []
    for recipe, network in HEADLINE.items():
        groups = group_by_device(recipe, results)
        if groups:
            row = summarize(min(groups, key=lambda runs: (-len(runs), mean_train_seconds(runs))))
            cells = (row[column] for column in ("parameters", "epochs", "accuracy", "time", "device"))
            rows.append([f"{network} ([`{recipe}`](recipes/{recipe}.txt))", *cells])
    columns = ("network", "parameters", "epochs", "test accuracy", "training time", "device")
    return markdown_table(columns, rows[:HEADLINE_ROWS])


def markdown_table(columns, rows):
    """Format lists of cells as a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return re.sub(r" +\|", " |", "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]]))


def generated_blocks(results):
    """Return all generated text between markers: {(file, name of the markers): text}."""
    return {
        (RESULTS_PAGE, "results"): full_table(results),
        (RESULTS_PAGE, "recipes without results"): unmeasured_list(results),
        (README, "results"): headline_table(results),
    }


def split_at_markers(path, name):
    """Split a file at its lines `<!-- name -->` and `<!-- end of name -->`.

    Returns:
        The text up to and including the first marker, the text between the markers, and the rest.

    Raises:
        UserError: the file lacks the markers.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found_first, rest = path.read_text().partition(first)
    between, found_last, after = rest.partition(last)
    if not (found_first and found_last):
        raise UserError(f"{path} has no place for generated text; add the lines {first.strip()} and {last.strip()}")
    return before + first, between, last + after


def write_tables(results):
    """Generate the `# measured` lines of the recipes, and the tables in docs/results.md and README.md."""
    for recipe in TABLE_RECIPES:
        path = RECIPES / f"{recipe}.txt"
        parts = re.split(r"((?:^# measured: .*\n)+)", path.read_text(), flags=re.MULTILINE)
        if len(parts) != 3:
            raise UserError(f"{path} has no place for results; add a line that begins with # measured:")
        replace_text(path, f"{parts[0]}{measured_lines(recipe, results)}\n{parts[2]}")
    write_blocks(generated_blocks(results))


def write_blocks(blocks):
    """Put generated text, {(file, name of the markers): text}, between its markers."""
    for (path, name), block in blocks.items():
        before, _, after = split_at_markers(path, name)
        replace_text(path, f"{before}{block}\n{after}")


def replace_text(path, text):
    """Replace a text file, completely or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text)
