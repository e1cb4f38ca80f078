"""Run recipes, add one row per run to results.csv, and generate the tables of results from it.

    python benchmarks/reproduce.py                                  # every recipe, with its default seeds
    python benchmarks/reproduce.py cnn-12ep vit-fast --seeds 0 1    # some recipes
    python benchmarks/reproduce.py vit-layer6 --ship                # also copy the weights to where git tracks them
    python benchmarks/reproduce.py cnn-12ep --try                   # one epoch on few images; records no result
    python benchmarks/reproduce.py --tables                         # only generate the tables again

Each run is `python train.py @recipes/NAME.txt --seed SEED`, as a user would start it. If it is interrupted, the same
command resumes it, as long as the recipe and the commit are the same. Three things are generated from
results.csv: the tables in docs/results.md, the short table in README.md, and the `# measured` lines of the recipes. A
test checks that they match results.csv.
"""

import contextlib
import csv
import dataclasses
import json
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train
from vit_cifar10.evaluation.metrics import predict, scores
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import Run, is_same_run
from vit_cifar10.runs.writer import git_commit
from vit_cifar10.utils.choices import DATASETS, DEVICES
from vit_cifar10.utils.cli import NON_NEGATIVE_INT, ArgumentParser, command
from vit_cifar10.utils.device import pick_device
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
    "vit-layer12",
    "vit-layer6",
    "vit-256x8",
    "vit-patch8-12ep",
    "cnn-12ep",
    "cnn-small",
    "vit-laptop",
    "vit-laptop-layer6",
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
    "vit-laptop": "ViT, 12 layers, 192 wide",
    "vit-laptop-layer6": "ViT, 6 layers, 192 wide",
    "vit-patch8-12ep": "ViT, 6 layers, 8-pixel patches",
    "cnn-12ep": "CNN, 4 convolutions",
}
HEADLINE_ROWS = 5
THREE_SEEDS = ("vit-fast", "vit-best", "cnn-fast")
SHIPPED = {  # the runs whose weights are in git, and the recipes that can provide them, the best recipe first
    "vit-layer6-32-cifar10": ("vit-layer6", "vit-laptop-layer6"),
    "vit-layer12-32-cifar10": ("deit-ti", "vit-laptop"),
    "cnn-32-cifar10": ("cnn-fast", "cnn-12ep"),
    "vit-best-32-cifar10": ("vit-best",),
}
PATH_FLAGS = ("data_path", "model_path", "output_path", "resume")
FORWARDED = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
STOPPED = (129, 130, 143)  # exit statuses of train.py after a stop signal
TRY_FLAGS = shlex.split("--epochs 1 --warmup_epochs 0 --num_train_images 1000 --num_test_images 500 --num_workers 0")


@dataclasses.dataclass
class Result:
    """One row of results.csv: one run of a recipe.

    Accuracies are fractions between 0 and 1, times are in seconds, and memory is in units of 10^9 bytes.
    `train_seconds` is the time of the training steps; the first step, which compiles, counts as an average one.
    `total_seconds` is the time of all epochs, including compilation and evaluation. `kept` tells how the weights were
    chosen.
    """

    recipe: str
    seed: int
    test_accuracy: float
    val_accuracy: float | None
    kept: str
    epochs: int
    parameters: int
    train_seconds: float
    total_seconds: float
    gpu_memory_gb: float | None
    device: str
    precision: str
    torch: str
    commit: str
    date: str


def read_results():
    """Return the rows of results.csv, in order."""
    if not RESULTS.exists():
        return []
    with open(RESULTS, newline="") as file:
        return [parse_row(row) for row in csv.DictReader(file)]


def parse_row(row):
    """Convert a row of strings, {column: text}, to a `Result`."""
    types = {"int": int, "float": float, "str": str}
    values = {}
    for field in dataclasses.fields(Result):
        type_name, text = str(getattr(field.type, "__name__", field.type)), row[field.name]
        is_none = not text and "None" in type_name
        values[field.name] = None if is_none else types[type_name.split(" ", maxsplit=1)[0]](text)
    return Result(**values)


def write_results(results):
    """Replace results.csv."""
    with atomic_write(RESULTS) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result) for result in results)


# Running


