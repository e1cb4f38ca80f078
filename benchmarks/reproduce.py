"""Run recipes, add one row per run to results.csv, and generate the tables of results from it.

    python benchmarks/reproduce.py                                  # every recipe of the table, seed 0
    python benchmarks/reproduce.py cnn-12ep fast-cnn --seeds 0 1    # some recipes
    python benchmarks/reproduce.py fast-cnn --try                   # one epoch on few images; records no result
    python benchmarks/reproduce.py --record model/RUN               # a finished run of a recipe, trained by train.py
    python benchmarks/reproduce.py --tables                         # only generate the tables again

Each run is `python train.py @recipes/NAME.txt --seed SEED`, as a user would start it. Runs that are in results.csv are
skipped. A run that was interrupted is continued by the same command. tables.py generates the tables, and a test checks
that they match results.csv.
"""

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train
from cost import epoch_flops
from tables import RECIPES, TABLE_RECIPES, Result, read_results, record, write_tables
from vit_cifar10.evaluation.comparison import read_record
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import LENGTH_FLAGS, Run, find_run, is_same_run, resume_command
from vit_cifar10.training.signals import STOPPING
from vit_cifar10.utils.choices import DEVICES
from vit_cifar10.utils.cli import NON_NEGATIVE_INT, ArgumentParser, command
from vit_cifar10.utils.device import device_label, pick_device
from vit_cifar10.utils.errors import UserError

FEW_IMAGES = ["--num_train_images", "2048", "--num_test_images", "500", "--num_workers", "0"]


def run_all(args):
    """Train the recipes one after the other, seed 0 of all recipes first, and record each result."""
    measured, failed = {result.key for result in read_results()}, []
    device = device_name(device_label(pick_device(args.device)), torch.get_num_threads())
    for seed, recipe in itertools.product(args.seeds, args.recipes):
        name = f"{recipe}-seed{seed}"
        run = Run(Path(args.model_path) / name, Path(args.output_path) / name)
        if (recipe, seed, device) in measured and not args.again:
            print(f"{recipe}, seed {seed}: in results.csv already; add --again to repeat it")
        elif complete_run(run, recipe, seed, args):
            record_run(run)
        else:
            failed.append(name)
    if failed:
        raise UserError(f"{', '.join(failed)} failed; see the messages of train.py above")


def complete_run(run, recipe, seed, args):
    """Train a recipe, or continue its run if there is one. Return whether all of it is trained."""
    _, _, config, _ = read_record(run)
    if args.again or not (config and run.last_path.exists()):
        flags = [f"@{RECIPES / recipe}.txt", "--seed", str(seed), "--run_name", run.model_folder.name, "--overwrite"]
        return run_training([*flags, "--model_path", args.model_path], args)
    if (recipe_of(config["flags"]), config["flags"]["seed"]) != (recipe, seed):
        raise UserError(f"{run.model_folder} has other flags than {recipe}.txt; move it away, or add --again")
    return is_complete(run) or run_training(["--resume", str(run.model_folder)], args)


def try_out(args):
    """Train each recipe for one epoch on few images."""
    for recipe in args.recipes:
        if not run_training([*try_flags(recipe), "--model_path", args.model_path], args):
            raise UserError(f"{recipe} failed; see the messages of train.py above")


def try_flags(recipe):
    """Flags that train a recipe for one epoch, of which the same fraction uses images of half the side."""
    recipe_flag = f"@{RECIPES / recipe}.txt"
    flags = train.parse([recipe_flag])
    length = ["--epochs", "1", "--warmup_epochs", "0", "--small_epochs", str(flags.small_epochs / flags.epochs)]
    return [recipe_flag, "--run_name", f"{recipe}-try", "--overwrite", *FEW_IMAGES, *length]


def run_training(flags, args):
    """Run train.py, and return whether it succeeded.

    A signal that stops this process goes to train.py, which saves the run; this process then ends with its status.
    """
    places = ["--data_path", args.data_path, "--device", args.device, "--output_path", args.output_path]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags, *places])
    received = []

    def forward(number, _frame):
        received.append(number)
        if number != signal.SIGINT:  # the terminal sends Ctrl-C to both processes
            process.send_signal(number)

    numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    handlers = {number: signal.signal(number, forward) for number in numbers}
    status = process.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if received:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + received[0])
    return status == 0


# Results


