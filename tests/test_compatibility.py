"""Tests that runs of an earlier version can still be loaded, tested, compared and resumed.

`data/earlier_run` contains a run that commit bc9b456 wrote ("begun"), interrupted in the third of four epochs, and the
best weights of the same run without the interruption ("whole"). Its images are drawn here.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_equal_weights, load_weights, read_metrics
from PIL import Image

import compare
import test as test_command
import train
from vit_cifar10.runs import checkpoint

EARLIER = Path(__file__).parent / "data" / "earlier_run"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A folder with the earlier runs and their images. It is also the current folder."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    draw = np.random.RandomState(0)
    for i in range(24):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.randint(0, 128 + 127 * (i % 2), (8, 8, 3), dtype=np.uint8)).save(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_earlier_run_is_resumed_and_ends_with_equal_weights(earlier, capsys):
    train.main(["--resume", "begun"])
    assert "resuming after 2 of 4 epochs, at step 10" in capsys.readouterr().out
    whole = load_weights(earlier, "whole")
    for name, value in load_weights(earlier, "begun").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-4)  # processors differ in rounding
    epochs = read_metrics(earlier, "begun")
    assert [metrics["epoch"] for metrics in epochs] == ["1", "2", "3", "4"]
    with open(EARLIER / "output" / "begun" / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == epochs[:2]
    assert checkpoint.load("model/begun", "last.pt")["training"]["step"] == 16
    assert json.loads(Path("output/begun/config.json").read_text())["git_commit"].startswith("bc9b456")


def test_an_earlier_run_is_tested_and_compared(earlier, capsys):
    before = load_weights(earlier, "begun")
    test_command.main(["--model_path", "begun", "--data_path", "images", "--num_workers", "0", "--device", "cpu"])
    results = json.loads(Path("output/begun/test_results.json").read_text())
    assert results["accuracy"] == checkpoint.load("model/begun")["metrics"]["test_accuracy"]
    compare.main(["begun", "whole", "--data_path", "images", "--num_workers", "0", "--device", "cpu"])
    assert "begun is unfinished: it has 2 of 4 epochs" in capsys.readouterr().err
    rows = json.loads(Path("output/comparison/comparison.json").read_text())["runs"]
    assert [(row["run"], row["network"], row["epochs"]) for row in rows] == [
        ("begun", "ViT 2 x 4, patch 8", 2),
        ("whole", "ViT 2 x 4, patch 8", None),
    ]
    assert_equal_weights(before, load_weights(earlier, "begun"))
