"""Run recipes, add one row per run to results.csv, and generate the tables of results from it.

    python benchmarks/reproduce.py                                  # every recipe, with its default seeds
    python benchmarks/reproduce.py cnn-12ep vit-fast --seeds 0 1    # some recipes
    python benchmarks/reproduce.py vit-layer6 --ship                # also copy the weights to where git tracks them
    python benchmarks/reproduce.py cnn-12ep --try                   # one epoch on few images; records no result
    python benchmarks/reproduce.py --tables                         # only generate the tables again

Each run is `python train.py @recipes/NAME.txt --seed SEED`, as a user would start it. Runs that are in results.csv are
skipped. If a run is interrupted, the same command resumes it, as long as the recipe and the commit are the same. Seed 0
of all recipes comes first. tables.py generates the tables, and a test checks that they match results.csv.

On a borrowed machine, `--minutes` stops in time, `--jobs` runs several recipes at once, and `--out` collects what must
be kept; at home, `--collect` puts it in place:

    python benchmarks/reproduce.py --minutes 25 --out out --commit $(git rev-parse HEAD)
    python benchmarks/reproduce.py --collect out --ship
"""

import collections
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train
from bundle import RUN_FILES, in_half_precision, pack, unpack
from tables import RECIPES, TABLE_RECIPES, Result, read_results, record, replace_text, run_name, write_tables
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.evaluation.metrics import predict, scores
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import LENGTH_FLAGS, Run, is_same_run
from vit_cifar10.runs.writer import git_commit
from vit_cifar10.utils.choices import DEVICES
from vit_cifar10.utils.cli import NON_NEGATIVE_INT, POSITIVE, POSITIVE_INT, ArgumentParser, command, not_empty
from vit_cifar10.utils.device import device_label, pick_device
from vit_cifar10.utils.errors import UserError

THREE_SEEDS = ("vit-fast", "vit-best", "cnn-fast")
SHIPPED = {  # the runs whose weights are in git, and the recipes that can provide them, the best recipe first
    "vit-layer6-32-cifar10": ("vit-layer6", "vit-layer6-36ep", "vit-laptop-layer6"),
    "vit-layer12-32-cifar10": ("deit-ti", "vit-layer12-36ep"),
    "cnn-32-cifar10": ("cnn-fast", "cnn-small", "cnn-12ep"),
    "vit-best-32-cifar10": ("vit-best",),
}
PATH_FLAGS = ("data_path", "model_path", "output_path", "resume")
FORWARDED = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
STOPPED = (129, 130, 143, -1, -2, -15)  # exit statuses of train.py after a stop signal; below 0 if it had just begun
TRY_FLAGS = shlex.split("--num_train_images 2048 --num_test_images 500 --num_workers 0")
ALONE_EPOCHS = 2
ALONE_FLAGS = shlex.split("--num_test_images 500")
MARGIN = 60  # seconds before the end of --minutes, left for compiling, saving, and packing the results


@dataclasses.dataclass
class Task:
    """A run of train.py: the flags that start it from the beginning, and its folders."""

    recipe: str
    seed: int
    flags: list
    folders: tuple
    log: Path | None = None  # where its messages go, if not to the terminal


def make_task(recipe, seed, args, name=None, more_flags=()):
    """The task that trains a recipe."""
    name = name or run_name(recipe, seed)
    folders = Path(args.model_path) / name, Path(args.output_path) / name
    flags = [f"@{RECIPES / recipe}.txt", "--seed", str(seed), "--run_name", name, "--overwrite", *more_flags]
    log = Path(args.output_path) / f"{name}.log" if args.jobs > 1 else None
    return Task(recipe, seed, flags, folders, log)


def length_flags(recipe, epochs):
    """Flags that train a recipe for other epochs, of which the same fraction uses images of half the side."""
    flags = train.parse([f"@{RECIPES / recipe}.txt"])
    small_epochs = flags.small_epochs * epochs / flags.epochs
    return ["--epochs", str(epochs), "--warmup_epochs", "0", "--small_epochs", str(small_epochs)]


# Running


