"""The weights that ship with the project are small and complete, and work without the data set."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import ship
import shipped
import tables
import test as test_command
import train
from model import build_model
from vit_cifar10.data import dataset
from vit_cifar10.evaluation.metrics import predict, scores
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import find_run

ABSOLUTE_PATH = re.compile(r"[\"'](/|[A-Z]:\\)")
SHIPPED = [tables.ROOT / "model" / run for run in shipped.shipped_runs()]


def test_shipped_weights_take_at_most_64_megabytes():
    assert sum(file.stat().st_size for folder in SHIPPED for file in folder.iterdir()) <= 64e6


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights_classify_an_image_after_cloning(folder, tmp_path, monkeypatch, capsys):
    saved = checkpoint.load(folder)
    assert {value.dtype for value in saved["weights"].values()} <= {torch.float16, torch.int64}
    assert not ABSOLUTE_PATH.search(str(saved["recipe"]))
    image = shutil.copy(tables.ROOT / "examples" / "cat.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    test_command.main(["--mode", "custom", "--image_path", str(image), "--model_path", str(folder), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert f"test accuracy {100 * saved['metrics']['test_accuracy']:.2f} %" in printed
    assert (tmp_path / "attention_map_gif" / "cat.gif").exists()


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights_are_loaded_as_into_a_new_network(folder):
    saved = checkpoint.load(folder)
    new = build_model(saved["model_config"])
    new.load_state_dict(saved["weights"])
    loaded = checkpoint.load_network(folder, torch.device("cpu")).model
    for ours, theirs in ((loaded.parameters(), new.parameters()), (loaded.buffers(), new.buffers())):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
            assert (one.dtype, one.stride(), one.device) == (other.dtype, other.stride(), other.device)
            assert one.requires_grad == other.requires_grad


def test_shipped_files_contain_no_paths_of_the_machine_that_made_them():
    for folder in SHIPPED:
        output_folder = tables.ROOT / "output" / folder.name
        assert {path.name for path in output_folder.iterdir()} >= {"config.json", "metrics.csv", "curves.png"}
        assert not ABSOLUTE_PATH.search((output_folder / "config.json").read_text())


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights_have_the_accuracy_in_their_checkpoint(folder, cifar10_root):
    network = checkpoint.load_network(folder, torch.device("cpu"))
    test = network.normalized_for(dataset.load_test("cifar10", cifar10_root, num_images=1000))
    measured = scores(predict(network.model, test), test.labels)
    assert measured["accuracy"] == pytest.approx(network.saved["metrics"]["test_accuracy"], abs=0.03)


def test_a_run_is_shipped_in_half_precision_without_paths(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "ROOT", tmp_path)
    own = find_run("cnn", runs / "model", runs / "output")
    accuracy = ship.ship(own, "shipped", runs / "data")
    theirs, ours = checkpoint.load(own.model_folder), checkpoint.load(tmp_path / "model" / "shipped")
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value.half() if value.is_floating_point() else value)
    assert ours["metrics"]["test_accuracy"] == accuracy == pytest.approx(theirs["metrics"]["test_accuracy"], abs=0.02)
    assert not ABSOLUTE_PATH.search(str(ours["recipe"]))
    files = tmp_path / "output" / "shipped"
    assert {path.name for path in files.iterdir()} == {"config.json", "metrics.csv", "curves.png"}
    assert not ABSOLUTE_PATH.search((files / "config.json").read_text())
    assert (files / "metrics.csv").read_bytes() == own.metrics_path.read_bytes()


def test_networks_and_recipes_are_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert find_run("vit-layer12-32-cifar10").checkpoint_path == tables.ROOT / "model/vit-layer12-32-cifar10/best.pt"
    assert find_run("cnn-32-cifar10").output_folder == Path("output/cnn-32-cifar10")
    image = shutil.copy(tables.ROOT / "examples" / "cat.png", tmp_path)
    flags = ["--mode", "custom", "--image_path", str(image), "--no_gif", "--no_image", "--device", "cpu"]
    test_command.main(["--model_path", "cnn-32-cifar10", *flags])
    for recipe in ("@recipes/finetune-folder.txt", f"@{tables.ROOT}/recipes/finetune-folder.txt"):
        with pytest.raises(SystemExit):  # which the missing images stop
            train.main([recipe, "--data_path", "none", "--device", "cpu"])
        assert "there is no folder none" in capsys.readouterr().err
    (tmp_path / "model" / "cnn-32-cifar10").mkdir(parents=True)
    shutil.copy(tables.ROOT / "model" / "cnn-32-cifar10" / "best.pt", tmp_path / "model" / "cnn-32-cifar10")
    assert find_run("cnn-32-cifar10").checkpoint_path == Path("model/cnn-32-cifar10/best.pt"), "one's own comes first"
