"""A run's folders: the names of its files, reading them, and finding the run that a user means.

    model/<run>/   best.pt, last.pt and previous.pt; see checkpoint.py
    output/<run>/  config.json, metrics.csv, curves.png and history.pt from train.py; test_results.json, test_logits.pt
                   and pictures from test.py

run = find_run("vit", "./model", "./output")      # by name, folder or checkpoint
network = load_network(run.checkpoint_path, device)
metrics, is_cut = run.read_metrics()
"""

import contextlib
import json
import os
import shlex
from pathlib import Path

from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.metrics_csv import read_metrics
from vit_cifar10.runs.schema import ANYTHING, CONFIG, METRICS, TEXT, Invalid, check
from vit_cifar10.runs.trackers import TRACKING_FOLDERS
from vit_cifar10.runs.untrusted import load_untrusted
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import ROOT, read_text
from vit_cifar10.utils.text import printable

TRAINING_FILES = (*checkpoint.NAMES, "config.json", "metrics.csv", "curves.png", "history.pt")
TEST_FILES = ("test_results.json", "test_logits.pt", "confusion_matrix.png", "reliability.png", "mistakes.png")
PREDICTION_FILES = ("predictions.csv", "embeddings.npz", "overview.png")  # that test.py writes if they are asked for
FAITHFULNESS_FILES = ("faithfulness.csv", "faithfulness_methods.csv", "faithfulness.png", "faithfulness.pt")
ROBUSTNESS_FILE = "robustness.pt"
SHIPPED_VIT = "vit-layer12-32-cifar10"  # the network that test.py takes if none has been trained

# Flags about where and how a run executes, not about what it computes.
RUNTIME_FLAGS = {"resume", "device", "num_workers", "compile", "log", "save_every", "save_minutes"}
RUNTIME_FLAGS |= {"data_path", "model_path", "output_path"}
LENGTH_FLAGS = ("epochs", "warmup_epochs")  # flags that set how long a run takes


class Run:
    """One run: its folder of checkpoints and its folder of records.

    `named_checkpoint` is the file that the user typed, or None if the user typed a folder or a name.
    """

    def __init__(self, model_folder, output_folder, named_checkpoint=None):
        self.model_folder = model_folder
        self.output_folder = output_folder
        self.named_checkpoint = named_checkpoint

    @property
    def name(self):
        """The name of the run's folder; characters that cannot be printed are replaced."""
        return printable(self.model_folder.resolve().name)

    @property
    def folders(self):
        return self.model_folder, self.output_folder

    @property
    def checkpoint_path(self):
        """The checkpoint to test: the one that the user typed, or best.pt."""
        return self.named_checkpoint or self.model_folder / checkpoint.BEST

    @property
    def last_path(self):
        return self.model_folder / checkpoint.LAST

    @property
    def config_path(self):
        return self.output_folder / "config.json"

    @property
    def metrics_path(self):
        return self.output_folder / "metrics.csv"

    @property
    def curves_path(self):
        return self.output_folder / "curves.png"

    @property
    def history_path(self):
        return self.output_folder / "history.pt"

    def read_metrics(self):
        """The epochs in metrics.csv and whether its last line was cut off; see `read_metrics`.

        Raises:
            OSError, ValueError: the file cannot be read, or its numbers are out of range.
        """
        epochs, is_cut = read_metrics(self.metrics_path)
        check(epochs, [METRICS], "rows")
        return epochs, is_cut

    def read_config(self):
        """Read config.json.

        Raises:
            OSError, ValueError: the file cannot be read, or its entries are of wrong types.
        """
        try:
            config = json.loads(read_text(self.config_path, longest=1_000_000))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        check(config, CONFIG)
        return config


def find_run(typed, model_path="./model", output_path="./output", names=(checkpoint.BEST,)):
    """The run that a user means by its name, its folder under model/ or output/, or a checkpoint in it.

    Args:
        typed: what the user typed. A name, or a folder in `output_path`, is also looked up in `model_path` and, for the
            networks that ship, in the repository.
        names: the checkpoints of which the run's folder must hold at least one.

    Raises:
        UserError: there is no such run.
    """
    if not str(typed):
        raise UserError("the name of the run is empty; give a run's name, its folder, or a checkpoint in it")
    path = Path(typed)
    is_record = path.is_dir() and os.path.realpath(path.parent) == os.path.realpath(output_path)
    is_name = len(path.parts) == 1 or is_record
    for place in (path, Path(model_path) / path.name, ROOT / "model" / path.name) if is_name else (path,):
        if place.is_file():
            return _run_in(place.parent, output_path, place)
        if any((place / name).is_file() for name in names):
            return _run_in(place, output_path)
        if any((place / name).is_file() for name in checkpoint.NAMES):
            raise UserError(f"{place} has no {checkpoint.BEST} yet; continue the run with {resume_command(place)}")
    raise UserError(
        f"there is no checkpoint of {typed}; give a run's name, its folder under {model_path}, or a checkpoint in it"
    )


def _run_in(folder, output_path, named_checkpoint=None):
    return Run(folder, Path(output_path) / folder.resolve().name, named_checkpoint)


def resume_command(model_folder):
    """The command that continues the run in a folder of checkpoints."""
    return f"python train.py --resume {shlex.quote(str(model_folder))}"


def has_record(folder, recipe):
    """Whether a folder contains the record of the run with this recipe. None if it contains no readable record."""
    with contextlib.suppress(OSError, ValueError):
        return is_same_run(recipe, Run(folder, folder).read_config()["flags"])
    with contextlib.suppress(UserError, Invalid):  # train.py writes both
        history = load_untrusted(folder / "history.pt")
        check(history, {"config": CONFIG, TEXT: ANYTHING})
        return is_same_run(recipe, history["config"]["flags"])
    return None


def check_record(folder, recipe):
    """Raise `UserError` if a folder contains the record of another run than the one with this recipe."""
    if has_record(folder, recipe) is False:
        raise UserError(f"{folder} contains the record of another run; choose another --output_path")


def check_may_train(folder, recipe):
    """Raise `UserError` if training the run with this recipe would overwrite what is not its own in a folder."""
    check_record(folder, recipe)
    records = [name for name in (*TRAINING_FILES, *TRACKING_FOLDERS) if name not in checkpoint.NAMES]
    found = [name for name in records if (folder / name).exists()]
    if found and not has_record(folder, recipe):
        raise UserError(
            f"{folder} contains {found[0]}, but no readable config.json that shows that it belongs to this run; move it"
            " away, or choose another --output_path"
        )


def is_same_run(recipe, flags):
    """Whether a record's flags equal a network's recipe, except for those that a resume may change or that are new.

    A record that lacks most of the flags is not the run's.
    """
    own = recipe.keys() - {"overwrite", *LENGTH_FLAGS, *RUNTIME_FLAGS}
    compared = own & flags.keys()
    return 2 * len(compared) >= len(own) and all(recipe[flag] == flags[flag] for flag in compared)


def last_trained_run(model_path="./model", output_path="./output"):
    """The run under `model_path` that was trained last on this machine, or None.

    The networks that ship have no last.pt, so they do not count.
    """
    last = [path for path in Path(model_path).glob(f"*/{checkpoint.LAST}") if path.with_name(checkpoint.BEST).exists()]
    if not last:
        return None
    return _run_in(max(last, key=lambda path: path.stat().st_mtime).parent, output_path)
