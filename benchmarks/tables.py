"""The results of recipes: the rows of results.csv, and the tables that are generated from them.

results = read_results()
write_tables(results)      # docs/results.md, README.md and the `# measured` lines of the recipes
"""

import csv
import dataclasses
import io
import re
import statistics
import sys
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vit_cifar10.evaluation.comparison import over_seeds
from vit_cifar10.evaluation.tables import markdown_table, percent, show_over_seeds
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write

RECIPES = ROOT / "recipes"
RESULTS = ROOT / "benchmarks" / "results.csv"
RESULTS_PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
TABLE_RECIPES = {  # in the order of the tables, with the network's name in the README's; None: not in that table
    "fast-cnn": "fast CNN, 7 convolutions",
    "cnn-small": "CNN, 4 narrow convolutions",
    "cnn-12ep": "CNN, 4 convolutions",
    "vit-layer12-36ep": "ViT, 12 layers, 192 wide",
    "vit-layer6-36ep": "ViT, 6 layers, 192 wide",
    "vit-laptop-layer6": None,
    "vit-patch8-12ep": "ViT, 6 layers, 8-pixel patches",
}
OTHER_RECIPES = ("shapes", "finetune-folder")  # do not train on CIFAR-10
COLUMNS = ("parameters", "epochs", "test accuracy", "with six views", "training time", "device")


@dataclasses.dataclass
class Result:
    """One row of results.csv: one run of a recipe.

    Accuracies are fractions between 0 and 1, times are in seconds, and memory is in units of 10^9 bytes.
    `train_seconds` is the time of the training steps; the first step, which compiles, counts as an average one.
    `total_seconds` is the time of all epochs, including compilation and evaluation, or None for runs that shared a
    machine; `train_seconds` was then extrapolated from two epochs. `kept` tells how the weights were chosen.
    `six_views` is the accuracy that `test.py --tta` reports for six views of each image, if it was measured. `pflop` is
    what the whole run computed, in 10^15 operations; see cost.py.
    """

    recipe: str
    seed: int
    test_accuracy: float
    six_views: float | None
    val_accuracy: float | None
    kept: str
    epochs: int
    parameters: int
    pflop: float
    train_seconds: float
    total_seconds: float | None
    gpu_memory_gb: float | None
    device: str
    precision: str
    torch: str
    commit: str
    date: str

    @property
    def key(self):
        """What no two rows share."""
        return self.recipe, self.seed, self.device


