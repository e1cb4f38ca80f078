"""What the tests share: paths, flags of small runs, and the commands called by their front door."""

import csv
import os
import shutil
import time
from pathlib import Path

import torch

import test as test_command
import train
from model import SimpleCNN
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.untrusted import KEYS

ROOT = Path(__file__).parent.parent
CIFAR10_ROOT = os.environ.get("CIFAR10_ROOT")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SMALL_VIT = "--embed_dim 32 --n_layers 3 --n_attention_heads 2 --patch_size 8"
EVERYTHING = (
    "--augment randaugment --mixup 0.8 --cutmix 1 --mix_prob 0.8 --random_erasing 0.25 --label_smoothing 0.1"
    " --drop_path 0.1 --ema 0.9 --clip_grad 1 --batch_size 64 --num_train_images 200 --epochs 4"
)
CONFIG = {"model": "cnn", "num_classes": 3}


def run_training(folder, flags):
    """Train by the front door on drawn shapes, all folders below `folder`."""
    places = [f"--{name}_path={folder / name}" for name in ("model", "output", "data")]
    same = "--dataset shapes --device cpu --precision fp32 --num_train_images 600"
    train.main([*places, *f"{same} {flags}".split()])


def run_test(folder, flags, monkeypatch):
    """`test.py` in `folder`, with data and output below it."""
    monkeypatch.chdir(folder)
    test_command.main(f"--device cpu --data_path {folder}/data {flags}".split())


def read_metrics(folder, run):
    with open(folder / "output" / run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(folder, run, name="best.pt"):
    return checkpoint.load(folder / "model" / run, name)["weights"]


def assert_equal_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def flags_for(folder, flags):
    places = [f"--{name}_path={folder / name}" for name in ("model", "output", "data")]
    return [*places, *f"--dataset shapes --device cpu --precision fp32 --num_test_images 100 {flags}".split()]


def wait_for(condition, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.01)


def has_saved(folder):
    """Whether the run has saved its state for the first time."""
    return (folder / "model" / "run" / "last.pt").exists()


def contents(**changes):
    saved = {key: kind() for key, kind in KEYS.items() if key != "format"}
    weights = SimpleCNN(num_classes=3).state_dict()
    fixed = {
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "classes": ["a", "b", "c"],
        "dataset": "shapes",
        "model_config": CONFIG,
        "weights": weights,
    }
    return {**saved, **fixed, **changes}