def run_all(tasks, args, deadline, jobs=1):
    """Run tasks, `jobs` at a time, and yield each task with its exit status when it ends.

    After a stop signal, which goes on to the runs, or once `time.monotonic()` passes `deadline`, the runs save and end
    with a status in `STOPPED`, and no others start.
    """
    waiting, running, stops = collections.deque(tasks), {}, []
    with forwarded_signals(running, stops):
        while waiting or running:
            if time.monotonic() >= deadline and not stops:
                stops.append(signal.SIGTERM)
                for process in running:
                    process.terminate()
            while waiting and len(running) < jobs and not stops:
                task = waiting.popleft()
                running[start(task, args)] = task
            if not running:
                return
            with contextlib.suppress(KeyboardInterrupt):  # the terminal has sent Ctrl-C to the runs, too
                time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                if process.returncode in STOPPED:
                    stops.append(signal.SIGTERM)
                yield running.pop(process), process.returncode


@contextlib.contextmanager
def forwarded_signals(running, stops):
    """Send stop signals on to the running processes, and add them to `stops`."""

    def forward(number, _frame):
        stops.append(number)
        for process in running:
            process.send_signal(number)

    handlers = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start(task, args):
    """Start train.py, or resume it if the task has begun before. A complete run is only repeated if the user asks."""
    places = ["--data_path", args.data_path, "--device", args.device, "--output_path", args.output_path]
    if is_begun(task.flags, *task.folders, is_repeating=args.again or args.try_out):
        flags = ["--resume", str(task.folders[0])]
    else:
        flags = [*task.flags, "--model_path", args.model_path]
    if task.log:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{task.folders[0].name}: its messages go to {task.log}")
    with open(task.log or os.devnull, "a") as log:
        output = log if task.log else None
        return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags, *places], stdout=output, stderr=output)


def is_begun(flags, model_folder, output_folder, is_repeating=False):
    """Whether there is a run with these flags, begun with the code as it is now, that can be resumed.

    If `is_repeating`, a complete run does not count.
    """
    try:
        args = train.parse(flags)
        last = checkpoint.load_last(model_folder)
        config = Run(model_folder, output_folder).read_config()
    except (UserError, OSError, ValueError):
        return False
    if is_repeating and last["epoch"] >= args.epochs:
        return False
    is_as_long = all(last["recipe"][flag] == getattr(args, flag) for flag in LENGTH_FLAGS)
    return config.get("git_commit") == git_commit() and is_as_long and is_same_run(last["recipe"], vars(args))


def read_result(task, commit, jobs):
    """Read the `Result` of a finished run from the run's files."""
    model_folder, output_folder = task.folders
    best = checkpoint.load(model_folder)
    epochs = checkpoint.load(model_folder, "last.pt")["training"]["rows"]
    config = json.loads((output_folder / "config.json").read_text())
    val_images = config["val_images"]
    return Result(
        task.recipe,
        task.seed,
        test_accuracy=round(best["metrics"]["test_accuracy"], 4),
        val_accuracy=best["metrics"]["val_accuracy"],
        kept=f"best of {val_images} validation images" if val_images else "last epoch",
        epochs=len(epochs),
        parameters=config["parameters"],
        train_seconds=round(sum(epoch["train_seconds"] for epoch in epochs), 1) if jobs == 1 else None,
        total_seconds=round(sum(epoch["seconds"] for epoch in epochs), 1) if jobs == 1 else None,
        gpu_memory_gb=epochs[-1]["gpu_memory_gb"] and round(epochs[-1]["gpu_memory_gb"], 2),
        device=cpu_label(config["threads"]) if config["device"] == "cpu" else config["device"],
        precision=config["precision"],
        torch=config["versions"]["torch"].split("+")[0],
        commit=commit,
        date=date.today().isoformat(),
        jobs=jobs,
    )