def run(recipe, seed, commit, args):
    """Train a recipe with train.py and return its `Result`. The run's files stay in model/ and output/.

    Raises:
        UserError: train.py fails.
    """
    name = f"{recipe}-try" if args.try_out else f"{recipe}-seed{seed}"
    folders = Path(args.model_path) / name, Path(args.output_path) / name
    flags = [f"@{RECIPES / recipe}.txt", "--seed", str(seed), "--run_name", name, "--overwrite"]
    flags += ["--dataset", args.dataset, *(TRY_FLAGS if args.try_out else ())]
    places = ["--data_path", args.data_path, "--device", args.device, "--output_path", args.output_path]
    if is_begun(flags, commit, *folders):
        flags = ["--resume", str(folders[0])]
    else:
        flags += ["--model_path", args.model_path]
    status = train_and_wait([*flags, *places])
    if status in STOPPED:
        sys.exit(status)
    if status:
        raise UserError(f"{recipe} failed with exit status {status}; see the message of train.py above")
    return collect(recipe, seed, *folders, commit)


def is_begun(flags, commit, model_folder, output_folder):
    """Whether there is a run with these flags, begun with this commit, that can be resumed."""
    args = train.parse(flags)
    try:
        recipe = checkpoint.load_last(model_folder)["recipe"]
        config = Run(model_folder, output_folder).read_config()
    except (UserError, OSError, ValueError):
        return False
    return config.get("git_commit") == commit and is_same_run(recipe, vars(args))


def train_and_wait(flags):
    """Run train.py and return its exit status. Stop signals go to train.py, which saves before it ends."""
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags])
    handlers = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in FORWARDED}
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the terminal has sent Ctrl-C to train.py, too
                return process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def collect(recipe, seed, model_folder, output_folder, commit):
    """Read the `Result` of a finished run from the run's files."""
    best = checkpoint.load(model_folder)
    epochs = checkpoint.load(model_folder, "last.pt")["training"]["rows"]
    config = json.loads((output_folder / "config.json").read_text())
    val_images = config["val_images"]
    return Result(
        recipe,
        seed,
        test_accuracy=round(best["metrics"]["test_accuracy"], 4),
        val_accuracy=best["metrics"]["val_accuracy"],
        kept=f"best of {val_images} validation images" if val_images else "last epoch",
        epochs=len(epochs),
        parameters=config["parameters"],
        train_seconds=round(sum(epoch["train_seconds"] for epoch in epochs), 1),
        total_seconds=round(sum(epoch["seconds"] for epoch in epochs), 1),
        gpu_memory_gb=epochs[-1]["gpu_memory_gb"] and round(epochs[-1]["gpu_memory_gb"], 2),
        device=cpu_label(config["threads"]) if config["device"] == "cpu" else config["device"],
        precision=config["precision"],
        torch=config["versions"]["torch"].split("+")[0],
        commit=commit,
        date=date.today().isoformat(),
    )


def cpu_label(threads):
    """Return the table's label for a CPU with this number of threads."""
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def shipped_name(recipe, results):
    """Return the name of the run in git that a recipe provides the weights for.

    Returns None if there is no such run, or if a better recipe for it has already been measured.
    """
    for name, recipes in SHIPPED.items():
        if recipe in recipes:
            better_recipes = recipes[: recipes.index(recipe)]
            return None if any(result.recipe in better_recipes for result in results) else name
    return None


