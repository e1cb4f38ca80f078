"""The benchmark runs and measures every contender. The tests do not check how fast anything is."""

import importlib.util
import re

import pytest
from helpers import SMALL_VIT, run_training
from torch.utils.flop_counter import FlopCounterMode

import cost
import throughput
from vit_cifar10.training.trainer import Trainer

SMALL = (
    "--dataset shapes --device cpu --patch_size 8 --embed_dim 24 --n_layers 1 --batch_size 32 --rounds 1 --seconds 0.05"
)


@pytest.mark.parametrize(
    ("model", "missing", "contenders"), [("vit", None, 4), ("vit", "vit_pytorch", 3), ("cnn", None, 2)]
)
def test_training_is_measured_for_every_contender(model, missing, contenders, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    throughput.main(f"training --model {model} --num_workers 0 {SMALL}".split())
    out, err = capsys.readouterr()
    assert ("WARNING: vit-pytorch is not installed" in err) == bool(missing)
    rows = re.findall(r"^\| (\w.*?) \| ([\d,]+) \| [\d,]+ to [\d,]+ \| ([\d.]+) \|", out, re.MULTILINE)
    assert len(rows) == contenders
    assert rows[0][0] == "ours"
    for _, rate, ratio in rows:
        assert int(rows[0][1].replace(",", "")) / int(rate.replace(",", "")) == pytest.approx(float(ratio), rel=0.05)


def test_the_parts_of_a_step_are_measured(capsys):
    throughput.main(f"step --optimizer muon {SMALL}".split())
    times = dict(re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \|", capsys.readouterr().out, re.MULTILINE))
    assert list(times) == ["augment", "forward", "backward", "optimizer", "whole step"]
    assert all(float(value) > 0 for value in times.values())


@pytest.mark.parametrize(
    "network",
    [
        f"--optimizer muon {SMALL_VIT}",
        f"--optimizer muon {SMALL_VIT} --small_epochs 0.5 --keep_patches 0.5",
        "--optimizer muon --model cnn --width 8",
        "--optimizer muon-sgd --model fast-cnn --width 8",
    ],
    ids=["vit", "fewer patches", "cnn", "fast cnn"],
)
def test_the_cost_of_a_run_is_the_operations_of_its_steps(network, tmp_path, capsys, monkeypatch):
    counts, train_step = [], Trainer.train_step

    def counted(trainer, *batch):
        with FlopCounterMode(display=False) as counter:
            result = train_step(trainer, *batch)
        counts.append(counter.get_total_flops())
        return result

    monkeypatch.setattr(Trainer, "train_step", counted)
    run_training(tmp_path, f"--run_name run --epochs 2 --precision bf16 {network}")
    capsys.readouterr()
    monkeypatch.setattr(cost, "ACCURACIES", ())
    cost.main([str(tmp_path / "model/run"), "--output_path", str(tmp_path / "output")])
    ((epoch, petaflops),) = re.findall(r"^\| [\d.]+ % \| (\d) \| ([\d.e-]+) \|", capsys.readouterr().out, re.MULTILINE)
    steps = len(counts) // 2 * int(epoch)
    assert float(petaflops) * 1e15 == pytest.approx(sum(counts[:steps]), rel=0.01)
