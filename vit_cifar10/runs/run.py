"""What a run leaves behind: its two folders, and the history of its epochs in them.

model/<run>/   best.pt, last.pt, and previous.pt, the last.pt before
output/<run>/  config.json, metrics.csv, curves.png, and history.pt, which is the first two as a PyTorch file
"""

import contextlib
import csv
import json
import os
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

from vit_cifar10.evaluation import full_test as results
from vit_cifar10.plots.curves import save_curves
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.trackers import TRACKING_FOLDERS, Tracker
from vit_cifar10.utils.device import device_label
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.files import link_or_copy, lock_folder, make_folder, remove_partial, replacing, save_tensors


def open_record(args, resumed):
    """The record of a new run, or that of the run to resume; `begin` makes its folders.

    Raises:
        UserError: a run of that name exists already.
    """
    pace = {"save_every": args.save_every, "save_minutes": args.save_minutes}
    if resumed:
        folder = run_folder(args.resume)
        return Record(folder, Path(args.output_path) / folder.name, "resume", **pace)
    mode = "replace" if args.overwrite else "new" if args.run_name else "unnamed"
    name = args.run_name or default_name(args)
    record = Record(Path(args.model_path) / name, Path(args.output_path) / name, mode, **pace)
    for folder in record.folders:
        if folder.exists() and mode == "new":
            raise UserError(f"{folder} exists already; choose another --run_name, or add --overwrite to replace it")
    return record


def run_folder(path):
    """The folder under model/ of a run that is named by it, or by a checkpoint in it."""
    path = Path(path)
    return (path if path.is_dir() else path.parent).resolve()


def default_name(args):
    """Network, depth, image size, data set and time: vit-layer12-32-cifar10-20260131-235959."""
    network = f"vit-layer{args.n_layers}" if args.model == "vit" else args.model
    return f"{network}-{args.image_size}-{args.dataset}-{datetime.now():%Y%m%d-%H%M%S}"


