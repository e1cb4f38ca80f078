"""Tests that runs of an earlier and of a later version can be loaded, tested, compared and resumed.

`data/earlier_run` contains a run that commit bc9b456 wrote ("begun"), interrupted in the third of four epochs, and the
best weights of the same run without the interruption ("whole"). Its images are drawn here.
"""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_equal_weights, exits_with, load_weights, read_metrics, signals_in_step, training_flags
from PIL import Image

import compare
import test as test_command
import train
from vit_cifar10.data import dataset
from vit_cifar10.runs import checkpoint
from vit_cifar10.training.trainer import Trainer

EARLIER = Path(__file__).parent / "data" / "earlier_run"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A folder with the earlier runs and their images, divided as then. It is also the current folder."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    draw = np.random.RandomState(0)
    labels = torch.arange(2).repeat_interleave(12)  # of the files in the order of their paths
    tested = dataset.stratified_sample(labels, 24 // 5, dataset.SUBSET_SEED).tolist()
    for i in range(24):
        split = "test" if 12 * (i % 2) + i // 2 in tested else "train"
        file = tmp_path / "images" / split / "ab"[i % 2] / f"{i:02}.png"
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


def test_an_earlier_run_is_not_tested_on_images_that_may_be_its_training_images(earlier, capsys):
    """Without folders for the splits, an earlier version chose the test images in a way that new images changed."""
    for file in list((earlier / "images").glob("*/*/*.png")):
        flat = earlier / "images" / file.parent.name / file.name
        flat.parent.mkdir(exist_ok=True)
        file.rename(flat)
    for split in ("train", "test"):
        shutil.rmtree(earlier / "images" / split)
    for command, flags in ((test_command, ["--model_path", "begun"]), (train, ["--resume", "begun"])):
        with exits_with(2):
            command.main([*flags, "--data_path", "images", "--num_workers", "0", "--device", "cpu"])
        assert "earlier version" in capsys.readouterr().err


# A column of metrics.csv that only one of two versions has

TINY = (
    "--run_name run --epochs 3 --num_train_images 40 --val_images 50 --num_test_images 20 --batch_size 20"
    " --embed_dim 16 --n_layers 1 --n_attention_heads 2 --patch_size 8 --save_every 1"
)


@pytest.fixture
def add_column(monkeypatch):
    """A function that adds a column to what train.py logs, as a later version may do at one place."""
    epoch_metrics = Trainer.epoch_metrics

    def add(is_added=True):
        later = lambda self, epoch: epoch_metrics(self, epoch) | {"grad_norm": epoch + 0.5}  # noqa: E731
        monkeypatch.setattr(Trainer, "epoch_metrics", later if is_added else epoch_metrics)

    return add


def check_run(folder, grad_norms):
    """Test and compare the run "run" in a folder, and check its column grad_norm everywhere."""
    folders = [f"--output_path={folder / 'output'}", f"--data_path={folder / 'data'}", "--device=cpu"]
    run = str(folder / "model" / "run")
    test_command.main(["--model_path", run, *folders])
    results = json.loads((folder / "output" / "run" / "test_results.json").read_text())
    saved = checkpoint.load(run)
    assert results["epoch"] == saved["epoch"]
    compare.main([run, *folders, f"--compare_path={folder / 'compared'}"])
    (row,) = json.loads((folder / "compared" / "comparison.json").read_text())["runs"]
    assert (row["epochs"], row["kept_epoch"]) == (len(grad_norms), saved["epoch"])
    rows = read_metrics(folder, "run")
    assert [row.get("grad_norm", "") for row in rows] == ["" if norm is None else str(norm) for norm in grad_norms]
    training = checkpoint.load(run, "last.pt")["training"]
    assert [row.get("grad_norm") for row in training["rows"]] == grad_norms
    assert saved["metrics"].get("grad_norm") == grad_norms[saved["epoch"] - 1]
    assert training["best"] == training["rows"][saved["epoch"] - 1]


@pytest.mark.usefixtures("no_pictures")
def test_a_new_column_is_trained_tested_and_compared_after_a_change_of_one_place(add_column, tmp_path):
    add_column()
    train.main(training_flags(tmp_path, TINY))
    check_run(tmp_path, [1.5, 2.5, 3.5])
    header = (tmp_path / "output" / "run" / "metrics.csv").read_text().split("\n")[0]
    assert header.split(",")[6:8] == ["gpu_memory_gb", "grad_norm"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("is_later", [False, True], ids=["a run without the column", "a run with the column"])
def test_a_run_is_resumed_by_a_version_with_other_columns(is_later, add_column, tmp_path):
    add_column(is_later)
    with exits_with(143), signals_in_step(3, signal.SIGTERM):  # in the second epoch
        train.main(training_flags(tmp_path, TINY))
    add_column(not is_later)
    resume = ["--resume", str(tmp_path / "model" / "run"), f"--output_path={tmp_path / 'output'}"]
    train.main(resume)
    check_run(tmp_path, [1.5, None, None] if is_later else [None, 2.5, 3.5])
    train.main([*resume, "--epochs", "4"])
    check_run(tmp_path, [1.5, None, None, None] if is_later else [None, 2.5, 3.5, 4.5])


@pytest.mark.usefixtures("no_pictures")
def test_a_run_without_a_column_of_today_is_resumed_tested_and_compared(tmp_path):
    """As an earlier version may have written it."""
    with exits_with(143), signals_in_step(3, signal.SIGTERM):
        train.main(training_flags(tmp_path, TINY))
    missing = {"images_per_second", "train_seconds", "gpu_memory_gb", "seconds", "learning_rate", "train_accuracy"}
    for name in ("best.pt", "last.pt"):
        path = tmp_path / "model" / "run" / name
        saved = checkpoint.load(path)
        rows = [
            saved["metrics"],
            *([*saved["training"]["rows"], saved["training"]["best"]] if "training" in saved else []),
        ]
        for row in rows:
            for column in missing & row.keys():
                del row[column]
        checkpoint.save(path, saved)
    train.main(["--resume", str(tmp_path / "model" / "run"), f"--output_path={tmp_path / 'output'}"])
    rows = read_metrics(tmp_path, "run")
    assert [row["seconds"] == "" for row in rows] == [True, False, False]
    check_run(tmp_path, [None] * 3)


@pytest.mark.usefixtures("no_pictures")
def test_entries_that_this_version_does_not_know_are_no_hindrance(tmp_path):
    """A later version may save more in a checkpoint and in config.json."""
    with exits_with(143), signals_in_step(3, signal.SIGTERM):
        train.main(training_flags(tmp_path, TINY))
    for name in ("best.pt", "last.pt"):
        path = tmp_path / "model" / "run" / name
        saved = checkpoint.load(path)
        for part in filter(None, (saved, saved.get("training"))):
            part["later"] = {"list": [1, [2.5, "text"]], "tensor": torch.ones(2)}
        checkpoint.save(path, saved)
    path = tmp_path / "output" / "run" / "config.json"
    config = json.loads(path.read_text())
    config["later"] = {"list": [1, {"a": ["b"]}]}
    path.write_text(json.dumps(config))
    train.main(["--resume", str(tmp_path / "model" / "run"), f"--output_path={tmp_path / 'output'}"])
    assert json.loads(path.read_text())["later"] == config["later"]
    check_run(tmp_path, [None] * 3)
