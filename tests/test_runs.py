"""Finding the run that a user means."""

import os
from pathlib import Path

import pytest

from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import find_run, last_trained_run
from vit_cifar10.utils.errors import UserError

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """model/ with a complete, an interrupted and a shipped run, and a folder elsewhere, as the current folder."""
    for name in ("vit/best.pt", "vit/last.pt", "early/last.pt", "shipped/best.pt"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).touch()
    (tmp_path / "output" / "vit").mkdir(parents=True)
    (tmp_path / "elsewhere" / "early").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("typed", ["vit", "model/vit", "output/vit", "model/vit/best.pt", "./model/vit/"])
def test_a_run_is_found_by_name_folder_or_checkpoint(typed, folder):
    run = find_run(typed)
    assert (run.name, run.checkpoint_path, run.output_folder) == (
        "vit",
        Path("model/vit/best.pt"),
        Path("output/vit"),
    )
    assert run.named_checkpoint == (Path(typed) if typed.endswith(".pt") else None)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("", "the name of the run is empty"),
        ("cnn", "there is no checkpoint of cnn"),
        ("elsewhere", "there is no checkpoint of elsewhere"),
        ("elsewhere/vit", "there is no checkpoint of elsewhere/vit"),  # not the other run of this name
        ("early", "early has no best.pt yet; continue the run with python train.py --resume"),
        ("elsewhere/early", "there is no checkpoint of elsewhere/early"),
    ],
)
def test_what_is_not_a_run_is_refused(typed, reason, folder):
    with pytest.raises(UserError, match=reason):
        find_run(typed)


def test_an_interrupted_run_is_found_to_be_resumed(folder):
    assert find_run("early", names=checkpoint.NAMES).last_path == Path("model/early/last.pt")


def test_the_run_trained_last_is_the_one_saved_last_and_never_a_shipped_one(folder):
    assert last_trained_run().name == "vit"
    for name in ("best.pt", "last.pt"):
        (folder / "model" / "cnn").mkdir(exist_ok=True)
        (folder / "model" / "cnn" / name).touch()
    os.utime("model/cnn/last.pt", (0, 0))
    os.utime("model/shipped/best.pt")
    assert last_trained_run().name == "vit"
    os.utime("model/vit/last.pt", (0, 0))
    os.utime("model/cnn/last.pt")
    assert last_trained_run().name == "cnn"
    assert last_trained_run("elsewhere") is None
