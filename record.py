"""What a run leaves behind: its two folders, and the history of its epochs in them.

model/<run>/   best.pt, last.pt
output/<run>/  config.json, metrics.csv, curves.png, and history.pt, which is the first two as a PyTorch file
"""

import csv
import json
import platform
import shutil
import subprocess
import sys
import time
import uuid
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import torchvision

import checkpoint
import results
from figures import save_curves
from runtime import UserError, device_label, make_folder, replacing, save_tensors
from tracking import TRACKING_FOLDERS, Tracker


def open_record(args, resumed):
    """The record of a new run, or that of the run to resume; `begin` makes its folders.

    Raises:
        UserError: a run of that name exists already.
    """
    if resumed:
        folder = Path(args.resume)
        folder = (folder if folder.is_dir() else folder.parent).resolve()
        return Record(folder, Path(args.output_path) / folder.name, "resume")
    name = args.run_name or default_name(args)
    record = Record(Path(args.model_path) / name, Path(args.output_path) / name, "replace" if args.overwrite else "new")
    record.may_rename = not args.run_name
    for folder in record.folders:
        if folder.exists() and args.run_name and not args.overwrite:
            raise UserError(f"{folder} exists already; choose another --run_name, or add --overwrite to replace it")
    return record


def default_name(args):
    """Network, depth, image size, data set and time: vit-layer12-32-cifar10-20260131-235959."""
    network = f"vit-layer{args.n_layers}" if args.model == "vit" else args.model
    return f"{network}-{args.image_size}-{args.dataset}-{datetime.now():%Y%m%d-%H%M%S}"


class Record:
    """A run's folders and history.

    `rows` are the epochs' metrics; `best` is the row of the highest validation accuracy, or of the last epoch if no
    images are held out.
    """

    FILES = ("best.pt", "last.pt", "config.json", "metrics.csv", "curves.png", "history.pt")
    TEST_FILES = (*results.FILES, "faithfulness.csv", "faithfulness.png")

    def __init__(self, model_folder, output_folder, mode):
        self.name = model_folder.name
        self.model_folder = model_folder
        self.output_folder = output_folder
        self.mode = mode
        self.may_rename = False
        self.rows = []
        self.best = None
        self.best_state = None  # not yet written
        self.config = None
        self.tracker = Tracker()
        self.saved_epoch = 0
        self.save = Paced(self.write)
        self.draw = Paced(self.draw_curves)

    @property
    def folders(self):
        return self.model_folder, self.output_folder

    def begin(self):
        """Make both folders, for this run alone if it is new; a run that is replaced loses all its files.

        Raises:
            UserError: they cannot be written to, or another run has taken the name meanwhile. No new folder is left.
        """
        if self.may_rename and any(folder.exists() for folder in self.folders):  # two runs within a second
            self.name += f"-{uuid.uuid4().hex[:6]}"
            self.model_folder, self.output_folder = (folder.with_name(self.name) for folder in self.folders)
        missing = [place for folder in self.folders for place in (folder, *folder.parents) if not place.exists()]
        try:
            for folder in self.folders:
                make_folder(folder, new=self.mode == "new")
        except UserError:
            remove_empty(missing)
            raise
        self.made = missing
        if self.mode == "replace":
            for folder in self.folders:
                for file in (*self.FILES, *self.TEST_FILES):
                    (folder / file).unlink(missing_ok=True)
            self.remove_tracking()

    def abandon(self):
        """Take back the folders of a run that was stopped before it had anything to keep."""
        self.tracker.close(failed=True)
        (self.output_folder / "config.json").unlink(missing_ok=True)
        self.remove_tracking()
        remove_empty(self.made)

    def remove_tracking(self):
        for folder in TRACKING_FOLDERS:
            shutil.rmtree(self.output_folder / folder, ignore_errors=True)

    def add(self, trainer, row, is_last):
        """Append an epoch to metrics.csv, remember the weights if they are the best, and write the rest when due."""
        self.rows.append(row)
        if len(self.rows) == 1:
            self.write_metrics()
        else:
            self.append_metrics(row)
        self.tracker.log(row)
        if row["val_accuracy"] is None:
            self.best = row
        elif self.best is None or row["val_accuracy"] > self.best["val_accuracy"]:
            self.best, self.best_state = row, trainer.inference_state(row)
        self.save(trainer, now=is_last)
        self.draw(now=is_last)
        curves = self.output_folder / "curves.png"
        if is_last and curves.exists():
            self.tracker.finish({"curves": curves})

    def write(self, trainer):
        """best.pt, last.pt and history.pt as of the last epoch."""
        state = trainer.inference_state(self.rows[-1])
        if self.rows[-1]["val_accuracy"] is None:  # nothing selects: the last weights are those to keep
            self.best_state = state
        self.write_best()
        training = {**trainer.training_state(), "rows": self.rows, "best": self.best}
        checkpoint.save(self.model_folder / "last.pt", {**state, "training": training})
        self.saved_epoch = self.rows[-1]["epoch"]
        save_tensors(self.output_folder / "history.pt", {"config": self.config, "rows": self.rows})

    def write_best(self):
        """best.pt, if it is due."""
        if self.best_state:
            checkpoint.save(self.model_folder / "best.pt", self.best_state)
            self.best_state = None

    def close(self, failed):
        """Write the best weights if a run ends before its time, and close what is open."""
        try:
            if self.rows:
                self.write_best()
        finally:
            self.tracker.close(failed)

    def append_metrics(self, row):
        path = self.output_folder / "metrics.csv"
        try:
            with open(path, "a", newline="") as file:
                csv.DictWriter(file, row).writerow(row)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}); is the disk full?") from error

    def write_metrics(self):
        """metrics.csv anew, with all the rows there are."""
        with replacing(self.output_folder / "metrics.csv") as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)

    def draw_curves(self):
        """curves.png; a picture that cannot be written, say while a viewer holds it, does not end the run."""
        try:
            save_curves(self.rows, self.output_folder / "curves.png", self.name)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)

    def restore(self, state):
        """Take over the history up to the epoch that is resumed from.

        best.pt may be from an epoch after that; then it is what a new best has to beat.
        """
        self.rows, self.best = state["rows"], state["best"]
        self.saved_epoch = self.rows[-1]["epoch"]
        if self.best["val_accuracy"] is not None and (self.model_folder / "best.pt").exists():
            kept = checkpoint.load(self.model_folder)["metrics"]
            if kept["val_accuracy"] > self.best["val_accuracy"]:
                self.best = kept
        self.write_metrics()