class Record:
    """A run's folders and history.

    `rows` are the epochs' metrics; `best` is the row of the highest validation accuracy, or of the last epoch if no
    images are held out.

    Args:
        mode: "new", "unnamed" (new, and of another name if that is taken), "replace" or "resume".
        save_every: write last.pt after so many epochs; None is as often as costs little.
        save_minutes: write it at least so often, also within an epoch.
    """

    FILES = (*checkpoint.NAMES, "config.json", "metrics.csv", "curves.png", "history.pt")
    TEST_FILES = (*results.FILES, "faithfulness.csv", "faithfulness.png")

    def __init__(self, model_folder, output_folder, mode, save_every=None, save_minutes=5.0):
        self.name = model_folder.name
        self.model_folder = model_folder
        self.output_folder = output_folder
        self.mode = mode
        self.save_every = save_every
        self.save_seconds = 60 * save_minutes
        self.rows = []
        self.best = None
        self.best_state = None  # not yet written
        self.config = None
        self.tracker = Tracker()
        self.made = []
        self.locks = []
        self.written_at = time.monotonic()
        self.save = Paced(self.write)
        self.draw = Paced(self.draw_curves, wait=60.0)

    @property
    def folders(self):
        return self.model_folder, self.output_folder

    def begin(self):
        """Make both folders, or take them over, and keep other trainings out until `close`.

        A new run's folders are its alone; one that is replaced keeps its files until there are new ones; one that is
        resumed loses what a crash has left half-written.

        Raises:
            UserError: they cannot be written to, or another run has them. No new folder is left.
        """
        if self.mode == "unnamed" and any(folder.exists() for folder in self.folders):  # two runs within a second
            self.name += f"-{uuid.uuid4().hex[:6]}"
            self.model_folder, self.output_folder = (folder.with_name(self.name) for folder in self.folders)
        missing = [place for folder in self.folders for place in (folder, *folder.parents) if not place.exists()]
        try:
            for folder in self.folders:
                make_folder(folder, new=self.mode in ("new", "unnamed"))
        except UserError:
            remove_empty(missing)
            raise
        self.locks = [lock_folder(folder) for folder in self.folders]
        self.made = missing
        if self.mode == "replace" and set(self.folders) <= set(missing):
            self.mode = "new"
        if self.mode == "replace":
            self.remove_tracking()
        for folder in self.folders:
            remove_partial(folder, self.FILES)
        self.written_at = time.monotonic()

    def replace(self):
        """Now that there is something to keep, remove what the run of the same name before has left."""
        if self.mode == "replace":
            for folder in self.folders:
                for file in (*self.FILES, *self.TEST_FILES):
                    (folder / file).unlink(missing_ok=True)
            self.mode = "new"
            self.write_config()

    def write_config(self):
        """config.json; not yet, where it would replace that of another run."""
        if self.mode != "replace":
            with replacing(self.output_folder / "config.json") as partial:
                partial.write_text(json.dumps(self.config, indent=2) + "\n")

    def abandon(self):
        """Take back the folders of a run that has ended before it had anything to keep."""
        has_begun = bool(self.locks) and self.mode not in ("replace", "resume")
        if not has_begun or self.rows or (self.model_folder / checkpoint.LAST).exists():
            return
        (self.output_folder / "config.json").unlink(missing_ok=True)
        self.remove_tracking()
        remove_empty(self.made)

    def remove_tracking(self):
        for folder in TRACKING_FOLDERS:
            shutil.rmtree(self.output_folder / folder, ignore_errors=True)

    def add(self, trainer, row, is_last):
        """Append an epoch to metrics.csv, remember the weights if they are the best, and write the rest when due."""
        self.replace()
        self.rows.append(row)
        if len(self.rows) == 1:
            self.write_metrics()
        else:
            self.append_metrics(row)
        self.tracker.log(row)
        if row["val_accuracy"] is None or self.best is None or row["val_accuracy"] > self.best["val_accuracy"]:
            self.best, self.best_state = row, trainer.inference_state(row)
        is_due = is_last or self.is_due() or (self.save_every and row["epoch"] % self.save_every == 0)
        if is_due or not self.save_every:
            self.save(trainer, now=is_due)
        self.draw(now=is_last)

    def is_due(self):
        """Whether the last save is so old that the next should not wait for the end of the epoch."""
        return time.monotonic() >= self.written_at + self.save_seconds

    def write(self, trainer):
        """best.pt and history.pt as of the last whole epoch, and last.pt as of the last step."""
        state = trainer.inference_state(self.rows[-1] if self.rows else {})
        self.replace()
        self.write_best()
        training = {**trainer.training_state(), "rows": self.rows, "best": self.best}
        checkpoint.save(self.model_folder / checkpoint.LAST, {**state, "training": training}, checkpoint.PREVIOUS)
        save_tensors(self.output_folder / "history.pt", {"config": self.config, "rows": self.rows})
        self.written_at = time.monotonic()

    def write_best(self):
        """best.pt, if it is due."""
        if self.best_state:
            checkpoint.save(self.model_folder / checkpoint.BEST, self.best_state)
            self.best_state = None

    def send_pictures(self, trainer):
        """Test the kept weights, as test.py does, and send the tracker the pictures of that and the curves.

        The run is complete: where this fails, it is said, and nothing else is lost.
        """
        path = self.model_folder / checkpoint.BEST
        try:
            with out_of_memory_advice("test.py makes them with a lower --batch_size"):
                network = checkpoint.load_network(path, trainer.device)
                test = network.adopt(trainer.test_split)
                measured = results.measure(network, path, test, trainer.test_batch_size)
            results.write(measured, network, test, self.output_folder)
            files = [self.output_folder / name for name in ("curves.png", *results.FILES)]
            pictures = {file.stem: file for file in files if file.suffix == ".png" and file.exists()}
            self.tracker.finish(pictures, self.rows[-1]["epoch"])
        except (UserError, OSError) as error:
            print(f"warning: the final pictures are not sent: {error}", file=sys.stderr)

    def close(self, failed):
        """Write the best weights if a run ends before its time, and let go of what is held."""
        try:
            if self.rows:
                self.write_best()
        finally:
            self.tracker.close(failed)
            if failed:
                self.abandon()
            for lock in self.locks:
                if lock is not None:
                    os.close(lock)
            self.locks = []

    def append_metrics(self, row):
        path = self.output_folder / "metrics.csv"
        try:
            with open(path, "a", newline="") as file:
                csv.DictWriter(file, checkpoint.ROW).writerow(row)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}); is the disk full?") from error

    def write_metrics(self):
        """metrics.csv anew, with all the rows there are."""
        path = self.output_folder / "metrics.csv"
        if not self.rows:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, checkpoint.ROW)
            writer.writeheader()
            writer.writerows(self.rows)

    def draw_curves(self):
        """curves.png; a picture that cannot be written, say while a viewer holds it, does not end the run."""
        try:
            save_curves(self.rows, self.output_folder / "curves.png", self.name)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)

    def restore(self, resumed):
        """Take over the history up to the epoch that is resumed from.

        best.pt may be from an epoch after that; then it is what a new best has to beat. Without it the next epoch is.
        """
        if resumed["is_older"]:  # or the damaged last.pt would become the previous one
            link_or_copy(self.model_folder / checkpoint.PREVIOUS, self.model_folder / checkpoint.LAST)
        self.rows, self.best = resumed["training"]["rows"], resumed["training"]["best"]
        if self.best and self.best["val_accuracy"] is not None:
            try:
                kept = checkpoint.load(self.model_folder)["metrics"]
                self.best = max(self.best, kept, key=lambda row: row.get("val_accuracy") or 0)
            except UserError as error:
                print(f"warning: {error}; the best epoch from here on takes its place", file=sys.stderr)
                self.best = None
        self.write_metrics()


def remove_empty(folders):
    """Remove those of the folders that are empty, the deepest first."""
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class Paced:
    """Calls an action after `wait` seconds, and then once a minute, or as often as costs a hundredth of the time.

    So checkpoints and pictures of epochs that take a second do not slow the run down.
    """

    def __init__(self, action, wait=0.0, share=0.01, longest=60.0):
        self.action = action
        self.share = share
        self.longest = longest
        self.due = time.monotonic() + wait

    def __call__(self, *arguments, now=False):
        start = time.monotonic()
        if start < self.due and not now:
            return
        self.action(*arguments)
        end = time.monotonic()
        self.due = end + min((end - start) / self.share, self.longest)


def write_config(record, trainer):
    """config.json: flags, versions, commit, machine and sizes, enough to trust the run a month later.

    A resumed run keeps the one it began with, but for its length.
    """
    path = record.output_folder / "config.json"
    if record.mode == "resume" and path.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: written anew
            record.config = json.loads(path.read_text())
            length = {flag: getattr(trainer.args, flag) for flag in checkpoint.LENGTH}
            record.config["flags"] = {**record.config["flags"], **length}
            record.write_config()
            return
    record.config = {
        "flags": vars(trainer.args),
        "model_config": trainer.config,
        "parameters": count_parameters(trainer.model),
        "precision": trainer.precision,
        "compiled": trainer.is_compiled,
        "device": device_label(trainer.device),
        "processes": trainer.job.size,
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
    record.write_config()


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