def record_run(run):
    """Add the row of a complete run to results.csv.

    Raises:
        UserError: the run has no record, is not complete, or was not trained with a recipe of the table.
    """
    epochs, _, config, _ = read_record(run)
    if not config:
        raise UserError(f"{run.output_folder} has no config.json that can be read; give a run of train.py")
    recipe = recipe_of(config["flags"])
    if recipe is None:
        raise UserError(f"{run.name} was trained with other flags than the recipes in the table")
    if not is_complete(run):
        raise UserError(f"{run.name} is not finished; continue it with {resume_command(run.model_folder)}")
    metrics, val_images = checkpoint.load(run.model_folder)["metrics"], config["val_images"]
    memory = epochs[-1]["gpu_memory_gb"]
    result = Result(
        recipe,
        config["flags"]["seed"],
        test_accuracy=round(metrics["test_accuracy"], 4),
        six_views=read_six_views(run),
        val_accuracy=metrics["val_accuracy"],
        kept=f"best of {val_images} validation images" if val_images else "last epoch",
        epochs=len(epochs),
        parameters=config["parameters"],
        pflop=round(sum(epoch_flops(config)) / 1e15, 3),
        train_seconds=round(sum(epoch["train_seconds"] for epoch in epochs), 1),
        total_seconds=round(sum(epoch["seconds"] for epoch in epochs), 1),
        gpu_memory_gb=memory and round(memory, 2),
        device=device_name(config["device"], config["threads"]),
        precision=config["precision"],
        torch=config["versions"]["torch"].split("+")[0],
        commit=config["git_commit"] or "unknown",
        date=config["started"][:10],
    )
    record(result)
    print(result)


def read_six_views(run):
    """The accuracy with six views from the test_results.json of a run's best.pt; None if `--tta` was not measured."""
    try:
        results = json.loads((run.output_folder / "test_results.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    is_of_run = results["checkpoint_sha256"] == checkpoint.hash_file(run.checkpoint_path)
    return round(results["six_views"]["accuracy"], 4) if is_of_run and "six_views" in results else None


def is_complete(run):
    """Whether all epochs of a run are in its metrics.csv."""
    epochs, is_cut, config, _ = read_record(run)
    return bool(config and epochs and not is_cut) and epochs[-1]["epoch"] == config["flags"]["epochs"]


def recipe_of(flags):
    """The recipe of the table that a run's flags belong to, whatever its seed; None if there is none."""
    for recipe in TABLE_RECIPES:
        own = vars(train.parse([f"@{RECIPES / recipe}.txt"])) | {name: flags[name] for name in ("seed", "run_name")}
        if is_same_run(own, flags) and all(own[flag] == flags[flag] for flag in LENGTH_FLAGS):
            return recipe
    return None


def device_name(device, threads):
    """The name of a device in results.csv."""
    return f"{threads} CPU thread{'s' if threads > 1 else ''}" if device == "cpu" else device


# The command


@command
def main(argv=None):
    parser = ArgumentParser(prog="reproduce.py", description=__doc__.split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("recipes", nargs="*", metavar="RECIPE", help="recipes to run, such as cnn-12ep; default: all of the table")
    add("--seeds", nargs="+", type=NON_NEGATIVE_INT, default=[0], help="seeds to train with; default: 0")
    add("--again", action="store_true", help="repeat runs that are in results.csv already")
    add("--try", dest="try_out", action="store_true", help="train one epoch on few images and record no result")
    add("--record", metavar="RUN", help="record this finished run of a recipe: its name or folder")
    add("--tables", action="store_true", help="only generate the tables from results.csv, without running recipes")
    add("--data_path", default=str(ROOT / "data"), help="folder of the data set")
    add("--device", choices=DEVICES, default="auto", help="device to train on")
    add("--model_path", default=str(ROOT / "model"), help="folder for the runs' checkpoints")
    add("--output_path", default=str(ROOT / "output"), help="folder for the runs' metrics and pictures")
    args = parser.parse_args(argv)
    unknown = [recipe for recipe in args.recipes if recipe not in TABLE_RECIPES]
    if unknown:
        raise UserError(f"the table has no recipe {unknown[0]}; choose from {', '.join(TABLE_RECIPES)}")
    args.recipes = args.recipes or list(TABLE_RECIPES)
    if args.tables:
        write_tables(read_results())
    elif args.record:
        record_run(find_run(args.record, args.model_path, args.output_path))
    elif args.try_out:
        try_out(args)
    else:
        run_all(args)


if __name__ == "__main__":
    main()
