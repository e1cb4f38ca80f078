"""Tests of compare.py --robustness: networks see the same bytes, it continues when stopped, and its attack works."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import exits_with, folder_flags
from PIL import Image
from torch import nn

import compare
from vit_cifar10.data import dataset
from vit_cifar10.data.corruptions import CORRUPTIONS
from vit_cifar10.evaluation import robustness
from vit_cifar10.evaluation.metrics import retained_accuracy, retained_difference
from vit_cifar10.runs import checkpoint

IMAGES = 60  # one whole batch, and a part of another one
FEW = [("none", ""), ("gaussian noise", "3"), ("fog", "3"), ("PGD", "0.5/255"), ("PGD", "1/255"), ("PGD", "2/255")]


def run_compare(folder, *arguments):
    flags = [*folder_flags(folder), f"--compare_path={folder / 'comparison'}", "--device=cpu"]
    compare.main([*arguments, *flags])


def read_rows(folder):
    with open(folder / "comparison" / "robustness.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def copied(runs, tmp_path, no_pictures, monkeypatch):
    """A copy of the two trained runs, for few conditions and without pictures."""
    for name in ("model", "output"):
        shutil.copytree(runs / name, tmp_path / name)
    monkeypatch.setattr(robustness, "conditions", lambda: FEW)
    monkeypatch.setattr(compare, "write_robustness", lambda *_: None)
    return tmp_path


def measured_rows(folder):
    """The rows of the comparison, which are in comparison.json, too."""
    return json.loads((folder / "comparison" / "comparison.json").read_text())["robustness"]


@pytest.mark.quick
def test_the_table_the_picture_and_plain_loops_agree(runs, tmp_path, no_pictures, capsys):
    for name in ("model", "output"):
        shutil.copytree(runs / name, tmp_path / name)
    run_compare(tmp_path, "vit", "cnn", "--robustness", "--num_images", str(IMAGES))
    printed, rows = capsys.readouterr().out, read_rows(tmp_path)
    assert len(rows) == 2 * (1 + sum(len(corruption.strengths) for corruption in CORRUPTIONS.values()) + 3 + 1)
    for row, ours in zip(measured_rows(tmp_path), rows, strict=True):
        assert {key: "" if value is None else str(value) for key, value in row.items()} == ours
    found = {(row["corruption"], row["level"], row["run"]): row for row in rows}
    network = checkpoint.load_network(tmp_path / "model" / "cnn", torch.device("cpu"))
    test = network.load_test_images(tmp_path / "data", num_images=IMAGES)
    clean = (network.logits(test.images).argmax(dim=1) == test.labels).double().mean().item()
    for kind, level in (("motion blur", "5"), ("occlusion", "20 %")):
        parts = [CORRUPTIONS[kind].apply(test.images[at : at + 50], level, robustness.SEED + at) for at in (0, 50)]
        accuracy = (network.logits(torch.cat(parts)).argmax(dim=1) == test.labels).double().mean().item()
        row = found[kind, level, "cnn"]
        assert float(row["accuracy"]) == pytest.approx(accuracy)
        assert float(row["retained"]) == pytest.approx(accuracy / clean)
        retained = (float(row[f"retained{end}"]) for end in ("", "_low", "_high"))
        assert "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * value for value in retained)) in printed
        difference = accuracy / clean - float(found[kind, level, "vit"]["retained"])
        assert float(row["difference"]) == pytest.approx(difference)
        assert float(row["difference_low"]) < difference < float(row["difference_high"])
    severities = [row for row in rows if row["run"] == "cnn" and row["level"] in ("1", "3", "5")]
    kinds = {row["corruption"] for row in severities} - {"high-pass"}
    assert len(kinds) == 10
    mean = np.mean([float(row["accuracy"]) for row in severities if row["corruption"] in kinds])
    assert float(found["mean of the ten kinds", "", "cnn"]["accuracy"]) == pytest.approx(mean)
    assert Image.open(tmp_path / "comparison" / "robustness.png").width > 1000
    written = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "## Robustness" in written
    assert "(robustness.png)" in written


def test_all_networks_see_the_same_bytes(copied, monkeypatch):
    seen, logits = {}, checkpoint.Network.logits

    def record(network, images):
        seen.setdefault(network.name, []).append(images.clone())
        return logits(network, images)

    monkeypatch.setattr(checkpoint.Network, "logits", record)
    run_compare(copied, "vit", "--robustness", "--num_images", str(IMAGES))
    run_compare(copied, "cnn", "vit", "--robustness", "--num_images", str(IMAGES))
    assert len(seen["vit"]) == len(seen["cnn"]) == 2 * 3
    for one, other in zip(seen["vit"], seen["cnn"], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(seen["vit"][0], seen["vit"][2])


def test_it_continues_when_stopped_and_starts_again_with_other_weights(copied, monkeypatch):
    arguments = ("vit", "cnn", "--robustness", "--num_images", str(IMAGES))
    run_compare(copied, *arguments)
    whole = measured_rows(copied)
    for name in ("vit", "cnn"):
        (copied / "output" / name / "robustness.pt").unlink()
    add_batch, added, stops = robustness.add_batch, [], [3, 17]  # within a condition, and within an attack

    def add_and_count(measured, condition, *rest):
        if len(added) in stops:
            stops.remove(len(added))
            raise KeyboardInterrupt
        added.append((measured.name, *condition))
        add_batch(measured, condition, *rest)

    monkeypatch.setattr(robustness, "add_batch", add_and_count)
    for _ in range(2):
        with exits_with(130):
            run_compare(copied, *arguments)
    run_compare(copied, *arguments)
    assert len(added) == 2 * 2 * len(FEW)  # no batch was measured twice
    assert measured_rows(copied) == whole
    (copied / "output" / "vit" / "robustness.pt").write_text("damaged")
    state = checkpoint.load(copied / "model" / "cnn")
    state["weights"]["classifier.4.bias"][3] += 100
    checkpoint.save(copied / "model" / "cnn" / "best.pt", state)
    run_compare(copied, *arguments)
    assert len(added) == 4 * 2 * len(FEW)
    assert [row for row in measured_rows(copied) if row["run"] == "vit"] == [
        row for row in whole if row["run"] == "vit"
    ]
    assert {row["retained"] for row in measured_rows(copied) if row["run"] == "cnn"} == {1.0}  # it predicts one class


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(2, 3 * 8 * 8))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


@pytest.mark.quick
@pytest.mark.parametrize("level", list(robustness.PGD_LEVELS))
def test_the_attack_finds_the_worst_change_of_a_linear_network(level):
    """There, each pixel moves by the largest change, in the direction of the difference of the weights."""
    model, largest = Linear().eval(), robustness.PGD_LEVELS[level]
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    network = checkpoint.Network("linear", model, torch.device("cpu"), ["a", "b"], mean, std, {}, "")
    images = torch.randint(5, 250, (400, 3, 8, 8), dtype=torch.uint8)
    labels = network.logits(images).argmax(dim=1)
    correct, pixels = robustness.attack(network, images, labels, torch.ones(400, dtype=torch.bool), level, 0)
    with torch.no_grad():
        slope = (model.weight[0] - model.weight[1]).view(3, 8, 8) / std[:, None, None]
        scores = model((images / 255 - mean[:, None, None]) / std[:, None, None])
        margin = (scores[:, 0] - scores[:, 1]).abs() - largest * slope.abs().sum()
        attacked = model((pixels - mean[:, None, None]) / std[:, None, None])
    assert torch.equal(correct, margin > 0)
    assert 0 < correct.sum() < 400
    assert torch.equal(correct, attacked.argmax(dim=1) == labels)
    assert (pixels - images / 255).abs().max() <= largest + 1e-6


@pytest.mark.quick
def test_the_attack_keeps_pixels_in_range_and_attacks_only_what_stood():
    network = checkpoint.Network("linear", Linear(), torch.device("cpu"), [], torch.zeros(3), torch.ones(3), {}, "")
    images = 255 * torch.randint(0, 2, (50, 3, 8, 8), dtype=torch.uint8)
    labels, stood = network.logits(images).argmax(dim=1), torch.arange(50) % 3 > 0
    correct, pixels = robustness.attack(network, images, labels, stood, "2/255", 0)
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert torch.equal(pixels[~stood], images[~stood] / 255)
    assert not correct[~stood].any()
    assert not torch.equal(pixels[stood], images[stood] / 255)


def draw_predictions(random, images):
    """Which images are right, for two networks, on clean and corrupted images that are partly right together."""
    shared = random.uniform(size=images)
    right = [0.7 * shared + 0.3 * random.uniform(size=images) < limit for limit in (0.8, 0.45, 0.75, 0.5)]
    return [torch.from_numpy(values).double() for values in right]


@pytest.mark.quick
def test_intervals_agree_with_the_bootstrap():
    random = np.random.RandomState(0)
    clean, corrupted, other_clean, other_corrupted = draw_predictions(random, 800)
    fractions, differences = [], []
    for _ in range(2000):
        drawn = torch.from_numpy(random.randint(0, 800, 800))
        one, other = (
            a[drawn].mean() / b[drawn].mean() for a, b in ((corrupted, clean), (other_corrupted, other_clean))
        )
        fractions.append(one.item())
        differences.append((one - other).item())
    fraction, ends = retained_accuracy(corrupted, clean)
    assert fraction == pytest.approx((corrupted.sum() / clean.sum()).item())
    assert ends == pytest.approx(np.quantile(fractions, (0.025, 0.975)), abs=0.006)
    difference, ends = retained_difference((corrupted, clean), (other_corrupted, other_clean))
    assert difference == pytest.approx(fraction - (other_corrupted.sum() / other_clean.sum()).item())
    assert ends == pytest.approx(np.quantile(differences, (0.025, 0.975)), abs=0.006)


@pytest.mark.quick
def test_intervals_at_the_ends():
    clean, nothing = torch.ones(500).double(), torch.zeros(500).double()
    fraction, (low, high) = retained_accuracy(nothing, clean)
    assert (fraction, low) == (0, 0)
    assert 0.004 < high < 0.01  # three wrong in 500 would be 0.006
    assert retained_accuracy(clean, nothing) == (None, (None, None))
    assert retained_difference((clean, nothing), (clean, clean)) == (None, (None, None))
    _, (low, high) = retained_accuracy(clean, clean)
    assert low < 1 < high


@pytest.mark.quick
def test_mistakes_are_answered(copied, monkeypatch, capsys):
    with exits_with(2):
        run_compare(copied, "cnn", "--num_images", "5")
    assert "only applies to --robustness" in capsys.readouterr().err
    monkeypatch.setattr(compare, "SIDE_MULTIPLE", 20)
    with exits_with(2):
        run_compare(copied, "cnn", "--robustness")
    assert "multiple of 20 pixels, but cnn takes 32" in capsys.readouterr().err
    assert (copied / "comparison" / "comparison.md").exists()  # the rest of the comparison is there

    def fail(*_, **__):
        raise compare.UserError("the data set is not there")

    monkeypatch.setattr(dataset, "load_test", fail)
    with exits_with(2):
        run_compare(copied, "cnn", "--robustness")
    assert "--robustness needs the test images" in capsys.readouterr().err
