"""The documents show figures that were measured with the weights that ship with the project."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import exits_with

import shipped
import showcase
import tables
import test as test_command
from vit_cifar10.evaluation import metrics
from vit_cifar10.runs import checkpoint


def test_every_record_belongs_to_the_weights_in_git():
    saved = json.loads(shipped.RECORDS.read_text())
    assert list(saved) == shipped.shipped_runs()
    for run, parts in saved.items():
        weights = checkpoint.hash_file(tables.ROOT / "model" / run / "best.pt")
        assert {part: record["checkpoint_sha256"] for part, record in parts.items()} == dict.fromkeys(
            shipped.PARTS, weights
        ), "run benchmarks/showcase.py"


def test_generated_text_matches_the_records():
    for (path, name), expected in shipped.generated_blocks(shipped.read_records()).items():
        _, block, _ = tables.split_at_markers(path, name)
        assert block == f"{expected}\n", name


def test_the_model_card_describes_the_predictions():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 3, (2000, 4)), generator.integers(0, 4, 2000)
    classes = ["a", "b", "c", "d"]
    scores = metrics.all_scores(torch.tensor(logits), torch.tensor(labels))
    described = shipped.describe_scores({"classes": classes, "flip": {"accuracy": 0.5}, **scores}, noise={})

    odds = np.exp(logits)
    confidence, predicted = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1), logits.argmax(axis=1)
    is_right = predicted == labels
    recall = {name: is_right[labels == number].mean() for number, name in enumerate(classes)}
    assert described["recall"] == [[name, pytest.approx(recall[name])] for name in sorted(recall, key=recall.get)]
    counts = {
        (classes[i], classes[j]): ((labels == i) & (predicted == j)).sum() for i in range(4) for j in range(4) if i != j
    }
    assert [count for *_, count in described["confusions"]] == sorted(counts.values())[: -1 - 3 : -1]
    assert all(counts[true, other] == count for true, other, count in described["confusions"])
    confident = confidence > 0.8
    assert described["confident"] == {
        "images": confident.sum(),
        "confidence": pytest.approx(confidence[confident].mean()),
        "accuracy": pytest.approx(is_right[confident].mean()),
    }
    gap, low, high = described["largest_gap"]
    inside = (confidence > low) & (confidence <= high)
    assert gap == pytest.approx(is_right[inside].mean() - confidence[inside].mean())
    edges = np.linspace(0, 1, 16)
    bins = [(confidence > start) & (confidence <= end) for start, end in itertools.pairwise(edges)]
    gaps = [abs(is_right[inside].mean() - confidence[inside].mean()) for inside in bins if inside.sum() >= 100]
    assert abs(gap) == pytest.approx(max(gaps))


def test_showcase_measures_the_networks_and_fills_the_model_card(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("docs", "examples", "model"):
        shutil.copytree(tables.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*-32-cifar10"))
    for module, names in (
        (shipped, ("ROOT", "RECORDS", "MODEL_CARD", "EXPLANATIONS", "COMPARISON", "ROBUSTNESS")),
        (showcase, ("ROOT", "OUTPUT", "EXAMPLES")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(tables.ROOT))
    monkeypatch.setattr(showcase, "run_script", lambda _, flags, args: test_command.main([*flags, "--device", "cpu"]))
    model = tmp_path / "model"
    for name, run in ((shipped.MAIN_VIT, "vit"), (shipped.MAIN_CNN, "cnn")):
        shutil.copytree(runs / "model" / run, model / name)
    (tmp_path / "benchmarks").mkdir()
    showcase.main(["scores"])
    row = next(line for line in (model / "README.md").read_text().splitlines() if line.startswith("| accuracy (95"))
    printed = re.findall(r"test accuracy (.*?) % \(95 % interval (.*?) to (.*?)\)", capsys.readouterr().out)
    assert len(printed) == 2
    cells = [f"{accuracy} % ({low} to {high})" for accuracy, low, high in printed]
    assert row == f"| accuracy (95 % Wilson interval) | {' | '.join(cells)} |"
    for name in ("confusion-matrix.png", "reliability.png"):
        assert (tmp_path / "examples" / name).read_bytes() != (tables.ROOT / "examples" / name).read_bytes()

    shutil.copytree(runs / "model" / "cnn", model / shipped.MAIN_VIT, dirs_exist_ok=True)  # other weights
    showcase.main(["scores"])
    assert re.findall(r"^model/(.*?)/best.pt", capsys.readouterr().out, re.MULTILINE) == [shipped.MAIN_VIT]


def test_a_part_that_does_not_exist_is_refused(capsys):
    with exits_with(2):
        showcase.main(["everything"])
    assert "error: there is no part everything; the parts are scores, gifs," in capsys.readouterr().err
