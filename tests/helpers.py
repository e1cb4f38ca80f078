"""Helpers that several test files share: flags of small runs, calls of the commands, and reading what they wrote.

run_training(tmp_path, f"--run_name vit --epochs 2 {SMALL_VIT}")  # train.py, writing below tmp_path
run_test(tmp_path, "--model_path vit", monkeypatch)               # test.py
read_metrics(tmp_path, "vit")                                     # the rows of metrics.csv
load_weights(tmp_path, "vit")                                     # the weights in best.pt
"""

import contextlib
import csv
import os
import re
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch

import test as test_command
import train
from model import SimpleCNN
from vit_cifar10.runs import checkpoint
from vit_cifar10.training import trainer

# Paths and programs

ROOT = Path(__file__).parent.parent
CIFAR10_ROOT = os.environ.get("CIFAR10_ROOT")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PYTHON_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}  # for subprocesses

# Flags

SMALL_VIT = "--embed_dim 32 --n_layers 3 --n_attention_heads 2 --patch_size 8"
EVERY_METHOD = (  # of augmentation, regularization and averaging, in a short run
    "--augment randaugment --mixup 0.8 --cutmix 1 --mix_prob 0.8 --random_erasing 0.25 --label_smoothing 0.1"
    " --crop_padding 2 --crop_border reflect --small_epochs 1 --keep_patches 0.5"
    " --class_weights balanced --drop_path 0.1 --ema 0.9 --clip_grad 1 --batch_size 64 --num_train_images 200"
    " --epochs 4"
)


def folder_flags(folder):
    """The flags that put model, output and data below `folder`."""
    return [f"--{name}_path={folder / name}" for name in ("model", "output", "data")]


def training_flags(folder, flags):
    """The flags of train.py for a run on drawn shapes below `folder`, as a list. `flags` is text."""
    return [*folder_flags(folder), *f"--dataset shapes --device cpu --precision fp32 {flags}".split()]


# Running the commands


def run_training(folder, flags):
    """Run train.py on 600 drawn shapes, with all its folders below `folder`."""
    train.main(training_flags(folder, f"--num_train_images 600 {flags}"))


def run_test(folder, flags, monkeypatch):
    """Run test.py in `folder`, with its data and output below it."""
    monkeypatch.chdir(folder)
    test_command.main(f"--device cpu --data_path {folder}/data {flags}".split())


@contextlib.contextmanager
def exits_with(status):
    """Check that the commands inside exit with this status."""
    with pytest.raises(SystemExit) as stopped:
        yield
    assert stopped.value.code == status, f"the exit status is {stopped.value.code}"


@contextlib.contextmanager
def signals_in_step(number, *signals):
    """Send these signals to this process at the beginning of a training step; `number` counts from 0."""
    train_step = trainer.Trainer.train_step

    def step(self, *batch):
        if self.step == number:
            for received in signals:
                signal.raise_signal(received)
        return train_step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", step)
        yield


def train_epoch(trainer, epoch):
    """Train an epoch as train.py does, without its record. Returns the epoch's metrics."""
    for images, labels in trainer.batches(epoch):
        trainer.step_on(images, labels)
    return trainer.epoch_metrics(epoch)


def wait_for(condition, seconds=60):
    begin = checked = time.monotonic()
    while not condition():
        took = time.monotonic() - checked
        assert time.monotonic() < begin + seconds, f"the condition is still false after {seconds} s"
        time.sleep(max(0.01, 2 * took))  # leaves most of the time to the process that it waits for
        checked = time.monotonic()


@contextlib.contextmanager
def memory_within(limit):
    """Check that at no time this process needs more than `limit` bytes in addition to what it needs now (on Linux)."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if clear.exists():
        clear.write_text("5")  # forget the largest size so far
        before = peak(status)
    yield
    if clear.exists():
        assert peak(status) - before < limit


def peak(status):
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])


# Reading what a run wrote


def read_files(folder):
    """The contents of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_metrics(folder, run):
    """The rows of metrics.csv, as dicts of text."""
    with open(folder / "output" / run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def load_weights(folder, run, name="best.pt"):
    """The state dict in a run's checkpoint."""
    return checkpoint.load(folder / "model" / run, name)["weights"]


def has_saved(folder):
    """Whether the run named "run" has written its first last.pt."""
    return (folder / "model" / "run" / "last.pt").exists()


def assert_equal_weights(ours, theirs):
    """Check that two state dicts are bitwise equal."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# Checkpoints without a run

SMALL_CNN = {"model": "cnn", "img_size": 32, "num_classes": 3}  # the argument of build_model
SMALL_VIT_CONFIG = {
    **{"model": "vit", "img_size": 32, "patch_size": 8, "num_classes": 3, "global_pool": "token", "class_token": True},
    **{"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2},
}


def edit_pickle(path, old, new):
    """Replace bytes in a checkpoint's pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            assert not name.endswith("data.pkl") or old in data
            archive.writestr(name, data.replace(old, new, 1) if name.endswith("data.pkl") else data)


def checkpoint_contents(**changes):
    """The contents of a valid best.pt of an untrained CNN, except for `changes`."""
    valid = {
        "model_config": SMALL_CNN,
        "weights": SimpleCNN(num_classes=3).state_dict(),
        "classes": ["a", "b", "c"],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "dataset": "shapes",
        "epoch": 0,
        "metrics": {},
        "recipe": {},
    }
    return {**valid, **changes}
