"""The benchmark runs and measures every contender. The tests do not check how fast anything is."""

import re

import pytest

import throughput

SMALL = (
    "--dataset shapes --device cpu --patch_size 8 --embed_dim 24 --n_layers 1 --batch_size 32 --rounds 1 --seconds 0.05"
)


@pytest.mark.parametrize(("model", "contenders"), [("vit", 4), ("cnn", 2)])
def test_training_is_measured_for_every_contender(model, contenders, capsys):
    throughput.main(f"training --model {model} --num_workers 0 {SMALL}".split())
    rows = re.findall(
        r"^\| (\w.*?) \| ([\d,]+) \| [\d,]+ to [\d,]+ \| ([\d.]+) \|", capsys.readouterr().out, re.MULTILINE
    )
    assert len(rows) == contenders
    assert rows[0][0] == "ours"
    for _, rate, ratio in rows:
        assert int(rows[0][1].replace(",", "")) / int(rate.replace(",", "")) == pytest.approx(float(ratio), rel=0.05)


def test_the_parts_of_a_step_are_measured(capsys):
    throughput.main(f"step --optimizer muon {SMALL}".split())
    times = dict(re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \|", capsys.readouterr().out, re.MULTILINE))
    assert list(times) == ["augment", "forward", "backward", "optimizer", "whole step"]
    assert all(float(value) > 0 for value in times.values())