def cpu_label(threads):
    """Return the table's label for a CPU with this number of threads."""
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def time_alone(result, args, deadline):
    """The seconds that a recipe trains if nothing else does, from a run of two epochs; None if time runs out.

    This is the time of the second epoch, multiplied by the number of epochs. With `--small_epochs` or `--keep_patches`,
    epochs differ; the short run then divides its steps in the same way, and the mean of both epochs is multiplied.
    """
    flags = [*ALONE_FLAGS, *length_flags(result.recipe, ALONE_EPOCHS)]
    task = make_task(result.recipe, 0, args, f"{result.recipe}-alone", flags)
    statuses = [status for _, status in run_all([task], args, deadline)]
    if statuses != [0]:
        return None
    rows = checkpoint.load(task.folders[0], checkpoint.LAST)["training"]["rows"]
    recipe = train.parse(task.flags)
    timed = rows if recipe.small_epochs or recipe.keep_patches < 1 else rows[1:]
    return round(result.epochs * statistics.mean(row["train_seconds"] for row in timed), 1)


# Shipping


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
    run = run_name(recipe, 0)
    state = in_half_precision(checkpoint.load(Path(args.model_path) / run))
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
    for file in RUN_FILES:
        shutil.copy(Path(args.output_path) / run / file, output_folder)
    config = json.loads((output_folder / "config.json").read_text())
    config |= {"flags": state["recipe"], "machine": config["machine"].split("-")[0]}
    replace_text(output_folder / "config.json", json.dumps(config, indent=2) + "\n")
    size = (folder / "best.pt").stat().st_size / 1e6
    print(f"{folder}: test accuracy {100 * measured['accuracy']:.2f} %, {size:.1f} MB")


# The command


def build_parser():
    parser = ArgumentParser(
        prog="reproduce.py", description="Run recipes, record their results and generate the tables of results."
    )
    add = parser.add_argument
    add("recipes", nargs="*", metavar="RECIPE", help="recipes to run, such as cnn-12ep; default: all for CIFAR-10")
    seeds = "seeds to train with; default: 0 1 2 for vit-fast, vit-best and cnn-fast, otherwise 0"
    add("--seeds", nargs="+", type=NON_NEGATIVE_INT, help=seeds)
    add("--again", action="store_true", help="repeat runs that are in results.csv already")
    add("--ship", action="store_true", help="copy seed 0's weights, in half precision, to the run folders in git")
    add("--try", dest="try_out", action="store_true", help="train one epoch on few images and record no result")
    add("--tables", action="store_true", help="only regenerate the tables from results.csv, without running recipes")
    minutes = "end within this time: stop the runs and save them; the same command goes on"
    add("--minutes", type=POSITIVE, metavar="M", help=minutes)
    jobs = "recipes that train at the same time; at the end, each trains two epochs alone to measure its time"
    add("--jobs", type=POSITIVE_INT, default=1, metavar="N", help=jobs)
    add("--commit", type=not_empty, metavar="HASH", help="commit to record, for a copy of the code without .git")
    out = "after every run, collect its results, records and, with seed 0, weights in this folder, in small files"
    add("--out", type=not_empty, metavar="DIR", help=out)
    collect = "put what --out has collected in place, without running recipes"
    add("--collect", type=not_empty, metavar="DIR", help=collect)
    add("--dataset", choices=DATASETS, help="data set to --try recipes on")
    add("--data_path", default=str(ROOT / "data"), help="folder of the data set")
    add("--device", choices=DEVICES, default="auto", help="device to train on")
    add("--model_path", default=str(ROOT / "model"), help="folder for the runs' checkpoints")
    add("--output_path", default=str(ROOT / "output"), help="folder for the runs' metrics and pictures")
    return parser


def check_flags(args):
    """Raise `UserError` for flags that do not fit each other."""
    unknown = [recipe for recipe in args.recipes if recipe not in TABLE_RECIPES]
    if unknown:
        raise UserError(f"the table has no recipe {unknown[0]}; choose from {', '.join(TABLE_RECIPES)}")
    if args.dataset and not args.try_out:
        raise UserError(f"results.csv is for CIFAR-10 only; add --try to run a recipe with --dataset {args.dataset}")
    if args.ship and args.seeds and 0 not in args.seeds:
        raise UserError("--ship copies the weights of seed 0, which is not among --seeds; add 0 to --seeds")
    if args.out and args.try_out:
        raise UserError("--try records no results that --out could collect; leave out one of the two")


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    check_flags(args)
    if args.tables:
        write_tables(read_results())
    elif args.collect:
        collect(args)
    elif args.try_out:
        try_out(args)
    else:
        reproduce(args)