def ship(recipe, name, args):
    """Copy the half-precision weights, the metrics and the curves of a recipe's seed 0 to folders that git tracks.

    The test loss and accuracy in the shipped checkpoint are measured with the half-precision weights. The paths of
    this machine are replaced by the flags' defaults.
    """
    run_name = f"{recipe}-seed0"
    state = checkpoint.load(Path(args.model_path) / run_name)
    state["weights"] = {
        key: value.half() if value.is_floating_point() else value for key, value in state["weights"].items()
    }
    folder = ROOT / "model" / name
    checkpoint.save(folder / "best.pt", state)
    device = pick_device(args.device)
    network = checkpoint.load_network(folder, device)
    test = network.normalized_for(network.load_test_images(args.data_path))
    measured = scores(predict(network.model, test), test.labels)
    state["metrics"] |= {f"test_{quantity}": measured[quantity] for quantity in ("loss", "accuracy")}
    for flag in PATH_FLAGS:
        state["recipe"][flag] = train.build_parser().get_default(flag)
    checkpoint.save(folder / "best.pt", state)
    output_folder = ROOT / "output" / name
    output_folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "metrics.csv", "curves.png"):
        shutil.copy(Path(args.output_path) / run_name / file, output_folder)
    config = json.loads((output_folder / "config.json").read_text())
    config |= {"flags": state["recipe"], "machine": config["machine"].split("-")[0]}
    replace_text(output_folder / "config.json", json.dumps(config, indent=2) + "\n")
    size = (folder / "best.pt").stat().st_size / 1e6
    print(f"{folder}: test accuracy {100 * measured['accuracy']:.2f} %, {size:.1f} MB")


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
        "time": duration(mean_train_seconds(runs)),
        "device": last.device,
        "precision": last.precision,
        "torch": last.torch,
        "kept": last.kept,
        "memory": "" if last.gpu_memory_gb is None else f", {last.gpu_memory_gb:g} GB",
        "epochs": str(last.epochs),
        "parameters": f"{last.parameters / 1e6:.2f} M",
    }


def mean_train_seconds(runs):
    return statistics.mean(result.train_seconds for result in runs)


def duration(seconds):
    """Format a duration in seconds, minutes or hours, such as "8.3 s", "61 s", "19 min" or "1.8 h"."""
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
        f" {row['time']} of training{row['memory']}, {row['device']}, {row['precision']}, torch {row['torch']}"
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
    for (path, name), block in generated_blocks(results).items():
        before, _, after = split_at_markers(path, name)
        replace_text(path, f"{before}{block}\n{after}")


def replace_text(path, text):
    """Replace a text file, completely or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text)


def build_parser():
    parser = ArgumentParser(
        prog="reproduce.py", description="Run recipes, record their results and generate the tables of results."
    )
    add = parser.add_argument
    add("recipes", nargs="*", metavar="RECIPE", help="recipes to run, such as cnn-12ep; default: all for CIFAR-10")
    seeds = "seeds to train with; default: 0 1 2 for vit-fast, vit-best and cnn-fast, otherwise 0"
    add("--seeds", nargs="+", type=NON_NEGATIVE_INT, help=seeds)
    add("--ship", action="store_true", help="copy seed 0's weights, in half precision, to the run folders in git")
    add("--try", dest="try_out", action="store_true", help="train one epoch on few images and record no result")
    add("--tables", action="store_true", help="only regenerate the tables from results.csv, without running recipes")
    add("--dataset", choices=DATASETS, default="cifar10", help="data set; all except cifar10 need --try")
    add("--data_path", default=str(ROOT / "data"), help="folder of the data set")
    add("--device", choices=DEVICES, default="auto", help="device to train on")
    add("--model_path", default=str(ROOT / "model"), help="folder for the runs' checkpoints")
    add("--output_path", default=str(ROOT / "output"), help="folder for the runs' metrics and pictures")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.tables:
        write_tables(read_results())
        return
    recipes = args.recipes or list(TABLE_RECIPES)
    unknown = [recipe for recipe in recipes if recipe not in TABLE_RECIPES]
    if unknown:
        raise UserError(f"the table has no recipe {unknown[0]}; choose from {', '.join(TABLE_RECIPES)}")
    if args.dataset != "cifar10" and not args.try_out:
        raise UserError(f"results.csv is for CIFAR-10 only; add --try to run a recipe with --dataset {args.dataset}")
    if args.ship and args.seeds and 0 not in args.seeds:
        raise UserError("--ship copies the weights of seed 0, which is not among --seeds; add 0 to --seeds")
    commit = git_commit() or "unknown"  # read now, because a changed results.csv makes it "-dirty"
    for recipe in recipes:
        seeds = args.seeds or ([0, 1, 2] if recipe in THREE_SEEDS and not args.try_out else [0])
        for seed in seeds:
            result = run(recipe, seed, commit, args)
            print(result)
            if not args.try_out:
                others = [
                    other
                    for other in read_results()
                    if (other.recipe, other.seed, other.device) != (result.recipe, result.seed, result.device)
                ]
                write_results([*others, result])
                write_tables(read_results())
        name = shipped_name(recipe, read_results())
        if args.ship and name and not args.try_out:
            ship(recipe, name, args)


if __name__ == "__main__":
    main()
