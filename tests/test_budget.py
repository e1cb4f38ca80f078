"""Tests of --minutes, and of the word before a run that takes very long. The clock is replaced, so nothing is timed."""

import json

import pytest
from helpers import SMALL_VIT, exits_with, run_training

import train
from vit_cifar10.training import budget

FLAGS = (
    f"{SMALL_VIT} --run_name run --batch_size 100 --epochs 40 --small_epochs 20 --keep_patches 0.5 --warmup_epochs 8"
)


@pytest.fixture
def known_pace(monkeypatch):
    """A step takes 2 s on small images, 5 s with half the patches and 10 s with all; an evaluation takes 5 s."""

    def seconds_per_step(trainer, step):
        return 2.0 if trainer.patches.is_small(step) else 10 * trainer.patches.keep(step)

    monkeypatch.setattr(budget, "seconds_per_step", seconds_per_step)
    monkeypatch.setattr(budget, "evaluation_seconds", lambda trainer: 5.0)


def recorded_flags(folder):
    return json.loads((folder / "output" / "run" / "config.json").read_text())["flags"]


def test_as_many_epochs_are_trained_as_fit_into_the_minutes(known_pace, tmp_path, capsys):
    """Six steps per epoch: 12 s on small images, then 45 s on average, so 28.5 s with 5 s of evaluation: 4 in 149 s."""
    run_training(tmp_path, f"{FLAGS} --minutes 2.4")
    assert "--minutes 2.4: 4 epochs, each about 29 s here" in capsys.readouterr().out
    flags = recorded_flags(tmp_path)
    assert (flags["epochs"], flags["small_epochs"], flags["warmup_epochs"], flags["minutes"]) == (4, 2, 0.8, 2.4)
    train.main(["--resume", str(tmp_path / "model" / "run"), "--epochs", "5"])
    assert recorded_flags(tmp_path)["epochs"] == 5, "a resumed run does not measure again"


def test_too_few_minutes_are_refused(known_pace, tmp_path, capsys):
    with exits_with(2):
        run_training(tmp_path, f"{FLAGS} --minutes 0.5")
    assert "--minutes 0.5 is too short: one epoch takes about 0.6" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("hours", "words"), [(2, None), (5, "about 5 hours"), (210, "about 9 days")])
def test_a_very_long_run_is_announced(hours, words, tmp_path, capsys, monkeypatch):
    seconds = 3600 * hours
    advice = budget.advice_for_a_long_run
    monkeypatch.setattr(
        "vit_cifar10.training.recorder.advice_for_a_long_run", lambda trainer, measured: advice(trainer, seconds)
    )
    run_training(tmp_path, f"{SMALL_VIT} --run_name run --batch_size 100 --epochs 2")
    printed = capsys.readouterr()
    assert ("this run will take" in printed.out + printed.err) == bool(words)
    assert not words or f"will take {words} on this machine; --minutes 60 would" in printed.out + printed.err


def test_the_suggested_recipes_have_results():
    for name in budget.SUGGESTED.values():
        result = budget.measured_result(budget.RECIPES / f"{name}.txt")
        assert result or name == "fast-cnn", name