def remove_empty(folders):
    """Remove those of the folders that are empty, the deepest first."""
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class Paced:
    """Calls an action at once, and then as often as costs no more than a hundredth of the time, or once a minute.

    So checkpoints and pictures of epochs that take a second do not slow the run down.
    """

    def __init__(self, action, share=0.01, longest=60.0):
        self.action = action
        self.share = share
        self.longest = longest
        self.due = 0.0

    def __call__(self, *arguments, now=False):
        start = time.monotonic()
        if start < self.due and not now:
            return
        self.action(*arguments)
        end = time.monotonic()
        self.due = end + min((end - start) / self.share, self.longest)


def write_config(record, trainer):
    """config.json: flags, versions, commit, machine and sizes, enough to trust the run a month later.

    A resumed run keeps the one it began with.
    """
    path = record.output_folder / "config.json"
    if record.mode == "resume" and path.exists():
        record.config = json.loads(path.read_text())
        return
    record.config = {
        "flags": vars(trainer.args),
        "model_config": trainer.config,
        "parameters": count_parameters(trainer.model),
        "precision": trainer.precision,
        "compiled": trainer.forward is not trainer.model,
        "device": device_label(trainer.device),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
        },
        "git_commit": git_commit(),
        "train_images": len(trainer.train_split),
        "val_images": len(trainer.val_split or ()),
        "test_images": len(trainer.test_split),
        "started": datetime.now().isoformat(timespec="seconds"),
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(record.config, indent=2) + "\n")


def git_commit():
    """The commit of this code, with "-dirty" if it was changed since, or None where it is no git checkout."""
    hash_only = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]  # no tags
    command = ["git", "-C", str(Path(__file__).parent), *hash_only]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())