def collect(args):
    """Put packed runs in place, record their results, and ship their weights if `args.ship`."""
    results = unpack(Path(args.collect), args.model_path, args.output_path)
    for result in results:
        record(result)
        print(result)
    for result in results:
        ship_if_wanted(result, args)


def try_out(args):
    """Train each recipe for one epoch on few images."""
    more = [*TRY_FLAGS, *(("--dataset", args.dataset) if args.dataset else ())]
    tasks = [
        make_task(recipe, 0, args, f"{recipe}-try", [*more, *length_flags(recipe, epochs=1)])
        for recipe in args.recipes or TABLE_RECIPES
    ]
    statuses = []
    for task, status in run_all(tasks, args, deadline_of(args), args.jobs):
        statuses.append((task, status))
        if status == 0:
            print(read_result(task, args.commit or git_commit() or "unknown", args.jobs))
    report(tasks, statuses)


def reproduce(args):
    """Run the recipes and record their results."""
    commit = args.commit or git_commit() or "unknown"
    deadline, tasks, statuses = deadline_of(args), list(remaining_tasks(args)), []
    for task, status in run_all(tasks, args, deadline, args.jobs):
        statuses.append((task, status))
        if status == 0:
            result = read_result(task, commit, args.jobs)
            keep(result, args)
            ship_if_wanted(result, args)
    is_stopped = any(status in STOPPED for _, status in statuses) or len(statuses) < len(tasks)
    for result in () if is_stopped else trained_here(args):
        if result.train_seconds is None:
            seconds = time_alone(result, args, deadline)
            if seconds is not None:
                keep(dataclasses.replace(result, train_seconds=seconds), args)
    report(tasks, statuses)


def remaining_tasks(args):
    """The tasks that are not in results.csv, seed 0 of all recipes first."""
    label = label_of(args)
    measured = {result.key for result in read_results()}
    recipes = args.recipes or TABLE_RECIPES
    for seed in args.seeds or (0, 1, 2):
        for recipe in recipes:
            if not args.seeds and seed and recipe not in THREE_SEEDS:
                continue
            if (recipe, seed, label) in measured and not args.again:
                print(f"{recipe}, seed {seed}: in results.csv already; add --again to repeat it")
            else:
                yield make_task(recipe, seed, args)


def keep(result, args):
    """Record a result, and pack all that this machine has recorded if `args.out`."""
    record(result)
    print(result)
    if args.out:
        pack(Path(args.out), result, trained_here(args), args.model_path, args.output_path)


def trained_here(args):
    """The results of runs that were trained on this device and are in `args.model_path`."""
    label = label_of(args)
    results = [result for result in read_results() if result.device == label]
    return [result for result in results if (Path(args.model_path) / result.run_name / checkpoint.LAST).exists()]


def label_of(args):
    """The name of the device in results.csv."""
    device = pick_device(args.device)
    return cpu_label(torch.get_num_threads()) if device.type == "cpu" else device_label(device)


def ship_if_wanted(result, args):
    """Ship the weights of a run with seed 0, unless those of a better recipe are measured already."""
    name = shipped_name(result.recipe, read_results())
    if args.ship and result.seed == 0 and name:
        ship(result.recipe, name, args)


def deadline_of(args):
    """When to stop the runs, as a time of `time.monotonic()`."""
    if args.minutes is None:
        return float("inf")
    return time.monotonic() + 60 * args.minutes - min(MARGIN, 30 * args.minutes)


def report(tasks, statuses):
    """End with an error if runs have failed, or with status 143 if some have been stopped or have not begun."""
    failures = [(task, status) for task, status in statuses if status and status not in STOPPED]
    if failures:
        lines = [f"{task.folders[0].name} failed with exit status {status}" for task, status in failures]
        where = failures[0][0].log or "the messages of train.py above"
        raise UserError(f"{'; '.join(lines)}; see {where}")
    if sum(status == 0 for _, status in statuses) < len(tasks):
        print("not all runs are complete; the same command goes on", file=sys.stderr)
        sys.exit(143)


if __name__ == "__main__":
    main()
