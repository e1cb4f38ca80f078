"""Tests of compare.py as a user runs it: its tables agree with each other, and it compares all runs that it can."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import types
from unittest import mock

import pytest
import torch
from helpers import SMALL_VIT, folder_flags, memory_within, run_training
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import compare
import train
from model import build_model, count_flops
from vit_cifar10.data import dataset
from vit_cifar10.evaluation import comparison, full_test, tables
from vit_cifar10.runs import checkpoint
from vit_cifar10.training import trainer
from vit_cifar10.training.signals import Interrupted
from vit_cifar10.utils.errors import UserError

PICTURES = ("model_comparison.png", "class_accuracy.png", "disagreements.png")


def run_compare(folder, runs, extra="", status=0):
    """Run compare.py below `folder` and check its exit status.

    Returns standard output, standard error, and the contents of comparison.json or None.
    """
    flags = [*folder_flags(folder), f"--compare_path={folder / 'comparison'}", "--device=cpu", *extra.split()]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            compare.main([*runs, *flags])
            ended_with = 0
        except SystemExit as stopped:
            ended_with = stopped.code
    assert ended_with == status, err.getvalue()
    file = folder / "comparison" / "comparison.json"
    return out.getvalue(), err.getvalue(), json.loads(file.read_text()) if file.exists() else None


def copy_runs(runs, folder):
    for name in ("model", "output"):
        shutil.copytree(runs / name, folder / name)
    return folder


@pytest.fixture
def copied(compared, tmp_path, no_pictures):
    """A copy of the two trained and tested runs that a test may change."""
    return copy_runs(compared[0], tmp_path)


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    """A comparison of the two runs: its folder, standard output, comparison.json, and the curves that were drawn."""
    folder = copy_runs(runs, tmp_path_factory.mktemp("compared"))
    with mock.patch.object(compare, "save_comparison", wraps=compare.save_comparison) as save:
        printed, _, found = run_compare(folder, [str(folder / "model" / "vit"), "cnn"])
    return folder, printed, found, save.call_args.args[0]


def printed_table(text, heading):
    """The cells of the table below a heading: one list per line, without the separator line."""
    (part,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def printed_column(text, heading, name):
    """A column of the table below a heading: {the first cell of a row: its cell in the column}."""
    head, *rows = printed_table(text, heading)
    return {row[0]: row[head.index(name)] for row in rows}


@pytest.mark.quick
def test_screen_markdown_csv_and_json_agree(compared):
    folder, printed, found, _ = compared
    assert max(map(len, printed.split("\nwrote ")[0].splitlines())) < 80
    ending = " ".join(printed.split("\n\n")[-1].split())
    assert re.fullmatch(r"The (ViT|CNN) .*points ahead \(95 %: -?[\d.]+ to [\d.]+\)\.", ending)
    assert printed.split("\nwrote ")[0].strip() in (folder / "comparison" / "comparison.md").read_text()
    with open(folder / "comparison" / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["vit", "cnn"]
    for row, ours in zip(rows, found["runs"], strict=True):
        assert {key: str("" if value is None else value) for key, value in ours.items()} == row
        cells = printed_column(printed, "Runs", ours["run"])
        assert cells["parameters"] == f"{ours['parameters']:,}"
        assert cells["test accuracy"] == f"{100 * ours['accuracy']:.2f} %"
        assert cells["weighted F1"] == f"{100 * ours['weighted_f1']:.2f} %"
        assert cells["calibration error"] == f"{100 * ours['calibration_error']:.2f} %"
        printed_recalls = printed_column(printed, "Classes of shapes", ours["run"])
        assert printed_recalls == {
            row["class"]: f"{100 * row['recall'][ours['run']]:.1f} %" for row in found["classes"][0]["classes"]
        }
        tested, config = (
            json.loads((folder / "output" / ours["run"] / f"{name}.json").read_text())
            for name in ("test_results", "config")
        )
        assert ours["accuracy"] == tested["accuracy"]
        assert ours["weighted_f1"] == tested["weighted"]["f1"]
        assert ours["calibration_error"] == tested["calibration"]["error"]
        assert ours["parameters"] == config["parameters"]
        recalls = [row["recall"][ours["run"]] for row in found["classes"][0]["classes"]]
        assert recalls == tested["by_class"]["recall"]
    written = (folder / "comparison" / "comparison.md").read_text()
    assert re.findall(r"!\[.+\]\((.+)\)", written) == list(PICTURES)
    for picture in PICTURES:
        assert Image.open(folder / "comparison" / picture).width > 500


@pytest.mark.quick
def test_pairs_count_what_only_one_gets_right(compared):
    folder, printed, found, _ = compared
    is_correct = {}
    for name in ("vit", "cnn"):
        saved = torch.load(folder / "output" / name / "test_logits.pt", weights_only=True)
        is_correct[name] = saved["logits"].argmax(1) == saved["labels"]
    (pair,) = found["pairs"]
    assert pair["only_one"] == (is_correct["vit"] & ~is_correct["cnn"]).sum().item()
    assert pair["only_other"] == (is_correct["cnn"] & ~is_correct["vit"]).sum().item()
    accuracies = [row["accuracy"] for row in found["runs"]]
    assert pair["difference"] == pytest.approx(accuracies[0] - accuracies[1], abs=1e-6)
    assert pair["low"] < pair["difference"] < pair["high"]
    _, (_, _, *cells) = printed_table(printed, "Pairs")
    points = [f"{100 * pair[key]:+.2f}" for key in ("difference", "low", "high")]
    assert cells[:4] == [points[0], f"{points[1]} to {points[2]}", str(pair["only_one"]), str(pair["only_other"])]


def test_the_table_of_many_runs_has_a_row_for_each():
    row = dict.fromkeys((*tables.COLUMNS, "accuracy_low", "accuracy_high", "epochs", "planned_epochs"))
    names = [f"a-rather-long-name-{number}" for number in range(12)]
    lines = tables.runs_table([{**row, "run": name} for name in names]).splitlines()
    assert [line.split()[1] for line in lines[2:]] == names


def test_tables_of_any_runs_fit_into_a_terminal():
    names = [f"vit-layer6-32-cifar10-20261120-1830{number}" for number in range(12)]
    row = dict.fromkeys((*tables.COLUMNS, "accuracy_low", "accuracy_high", "epochs", "planned_epochs"), 3)
    row |= {"network": "n" * 80, "dataset": "cifar10"}
    pair = dict.fromkeys(("difference", "low", "high", "p"), -0.1) | {"only_one": 1000, "only_other": 1000}
    pairs = [{**pair, "one": one, "other": other} for one, other in itertools.pairwise(names)]
    classes = [{"class": "automobile", "recall": dict.fromkeys(names, 1.0)}]
    seeds = [{"runs": names, "accuracy": (0.9, 0.1)}]
    rows = [{**row, "run": name} for name in names]
    text = tables.all_tables(rows, seeds, pairs, [{"dataset": "cifar10", "classes": classes}])
    assert max(map(len, text.splitlines())) < 80
    assert all(f" {name} " in text for name in names)


@pytest.mark.parametrize(
    ("difference", "ends", "expected"),
    [
        (0.012, (0.005, 0.019), "The CNN is 1.2 points ahead (95 %: 0.5 to 1.9)."),
        (0.002, (-0.005, 0.009), "may be equally accurate: the CNN is 0.2 points ahead (95 %: -0.5 to 0.9)."),
    ],
)
def test_the_conclusion_names_the_better_network(difference, ends, expected):
    def run(name, title, accuracy):
        network = types.SimpleNamespace(model=types.SimpleNamespace(title=title))
        return types.SimpleNamespace(name=name, network=network, results={"accuracy": accuracy}, tested=True)

    runs = [run("a", "ViT", 0.8), run("b", "CNN", 0.8 + difference), run("c", "ViT", 0.7)]
    pair = {"one": "a", "other": "b", "difference": -difference, "low": -ends[1], "high": -ends[0]}
    assert tables.conclusion([[runs[0]], [runs[1]]], [pair]).endswith(expected)
    three = [pair, {**pair, "other": "c"}]
    assert "b is " in tables.conclusion([[one] for one in runs], three)
    assert "points ahead of a (95 %: " in tables.conclusion([[one] for one in runs], three)
    seeds = tables.conclusion([[runs[0], runs[2]], [runs[1]]], three)
    assert seeds.startswith(f"The CNN is {100 * difference + 5:.1f} points ahead on average over seeds (8")
    assert tables.conclusion([runs[:1]], []) == ""


def test_the_picture_shows_the_numbers_of_the_table(compared):
    _, _, found, curves = compared
    assert [name for name, _ in curves] == [f"{row['run']}: {100 * row['accuracy']:.2f} %" for row in found["runs"]]
    for (_, (history,)), row in zip(curves, found["runs"], strict=True):
        assert history[-1]["test_accuracy"] == row["final_accuracy"]


@pytest.mark.quick
def test_the_operation_count_is_for_one_image_and_matches_pytorch(compared):
    folder, _, found, _ = compared
    for row in found["runs"]:
        model = build_model(checkpoint.load(folder / "model" / row["run"])["model_config"]).eval()
        for block in getattr(model, "blocks", ()):
            block.attn.fused_attn = False
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, 3, 32, 32))
        assert row["flops"] == counter.get_total_flops() / 2
    assert count_flops({"model": "cnn", "img_size": 32}) == pytest.approx(
        2 * 15.5e6, rel=0.01
    )  # multiplications and additions


def test_earlier_test_results_are_used_only_for_the_same_weights(copied):
    run_compare(copied, ["cnn"])
    file = copied / "output" / "cnn" / "test_results.json"
    written_at = file.stat().st_mtime_ns
    (copied / "comparison" / "disagreements.png").write_text("of two other runs")
    assert re.search(r"removed pictures of an earlier [^:]*:\s+disagreements.png", run_compare(copied, ["cnn"])[0])
    assert file.stat().st_mtime_ns == written_at
    assert not (copied / "comparison" / "disagreements.png").exists()
    state = checkpoint.load(copied / "model" / "cnn")
    state["weights"]["classifier.4.bias"][3] += 100
    checkpoint.save(copied / "model" / "cnn" / "best.pt", state)
    _, _, found = run_compare(copied, ["cnn"])
    assert found["runs"][0]["accuracy"] == pytest.approx(0.1)


def test_without_the_test_images_earlier_results_are_compared(copied, monkeypatch):
    _, _, before = run_compare(copied, ["vit", "cnn"])

    def fail(*_, **__):
        raise UserError("the data set is not there")

    monkeypatch.setattr(dataset, "load_test", fail)
    _, warnings, found = run_compare(copied, ["vit", "cnn"])
    assert found == before
    assert warnings.count("the data set is not there") == 1


def test_seeds_become_mean_and_standard_deviation_and_sample_sizes_become_a_curve(tmp_path, no_pictures):
    for name, flags in {
        "a": "",
        "b": "--seed 1 --save_every 1",
        "few": "--num_train_images 200 --epochs 4 --num_test_images 100",
        "wide": "--width 10",
    }.items():
        run_training(tmp_path, f"--run_name {name} --model cnn --width 8 --epochs 1 {flags}")
    shutil.copytree(tmp_path / "model" / "a", tmp_path / "model" / "copy")
    shutil.copytree(tmp_path / "output" / "a", tmp_path / "output" / "copy")
    earlier = checkpoint.load(tmp_path / "model" / "b")
    del earlier["recipe"]["eval_every"], earlier["recipe"]["init"]  # which an earlier version did not have
    checkpoint.save(tmp_path / "model" / "b" / "best.pt", earlier)
    with mock.patch.object(compare, "save_sample_sizes", wraps=compare.save_sample_sizes) as save:
        printed, _, found = run_compare(tmp_path, ["a", "b", "few", "wide", "copy"])
    (group,) = found["seeds"]
    assert group["runs"] == ["a", "b"]
    values = torch.tensor([row["accuracy"] for row in found["runs"][:2]], dtype=torch.float64)
    assert group["accuracy"] == pytest.approx([values.mean().item(), values.std().item()])
    assert f"{100 * values.mean():.2f} ± {100 * values.std():.2f} %" in printed
    assert Image.open(tmp_path / "comparison" / "accuracy_by_images.png").width == 700
    accuracy = {row["run"]: row["accuracy"] for row in found["runs"]}
    final = {row["run"]: row["final_accuracy"] for row in found["runs"]}
    assert final["few"] is None  # its final accuracy is for other images
    assert final["a"] is not None
    curves = save.call_args.args[0]  # none for "wide", which has only one sample size
    (sizes,) = curves.values()
    assert list(curves) == ["CNN, 1 to 4 epochs"]
    accuracies = {images: [value for value, _, _ in points] for images, points in sizes.items()}
    assert accuracies == {600: [accuracy["a"], accuracy["b"], accuracy["copy"]], 200: [accuracy["few"]]}


def test_runs_on_fewer_images_form_one_curve_with_the_same_number_of_steps_or_epochs(runs):
    loaded = [comparison.load_trained_run("cnn", runs / "model", runs / "output", "cpu") for _ in range(4)]
    for run, (images, epochs) in zip(loaded, ((640, 10), (64, 100), (64, 10), (640, 20)), strict=True):
        run.flags = {"model": "cnn", "epochs": epochs, "num_train_images": images, "batch_size": 64}
        results = {"accuracy": epochs / 100, "accuracy_interval": [0, 1]}
        run.train_images, run.tested = images, full_test.FullTest(results, None, None)
    many, few, fewer_steps, longer = loaded
    assert comparison.sample_sizes([many, few]) == {
        "CNN, 10 to 100 epochs": {640: [(0.1, 0, 1)], 64: [(1.0, 0, 1)]},
    }
    assert list(comparison.sample_sizes([many, fewer_steps]).values()) == [{640: [(0.1, 0, 1)], 64: [(0.1, 0, 1)]}]
    assert list(comparison.sample_sizes([longer, fewer_steps]).values()) == [{640: [(0.2, 0, 1)]}, {64: [(0.1, 0, 1)]}]
    few.is_finished = False
    assert list(comparison.sample_sizes([many, few]).values()) == [{640: [(0.1, 0, 1)]}]


def test_bad_runs_are_reported_and_the_others_compared(copied):
    (copied / "empty").mkdir()
    output = copied / "output"
    cut_off = (output / "vit" / "metrics.csv").read_text()[:-9]
    (output / "vit" / "metrics.csv").write_text(cut_off)
    (output / "cnn" / "metrics.csv").write_text("")
    (output / "cnn" / "config.json").unlink()
    shutil.copytree(copied / "model" / "cnn", copied / "elsewhere" / "cnn")
    repeated = [str(copied / "model" / "cnn" / "best.pt"), str(copied / "elsewhere" / "cnn")]
    assert comparison.load_trained_run("vit", copied / "model", output, "cpu").is_finished  # cut after its last epoch
    _, messages, found = run_compare(copied, ["vit", "cnn", str(copied / "empty"), "nothing", *repeated], status=2)
    assert [row["run"] for row in found["runs"]] == ["vit", "cnn"]
    assert [row["epochs"] for row in found["runs"]] == [1, None]
    assert found["runs"][0]["train_seconds"] is None
    assert len(found["pairs"]) == 1
    for pattern in (
        r"last line of .*metrics\.csv is cut off",
        r"cnn/metrics\.csv is empty",
        r"config\.json cannot be read",
        r"no checkpoint of \S+empty",
        r"no checkpoint of nothing",
        r"elsewhere/cnn is left out: another run is also named cnn",
        r"error: 3 of the runs could not be compared",
    ):
        assert len(re.findall(pattern, messages)) == 1, pattern
    assert len(messages.splitlines()) == 7


@pytest.mark.parametrize(
    ("file", "content", "warning"),
    [
        ("metrics.csv", "epoch,train_loss\ninf,1.0\n", "there are no curves"),
        ("metrics.csv", "\x00\x01\n", "there are no curves"),
        ("config.json", "[]", "training images is unknown"),
        ("config.json", '{"train_images": "many"}', "training images is unknown"),
        ("test_logits.pt", "rubbish", ""),
    ],
)
def test_a_damaged_record_loses_only_its_own_contents(file, content, warning, copied):
    before = run_compare(copied, ["cnn"])[2]["runs"][0]
    (copied / "output" / "cnn" / file).write_text(content)
    _, warnings, found = run_compare(copied, ["cnn"])
    assert warning in warnings
    assert len(warnings.splitlines()) == bool(warning)
    assert found["runs"][0]["accuracy"] == before["accuracy"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.csv", "epoch\n" + "x" * 200_000 + "\n"),
        ("metrics.csv", "epoch,test_accuracy\n1,2.0\n"),
        ("metrics.csv", None),
        ("config.json", None),
        ("metrics.csv", "epoch\n1\n1\n"),
        ("metrics.csv", "epoch,val_loss\n1,1.7e308\n"),
        ("config.json", "[" * 10**5),
        ("config.json", '{"flags": {}, "train_images": 100}'),
        ("config.json", '{"flags": {}, "train_images": 1%s}' % ("0" * 400)),
    ],
)
def test_a_record_from_a_stranger_is_checked_before_it_is_used(file, content, copied):
    path = copied / "output" / "cnn" / file
    path.unlink()
    if content is None:
        os.mkfifo(path)  # reading from it would wait forever
    else:
        path.write_text(content)
    run = comparison.load_trained_run("cnn", copied / "model", copied / "output", torch.device("cpu"))
    (note,) = run.notes
    assert f"{file} cannot be read" in note
    assert len(note) < 1_000


def test_logits_of_another_network_are_not_used(copied):
    run_compare(copied, ["cnn"])
    file = copied / "output" / "cnn" / "test_logits.pt"
    saved = torch.load(file, weights_only=True)
    large = torch.zeros(1, dtype=torch.half).expand(10**8, 10)
    for wrong in (saved["logits"][:, :3], saved["logits"][:9], saved["logits"] * float("nan"), large):
        labels = {"labels": torch.zeros(1, dtype=torch.long).expand(10**8)} if wrong is large else {}
        torch.save({**saved, **labels, "logits": wrong}, file)
        with memory_within(400_000_000):
            assert run_compare(copied, ["cnn"])[1] == ""
        torch.testing.assert_close(torch.load(file, weights_only=True)["logits"], saved["logits"])
    file.unlink()
    os.mkfifo(file)  # reading from it would wait forever
    run = comparison.load_trained_run("cnn", copied / "model", copied / "output", torch.device("cpu"))
    assert full_test.load_full_test(file.parent, run.network, run.checkpoint_path) is None


def test_the_record_of_another_run_with_the_same_name_is_not_used(copied):
    shutil.copytree(copied / "model" / "vit", copied / "elsewhere" / "cnn")
    run_compare(copied, ["cnn"])
    tested = (copied / "output" / "cnn" / "test_results.json").read_text()
    _, warnings, found = run_compare(copied, [str(copied / "elsewhere" / "cnn")])
    assert "is the record of a run other than" in warnings
    (row,) = found["runs"]
    assert (row["epochs"], row["train_seconds"], row["train_images"]) == (None, None, None)
    assert row["accuracy"] == checkpoint.load(copied / "model" / "vit")["metrics"]["test_accuracy"]
    assert (copied / "output" / "cnn" / "test_results.json").read_text() == tested


def test_an_unfinished_run_is_not_grouped_with_other_seeds(copied):
    loaded = [comparison.load_trained_run("cnn", copied / "model", copied / "output", "cpu") for _ in range(3)]
    for seed, run in enumerate(loaded):
        run.network = dataclasses.replace(run.network, name=f"seed{seed}")
        run.flags = {**run.flags, "seed": seed}
    loaded[0].flags |= {"forward_mul": 4, "warmup_epochs": 1}
    loaded[1].flags |= {"forward_mul": 4.0, "warmup_epochs": 1.0}  # as after a resume
    loaded[2].flags |= {"forward_mul": 4, "warmup_epochs": 1.0}
    assert [len(group) for group in comparison.group_seeds(loaded)] == [3]
    loaded[1].is_finished = False
    assert sorted(len(group) for group in comparison.group_seeds(loaded)) == [1, 2]


def test_a_run_whose_record_is_cut_off_in_an_early_epoch_is_unfinished(copied):
    folder = copied / "output" / "cnn"
    config = json.loads((folder / "config.json").read_text())
    config["flags"]["epochs"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    rows = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(rows[:-9])
    run = comparison.load_trained_run("cnn", copied / "model", copied / "output", "cpu")
    assert (len(run.epochs), run.is_cut, run.is_finished) == (1, True, False)


def test_the_progress_of_a_resumed_run_refers_to_its_new_length(copied, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "batches", mock.Mock(side_effect=Interrupted(15)))
    with pytest.raises(SystemExit):
        train.main(["--resume", str(copied / "model" / "cnn"), "--epochs", "5", f"--output_path={copied / 'output'}"])
    kept = checkpoint.load(copied / "model" / "cnn")
    assert kept["recipe"]["epochs"] == 2
    checkpoint.save(copied / "model" / "cnn" / "best.pt", {**kept, "epoch": 3})  # not yet in metrics.csv
    printed, warnings, _ = run_compare(copied, ["cnn"])
    assert "cnn is unfinished: it has 2 of 5 epochs" in warnings
    assert printed_column(printed, "Runs", "cnn")["epochs"] == "2 of 5"


def test_runs_tested_on_different_folders_are_not_paired(tmp_path, no_pictures):
    for seed, name in enumerate(("one", "other")):
        images = torch.randint(0, 256, (24, 32, 32, 3), dtype=torch.uint8)
        for number, image in enumerate(images):
            file = tmp_path / name / ("train" if number % 2 else "test") / ("ab"[number // 12]) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).save(file)
        flags = f"--dataset folder --val_images 0 --epochs 1 --model cnn --num_workers 0 --device cpu --seed {seed}"
        train.main([*folder_flags(tmp_path), f"--data_path={tmp_path / name}", "--run_name", name, *flags.split()])
        run_compare(tmp_path, [name], f"--data_path {tmp_path / name} --num_workers 0")
    tested = json.loads((tmp_path / "output" / "one" / "test_results.json").read_text())["test_sha256"]
    _, _, found = run_compare(tmp_path, ["one", "other"])  # data/ is empty, so each run keeps its own test results
    assert (found["pairs"], found["classes"], found["seeds"]) == ([], [], [])
    _, _, found = run_compare(tmp_path, ["one", "other"], f"--data_path {tmp_path / 'other'} --num_workers 0")
    assert len(found["pairs"]) == 1
    assert json.loads((tmp_path / "output" / "one" / "test_results.json").read_text())["test_sha256"] != tested


def test_runs_on_different_data_sets_are_not_paired(copied):
    run_training(copied, f"--run_name large --epochs 1 --image_size 16 {SMALL_VIT} --num_train_images 100")
    state = checkpoint.load(copied / "model" / "cnn")
    checkpoint.save(copied / "model" / "other" / "best.pt", {**state, "dataset": "cifar100"})
    _, warnings, found = run_compare(copied, ["vit", "cnn", "large", "other"])
    assert ["vit", "cnn"] in [[pair["one"], pair["other"]] for pair in found["pairs"]]
    assert not any("other" in pair.values() for pair in found["pairs"])
    assert "only runs on the same one are compared in pairs" in warnings
    assert "cifar100 is not in" in warnings
    assert "other cannot be tested without its test images" in warnings
    assert len(found["runs"]) == 4


def test_names_of_classes_make_networks_comparable(copied):
    state = checkpoint.load(copied / "model" / "cnn")
    names, numbered = state["classes"], {**state, "classes": [f"LABEL_{number}" for number in range(10)]}
    checkpoint.save(copied / "model" / "numbered" / "best.pt", numbered)
    _, _, found = run_compare(copied, ["vit", "numbered"])
    assert found["pairs"] == []
    (copied / "names.txt").write_text("\n".join(names))
    _, _, found = run_compare(copied, ["vit", "cnn", "numbered"], f"--class_names {copied / 'names.txt'}")
    assert {row["class"] for row in found["classes"][0]["classes"]} == set(names)
    *_, same = found["pairs"]
    assert (same["one"], same["other"], same["only_one"], same["only_other"]) == ("cnn", "numbered", 0, 0)
    (copied / "names.txt").write_text("one\ntwo")
    _, warnings, _ = run_compare(copied, ["vit", "cnn"], f"--class_names {copied / 'names.txt'}", status=2)
    assert "has 2 names, but the network has 10 classes" in warnings


def test_nothing_is_tested_if_the_comparison_cannot_be_written(copied):
    (copied / "comparison").write_text("mine")
    with mock.patch.object(compare, "test_all") as test_all:
        run_compare(copied, ["cnn"], status=2)
    test_all.assert_not_called()


def test_an_earlier_comparison_is_kept_if_there_is_nothing_to_compare(copied):
    _, _, before = run_compare(copied, ["vit", "cnn"])
    _, messages, after = run_compare(copied, ["vit", "cmn"], status=2)
    assert before == after
    assert "there is no checkpoint of cmn" in messages
    assert "only vit is left" in messages


def test_nothing_to_compare_is_an_error(tmp_path):
    run_compare(tmp_path, ["nothing"], status=2)
    assert not any(tmp_path.iterdir())