def read_results():
    """The rows of results.csv, in order."""
    return parse_rows(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def parse_rows(text):
    """Convert the text of a results.csv to a list of `Result`. An empty cell becomes None."""
    kinds = {field.name: (typing.get_args(field.type) or [field.type])[0] for field in dataclasses.fields(Result)}
    rows = csv.DictReader(text.splitlines())
    return [Result(**{name: kind(row[name]) if row[name] else None for name, kind in kinds.items()}) for row in rows]


def format_rows(results):
    """The reverse of `parse_rows`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(result) for result in results)
    return file.getvalue()


def record(result):
    """Add a row to results.csv, in place of an earlier one for the same run, and generate the tables again."""
    results = [*(other for other in read_results() if other.key != result.key), result]
    replace_text(RESULTS, format_rows(results))
    write_tables(results)


# Tables


def read_header(recipe):
    """Read the comments at the top of a recipe: {"title": ..., "earlier projects": ..., "measured": ...}."""
    lines = re.findall(r"^# (.*)$", (RECIPES / f"{recipe}.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return {"title": lines[0], **dict(line.split(": ", 1) for line in lines[1:] if ": " in line)}


def group_by_device(recipe, results):
    """Return the results of a recipe, one list per device, in the order of results.csv."""
    groups = {}
    for result in results:
        if result.recipe == recipe:
            groups.setdefault(result.device, []).append(result)
    return list(groups.values())


def cells(runs):
    """The cells of the `COLUMNS`, for runs of one recipe on one device that differ only in their seed."""
    last, accuracies = runs[-1], (accuracy_of(runs), accuracy_of(runs, "six_views"))
    time = duration(mean_train_seconds(runs))
    return [f"{last.parameters / 1e6:.2f} M", str(last.epochs), *accuracies, time, last.device]


def accuracy_of(runs, kind="test_accuracy"):
    """The mean accuracy on the test images and, with several seeds, its standard deviation, as text.

    It is empty if the accuracy of this kind has not been measured.
    """
    measured = [value for run in runs if (value := getattr(run, kind)) is not None]
    return show_over_seeds(over_seeds(measured), percent) if measured else ""


def mean_train_seconds(runs):
    return statistics.mean(run.train_seconds for run in runs)


def duration(seconds):
    """Format a duration in seconds, minutes or hours, such as "8.3 s", "61 s", "19 min" or "1.8 h"."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def measured_lines(recipe, results):
    """The `# measured` lines of a recipe, one per device."""
    return "\n".join(map(measured_line, group_by_device(recipe, results))) or "# measured: not yet"


def measured_line(runs):
    last, seeds = runs[-1], ", ".join(str(run.seed) for run in runs)
    memory = "" if last.gpu_memory_gb is None else f" {last.gpu_memory_gb:g} GB,"
    return (
        f"# measured: {accuracy_of(runs)} on the test images (seed{'s' * (len(runs) > 1)} {seeds}; {last.kept}),"
        f" {duration(mean_train_seconds(runs))} of training,{memory} {last.device}, {last.precision},"
        f" torch {last.torch}"
    )


def full_table(results):
    """The table of docs/results.md: all recipes that have been measured, one row per device."""
    rows = [
        [
            f"[`{recipe}`](../recipes/{recipe}.txt)",
            *cells(runs),
            f"{runs[-1].pflop:.2f}",
            read_header(recipe).get("earlier projects", ""),
        ]
        for recipe in TABLE_RECIPES
        for runs in group_by_device(recipe, results)
    ]
    return markdown_table(["recipe", *COLUMNS, "PFLOP", "earlier projects report"], rows)


def short_table(results):
    """The README's table, with one row per network.

    If a recipe was measured on several devices, its row is for the device with the most seeds, and among these for
    the fastest.
    """
    rows = []
    for recipe, network in TABLE_RECIPES.items():
        groups = group_by_device(recipe, results)
        if network and groups:
            runs = min(groups, key=lambda runs: (-len(runs), mean_train_seconds(runs)))
            rows.append([f"{network} ([`{recipe}`](recipes/{recipe}.txt))", *cells(runs)])
    return markdown_table(["network", *COLUMNS], rows)


def generated_blocks(results):
    """All generated text between markers: {(file, name of the markers): text}."""
    return {(RESULTS_PAGE, "results"): full_table(results), (README, "results"): short_table(results)}


def write_tables(results):
    """Generate the `# measured` lines of the recipes, and the tables in docs/results.md and README.md."""
    for recipe in TABLE_RECIPES:
        path = RECIPES / f"{recipe}.txt"
        parts = re.split(r"((?:^# measured: .*\n)+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if len(parts) != 3:
            raise UserError(f"{path} has no place for results; add a line that begins with # measured:")
        replace_text(path, f"{parts[0]}{measured_lines(recipe, results)}\n{parts[2]}")
    write_blocks(generated_blocks(results))


# Generated text in files


def split_at_markers(path, name):
    """Split a file at its lines `<!-- name -->` and `<!-- end of name -->`.

    Returns:
        The text up to and including the first marker, the text between the markers, and the rest.

    Raises:
        UserError: the file lacks the markers.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found_first, rest = path.read_text(encoding="utf-8").partition(first)
    between, found_last, after = rest.partition(last)
    if not (found_first and found_last):
        raise UserError(f"{path} has no place for generated text; add the lines {first.strip()} and {last.strip()}")
    return before + first, between, last + after


def write_blocks(blocks):
    """Put generated text, {(file, name of the markers): text}, between its markers."""
    for (path, name), block in blocks.items():
        before, _, after = split_at_markers(path, name)
        replace_text(path, f"{before}{block}\n{after}")


def replace_text(path, text):
    """Replace a text file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
