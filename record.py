"""What a run leaves behind: its two folders, and the history of its epochs in them.

model/<run>/   best.pt, last.pt
output/<run>/  config.json, metrics.csv, curves.png
"""

import csv
import json
import platform
import subprocess
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import torchvision

import checkpoint
from figures import save_curves
from runtime import UserError, device_label, make_folder, replacing


def open_record(args, resumed):
    """The record of a new run, or that of the run to resume; `make_folders` begins it.

    Raises:
        UserError: a run of that name exists already.
    """
    if resumed:
        folder = Path(args.resume)
        folder = (folder if folder.is_dir() else folder.parent).resolve()
        return Record(folder, Path(args.output_path) / folder.name)
    name = args.run_name or default_name(args)
    record = Record(Path(args.model_path) / name, Path(args.output_path) / name)
    for folder in (record.model_folder, record.output_folder):
        if folder.exists() and not args.overwrite:
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

    def __init__(self, model_folder, output_folder):
        self.name = model_folder.name
        self.model_folder = model_folder
        self.output_folder = output_folder
        self.rows = []
        self.best = None
        self.save_last = Paced(self.write_last)
        self.draw = Paced(self.draw_curves)

    def make_folders(self):
        """Make both folders. Raises `UserError` if they cannot be written to."""
        make_folder(self.model_folder)
        make_folder(self.output_folder)

    def add(self, trainer, row, is_last):
        """Append an epoch to metrics.csv, keep the weights if they are the best, and save and draw what is due."""
        self.rows.append(row)
        if len(self.rows) == 1:
            self.write_metrics()
        else:
            with open(self.output_folder / "metrics.csv", "a", newline="") as file:
                csv.DictWriter(file, row).writerow(row)
        if row["val_accuracy"] is None:
            self.best = row
        elif self.best is None or row["val_accuracy"] > self.best["val_accuracy"]:
            self.best = row
            checkpoint.save(self.model_folder / "best.pt", trainer.inference_state(row))
        self.save_last(trainer, now=is_last)
        self.draw(now=is_last)

    def write_last(self, trainer):
        state = trainer.inference_state(self.rows[-1])
        if self.rows[-1]["val_accuracy"] is None:  # nothing selects: the last weights are those to keep
            checkpoint.save(self.model_folder / "best.pt", state)
        state["training"] = {**trainer.training_state(), "rows": self.rows, "best": self.best}
        checkpoint.save(self.model_folder / "last.pt", state)

    def write_metrics(self):
        """metrics.csv anew, with all the rows there are."""
        with replacing(self.output_folder / "metrics.csv") as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)

    def draw_curves(self):
        save_curves(self.rows, self.output_folder / "curves.png", self.name)

    def restore(self, state):
        """Take over the history up to the epoch that is resumed from."""
        self.rows, self.best = state["rows"], state["best"]
        self.write_metrics()


class Paced:
    """Calls an action at once, and then as often as costs no more than a fiftieth of the time.

    So checkpoints and pictures of epochs that take a second do not slow the run down.
    """

    def __init__(self, action, share=0.02):
        self.action = action
        self.share = share
        self.due = 0.0

    def __call__(self, *arguments, now=False):
        start = time.monotonic()
        if start < self.due and not now:
            return
        self.action(*arguments)
        end = time.monotonic()
        self.due = end + (end - start) / self.share


def write_config(record, trainer):
    """config.json: flags, versions, commit, machine and sizes, enough to trust the run a month later."""
    config = {
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
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
        "git_commit": git_commit(),
        "train_images": len(trainer.train_split),
        "val_images": len(trainer.val_split or ()),
        "test_images": len(trainer.test_split),
        "started": datetime.now().isoformat(timespec="seconds"),
    }
    with replacing(record.output_folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n")


def git_commit():
    """The commit of this code, or None where it is no git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())
