"""Tests of train.py and test.py as a user runs them: what they write and print, and how they report mistakes."""

import csv
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from background import end, new_process
from helpers import (
    EVERY_METHOD,
    ROOT,
    SMALL_VIT,
    assert_equal_weights,
    checkpoint_contents,
    exits_with,
    load_weights,
    read_metrics,
    run_test,
    run_training,
    training_flags,
    wait_for,
)
from PIL import Image, ImageSequence

import compare
import test as test_command
import train
from vit_cifar10.data import dataset
from vit_cifar10.evaluation import faithfulness_report
from vit_cifar10.explain import faithfulness
from vit_cifar10.explain.methods import methods_for
from vit_cifar10.flags import compare as compare_flags
from vit_cifar10.flags import convert as convert_flags
from vit_cifar10.flags import test as test_flags
from vit_cifar10.flags import train as train_flags
from vit_cifar10.runs import checkpoint, writer
from vit_cifar10.training import trainer
from vit_cifar10.utils import cli

COMMANDS = {"train": train, "test": test_command, "compare": compare}
FLAGS = {"train": train_flags, "test": test_flags, "compare": compare_flags, "convert": convert_flags}

# train.py


@pytest.mark.quick
@pytest.mark.parametrize("run", ["vit", "cnn"])
def test_training_writes_a_complete_record(runs, run):
    rows = read_metrics(runs, run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(rows[1][f"{split}_accuracy"]) <= 1 for split in ("train", "val", "test"))
    config = json.loads((runs / "output" / run / "config.json").read_text())
    assert config["flags"]["epochs"] == 2
    assert (config["train_images"], config["val_images"], config["test_images"]) == (600, 500, 1000)
    assert Image.open(runs / "output" / run / "curves.png").size == (1200, 400)
    history = torch.load(runs / "output" / run / "history.pt", weights_only=True)
    assert history["config"] == config
    assert [row["train_loss"] for row in history["rows"]] == [float(row["train_loss"]) for row in rows]
    best = checkpoint.load(runs / "model" / run)
    chosen = max(rows, key=lambda row: float(row["val_accuracy"]))
    assert best["metrics"]["val_accuracy"] == pytest.approx(float(chosen["val_accuracy"]))
    assert best["epoch"] == int(chosen["epoch"])
    parameters = [value.numel() for name, value in best["weights"].items() if "running" not in name and value.ndim]
    assert sum(parameters) == config["parameters"]


def test_the_cnn_learns_shapes(tmp_path, capsys):
    flags = "--epochs 4 --batch_size 64 --num_train_images 2000"
    run_training(tmp_path, f"--run_name cnn --model cnn --width 8 --learning_rate 8e-3 {flags}")
    accuracy = re.search(r"test accuracy ([\d.]+) %", capsys.readouterr().out)
    assert float(accuracy[1]) > 80


@pytest.mark.quick
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_same_seed_gives_the_same_weights_even_across_an_interruption(optimizer, tmp_path, monkeypatch, capsys):
    flags = f"{SMALL_VIT} {EVERY_METHOD} --optimizer {optimizer} --val_images 100 --num_test_images 100"
    run_training(tmp_path, f"--run_name whole {flags}")
    run_training(tmp_path, f"--run_name again {flags}")
    run_training(tmp_path, f"--run_name other {flags} --seed 1")

    train_step = trainer.Trainer.train_step

    def step_and_interrupt(self, *batch):
        if self.step == 7:  # the second step of the third epoch
            signal.raise_signal(signal.SIGTERM)
        return train_step(self, *batch)

    monkeypatch.setattr(trainer.Trainer, "train_step", step_and_interrupt)
    with exits_with(128 + signal.SIGTERM):
        run_training(tmp_path, f"--run_name interrupted {flags}")
    resume = re.search(r"--resume (\S+)", capsys.readouterr().out)[1]
    assert checkpoint.load(resume, "last.pt")["training"]["step"] == 8
    assert (tmp_path / "output" / "interrupted" / "curves.png").exists()
    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)
    train.main(["--resume", resume])

    whole = load_weights(tmp_path, "whole", "last.pt")
    assert_equal_weights(whole, load_weights(tmp_path, "again", "last.pt"))
    assert_equal_weights(whole, load_weights(tmp_path, "interrupted", "last.pt"))
    assert_equal_weights(load_weights(tmp_path, "whole"), load_weights(tmp_path, "interrupted"))
    assert not torch.equal(whole["head.weight"], load_weights(tmp_path, "other", "last.pt")["head.weight"])
    ours, theirs = ([row["train_loss"] for row in read_metrics(tmp_path, run)] for run in ("whole", "interrupted"))
    assert len(ours) == 4
    assert ours == theirs


def test_images_that_do_not_fill_a_batch_are_reported(tmp_path, capsys):
    run_training(tmp_path, "--run_name run --model cnn --epochs 1 --num_train_images 200 --num_test_images 10")
    printed = capsys.readouterr().out.replace("\n  ", " ")
    assert "each epoch leaves out 72 of the 200 images, different ones each time" in printed
    assert "because they do not fill a batch of 128" in printed


@pytest.mark.quick
def test_each_schedule_trains_with_its_own_learning_rates(tmp_path):
    flags = "--model cnn --width 2 --learning_rate 0.01 --num_train_images 128 --batch_size 64 --num_test_images 10"
    rates = {  # of the second, fourth and last of six steps; the first two are warm-up
        "linear": [2 / 3, 1 - 0.99 / 3, 0.01],
        "cosine": [2 / 3, 0.01 + 0.99 * 0.75, 0.01],
        "onecycle": [1, (1 + 1 / 250_000) / 2, 1 / 250_000],
        "constant": [2 / 3, 1, 1],
        "plateau": [2 / 3, 1, 1],
    }
    weights = {}
    for schedule, expected in rates.items():
        run_training(tmp_path, f"--run_name {schedule} {flags} --epochs 3 --warmup_epochs 1 --schedule {schedule}")
        rows = read_metrics(tmp_path, schedule)
        assert [float(row["learning_rate"]) / 0.01 for row in rows] == pytest.approx(expected, rel=1e-4)
        weights[schedule] = load_weights(tmp_path, schedule, "last.pt")["classifier.4.weight"]
    assert torch.equal(weights["constant"], weights["plateau"])
    assert len({weight.sum().item() for weight in weights.values()}) == 4


def test_a_vit_with_one_layer_trains_and_gives_a_gif(tmp_path, monkeypatch):
    run_training(tmp_path, f"--run_name run --epochs 1 {SMALL_VIT} --n_layers 1 --num_train_images 100")
    run_test(tmp_path, "--model_path model/run --mode cifar-single", monkeypatch)
    assert Image.open(tmp_path / "attention_map_gif" / "shapes-index-1.gif").n_frames == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_train_on_the_cpu_too(precision, tmp_path):
    run_training(tmp_path, f"--run_name run --epochs 1 {SMALL_VIT} --precision {precision} --num_train_images 200")
    assert all(value.isfinite().all() for value in load_weights(tmp_path, "run").values())


def test_without_validation_images_the_last_epoch_is_kept(tmp_path):
    run_training(tmp_path, "--run_name run --model cnn --epochs 2 --val_images 0")
    assert checkpoint.load(tmp_path / "model" / "run")["epoch"] == 2
    assert_equal_weights(load_weights(tmp_path, "run"), load_weights(tmp_path, "run", "last.pt"))


@pytest.mark.quick
def test_recipes_take_comments_and_later_flags_win(tmp_path):
    recipe = tmp_path / "small.txt"
    recipe.write_text("# a recipe\n--model cnn --epochs 7  # two flags per line\n\n--run_name 'a name'\n")
    args = train.parse([f"@{recipe}", "--epochs", "9"])
    assert (args.model, args.epochs, args.run_name) == ("cnn", 9, "a name")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(range(256)), "cannot be read as flags"),
        (b"--epochs 3\n--data_path a\0b\n", "a recipe is a text file"),
        (b"@{recipe}\n", "cannot include another"),
        (b"--epochs '3\n", "cannot be read as flags"),
        (b"--epochs\n", "expected one argument"),
        ("# für alle\n--epochs 3\n".encode("cp1252"), "save it as text in UTF-8"),
    ],
    ids=["binary", "null byte", "another recipe", "open quote", "missing value", "Windows' code page"],
)
def test_files_that_are_not_recipes_are_refused(content, reason, tmp_path, capsys):
    recipe = tmp_path / "recipe.txt"
    recipe.write_bytes(content.replace(b"{recipe}", bytes(recipe)))
    with exits_with(2):
        train.main([f"@{recipe}"])
    assert reason in capsys.readouterr().err


def test_a_recipe_may_be_saved_by_any_editor(tmp_path):
    recipe = tmp_path / "my recipe.txt"
    recipe.write_bytes("\ufeff--epochs\t7\r\n--run_name caf\u00e9\r\n".encode())
    args = train.parse([f"@{recipe}"])
    assert (args.epochs, args.run_name) == (7, "caf\u00e9")


@pytest.mark.quick
@pytest.mark.parametrize("launcher", ["ipykernel_launcher.py", "colab_kernel_launcher.py"])
def test_the_arguments_of_a_notebooks_kernel_are_not_flags(launcher, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"/packages/{launcher}", "-f", "/runtime/kernel-1.json"])
    assert train.parse() == train.parse([])


@pytest.mark.quick
def test_the_usual_command_parses_with_the_usual_defaults():
    args = train.parse(["--patch_size", "4", "--epochs", "200"])
    expected = {
        "batch_size": 128,
        "num_workers": 2,
        "learning_rate": 5e-4,
        "warmup_epochs": 10,
        "epochs": 200,
        "device": "auto",
        "image_size": 32,
        "patch_size": 4,
        "data_path": "./data",
        "embed_dim": 192,
        "n_layers": 12,
        "n_attention_heads": 3,
        "forward_mul": 4,
        "dropout": 0.1,
    }
    assert {name: vars(args)[name] for name in expected} == expected
    assert re.fullmatch(r"vit-layer12-32-cifar10-\d{8}-\d{6}", writer.default_name(args))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(tmp_path, monkeypatch, capsys):
    train_step = trainer.Trainer.train_step

    def diverge_in_epoch_2(self, *batch):
        sums = train_step(self, *batch)
        return sums * torch.nan if (tmp_path / "model" / "run" / "last.pt").exists() else sums

    monkeypatch.setattr(trainer.Trainer, "train_step", diverge_in_epoch_2)
    with exits_with(2):
        run_training(tmp_path, f"--run_name run --epochs 3 {SMALL_VIT}")
    assert re.search(r"not finite.*epoch 2.*--learning_rate", capsys.readouterr().err)
    for name in ("best.pt", "last.pt"):
        saved = checkpoint.load(tmp_path / "model" / "run", name)
        assert saved["epoch"] == 1
        assert all(value.isfinite().all() for value in saved["weights"].values())


# test.py


@pytest.mark.quick
@pytest.mark.parametrize("run", ["vit", "cnn"])
def test_full_test_agrees_with_training_and_with_itself(runs, run, monkeypatch, capsys):
    run_test(runs, f"--model_path {run}", monkeypatch)
    results = json.loads((runs / "output" / run / "test_results.json").read_text())
    matrix = np.array(results["confusion_matrix"])
    assert matrix.sum() == results["images"] == 1000
    assert results["accuracy"] == pytest.approx(matrix.trace() / 1000)
    assert results["accuracy"] == pytest.approx(checkpoint.load(runs / "model" / run)["metrics"]["test_accuracy"])
    assert f"test accuracy {100 * results['accuracy']:.2f} %" in capsys.readouterr().out
    for picture in ("confusion_matrix", "reliability", "mistakes"):
        assert Image.open(runs / "output" / run / f"{picture}.png").width > 500


def test_printed_scores_match_the_written_ones_and_include_mirror_images(runs, monkeypatch, capsys):
    run_test(runs, "--model_path model/cnn --output_path tta --tta", monkeypatch)
    printed = capsys.readouterr().out
    results = json.loads((runs / "tta" / "cnn" / "test_results.json").read_text())
    for label, name in enumerate(results["classes"]):
        scores = [100 * results["by_class"][key][label] for key in ("precision", "recall", "f1")]
        line = re.search(rf"^{name} +([\d.]+) % +([\d.]+) % +([\d.]+) % +100$", printed, re.MULTILINE)
        assert [float(text) for text in line.groups()] == pytest.approx(scores, abs=0.006)
        counts = re.search(rf"^ {label} {name} +((?: *\d+){{10}})$", printed, re.MULTILINE)[1].split()
        assert list(map(int, counts)) == results["confusion_matrix"][label]
    low, high = (100 * bound for bound in results["accuracy_interval"])
    assert f"test accuracy {100 * results['accuracy']:.2f} % (95 % interval {low:.2f} to {high:.2f})" in printed
    assert f"calibration error {100 * results['calibration']['error']:.2f} %" in printed
    assert f"mirror images: test accuracy {100 * results['flip']['accuracy']:.2f} %" in printed
    logits = torch.load(runs / "tta" / "cnn" / "test_logits.pt", weights_only=True)
    is_correct = logits["logits"].argmax(1) == logits["labels"]
    assert is_correct.float().mean().item() == pytest.approx(results["accuracy"])
    assert len({results["loss"], results["flip"]["loss"], results["six_views"]["loss"]}) == 3
    assert f"(six views): test accuracy {100 * results['six_views']['accuracy']:.2f} %" in printed


@pytest.mark.quick
def test_one_test_image_gives_class_probabilities_and_a_frame_per_layer(runs, monkeypatch, capsys):
    methods = "--method attention rollout gradient-rollout"
    run_test(runs, f"--model_path model/vit --mode cifar-single --index 5 {methods}", monkeypatch)
    printed = capsys.readouterr().out
    assert "true class: ring" in printed
    assert len(re.findall(r"^ *[\d.]+ %  \w", printed, re.MULTILINE)) == 5
    gif = Image.open(runs / "attention_map_gif" / "shapes-index-5.gif")
    frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(gif)]
    assert len(frames) == 3
    assert frames[0].shape[1] == 960
    assert (runs / "attention_map_gif" / "shapes-index-5.png").exists()
    for left in (200, 388, 576):  # of the three maps
        maps = [frame[58:234, left : left + 176] for frame in frames]
        assert all(abs(one - other).mean() > 0.1 for one, other in itertools.pairwise(maps))
    assert gif.info["duration"] == 2500


def test_the_gif_shows_attention_and_the_patches_for_and_against_the_class(runs, monkeypatch):
    run_test(runs, "--model_path model/vit --mode cifar-single --index 7", monkeypatch)
    gif = Image.open(runs / "attention_map_gif" / "shapes-index-7.gif")
    frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(gif)]
    for left in (256, 520):  # attention in each layer, and AttnLRP in the tokens that enter it
        maps = [frame[58:290, left : left + 232] for frame in frames]
        assert all(abs(one - other).mean() > 0.1 for one, other in itertools.pairwise(maps))
    red_minus_blue = maps[0][..., 0] - maps[0][..., 2]
    assert red_minus_blue.min() < -20
    assert red_minus_blue.max() > 20


@pytest.mark.parametrize(("run", "frames"), [("vit", 3), ("cnn", 5)])
def test_every_method_can_be_drawn(run, frames, runs, tmp_path, monkeypatch):
    model = checkpoint.load_network(runs / "model" / run, torch.device("cpu")).model
    methods = methods_for(model)
    flags = f"--gif_path {tmp_path}/all.gif --method {' '.join(methods)} --samples 64"
    run_test(runs, f"--model_path model/{run} --mode cifar-single --index 5 {flags}", monkeypatch)
    assert Image.open(tmp_path / "all.gif").n_frames == frames
    assert Image.open(tmp_path / "all.png").height > 170 * len(methods)


@pytest.mark.parametrize(("run", "frames"), [("vit", 3), ("cnn", 5)])
def test_a_photograph_is_classified_and_explained(runs, run, frames, monkeypatch, capsys):
    image = ROOT / "examples" / "cat.png"
    gif = runs / run / "cat.gif"
    run_test(runs, f"--model_path model/{run}/best.pt --mode custom --image_path {image} --gif_path {gif}", monkeypatch)
    printed = capsys.readouterr().out
    percents = [float(percent) for percent in re.findall(r"^ *([\d.]+) %  \w", printed, re.MULTILINE)]
    assert percents == sorted(percents, reverse=True)
    assert Image.open(gif).n_frames == frames
    assert gif.stat().st_size < 1_500_000
    assert Image.open(gif.with_suffix(".png")).width > 500


def test_gif_and_window_can_be_left_out(runs, monkeypatch, capsys):
    image = ROOT / "examples" / "cat.png"
    before = sorted(runs.rglob("*"))
    run_test(runs, f"--model_path model/vit --mode custom --image_path {image} --no_gif --no_image", monkeypatch)
    assert "image: cat.png" in capsys.readouterr().out
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize(("run", "methods"), [("vit", 9), ("cnn", 4)])
def test_faithfulness_is_measured_and_recorded(runs, run, methods, monkeypatch, capsys):
    flags = f"--model_path model/{run} --mode faithfulness --num_images 10 --samples 64"
    run_test(runs, flags, monkeypatch)
    rows, by_method = (read_table(runs / "output" / run / f"faithfulness{end}.csv") for end in ("", "_methods"))
    assert len(rows) == (methods + 3) * 9
    assert len(by_method) == methods
    printed = capsys.readouterr().out
    for row in rows:
        for key in ("area", "gain", "gain_over_baseline"):
            assert float(row[f"{key}_low"]) <= float(row[key]) <= float(row[f"{key}_high"])
        gain = f" [{100 * float(row['gain_low']):+.1f}, {100 * float(row['gain_high']):+.1f}]"
        is_reference = row["method"] == row["reference"]
        assert re.search(rf"{100 * float(row['area']):5.1f}\*?{'' if is_reference else re.escape(gain)}", printed)
    assert all(float(row["milliseconds"]) > 0 for row in by_method)
    assert Image.open(runs / "output" / run / "faithfulness.png").width > 1000
    run_test(runs, flags, monkeypatch)
    assert "10 of the images have been measured before" in capsys.readouterr().out


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_faithfulness_test_that_was_stopped_continues(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(faithfulness_report, "BATCH", 4)
    monkeypatch.setattr(faithfulness_report, "RANDOMIZED", 4)
    monkeypatch.setattr(faithfulness_report, "save_faithfulness", lambda *_: None)
    flags = "--model_path model/vit --mode faithfulness --num_images 10"
    run_test(runs, f"{flags} --output_path {tmp_path}/whole", monkeypatch)
    whole, folder = tmp_path / "whole" / "vit", tmp_path / "stopped" / "vit"
    measure = faithfulness.measure_batch

    def stop_after_the_first_batch(*arguments, seed, **options):
        if seed:
            raise KeyboardInterrupt
        return measure(*arguments, seed=seed, **options)

    with monkeypatch.context() as patch, exits_with(130):
        patch.setattr(faithfulness, "measure_batch", stop_after_the_first_batch)
        run_test(runs, f"{flags} --output_path {tmp_path}/stopped", monkeypatch)
    assert [path.name for path in folder.iterdir()] == ["faithfulness.pt"]
    path = folder / "faithfulness.pt"
    saved = torch.load(path)
    capsys.readouterr()
    run_test(runs, f"{flags} --output_path {tmp_path}/stopped", monkeypatch)
    assert "4 of the images have been measured before" in capsys.readouterr().out
    assert (whole / "faithfulness.csv").read_text() == (folder / "faithfulness.csv").read_text()

    key = {name: saved[name] for name in ("protocol", "checkpoint_sha256", "test_sha256", "methods", "samples")}
    shapes = {name: values.shape[1:] for name, values in saved.items() if name not in key}
    for changes, rows in (
        ({}, 4),
        ({"curves": saved["curves"][:3].clone()}, 0),  # fewer rows than the rest
        ({"curves": torch.tensor(1.0)}, 0),
        ({"curves": 1e38 * saved["curves"]}, 0),
        ({"protocol": 0}, 0),
        ({"curves": "text"}, 0),
    ):
        torch.save({**saved, **changes}, path)
        assert len(faithfulness_report.load_measured(path, key, shapes, images=10)["curves"]) == rows


def test_an_image_may_have_any_valid_file_name(runs, monkeypatch, capsys):
    name = b"a $x^2\n\x1b[2J \xff\xe2\x82\xac.png"
    shutil.copy(ROOT / "examples" / "cat.png", os.path.join(bytes(runs), name))
    monkeypatch.chdir(runs)
    test_command.main(["--model_path", "model/vit", "--mode", "custom", "--image_path", os.fsdecode(name)])
    printed = capsys.readouterr().out
    assert "image: a $x^2\ufffd\ufffd[2J \ufffd\u20ac.png" in printed
    assert os.path.exists(os.path.join(b"attention_map_gif", name[:-4] + b".gif"))


def test_an_exported_test_image_is_classified_like_the_original(runs, monkeypatch, capsys):
    split = dataset.load_test("shapes", "")
    Image.fromarray(split.images[5].permute(1, 2, 0).numpy()).save(runs / "exported.png")
    run_test(runs, "--model_path model/vit --mode cifar-single --index 5 --no_gif", monkeypatch)
    run_test(runs, f"--model_path model/vit --mode custom --image_path {runs}/exported.png --no_gif", monkeypatch)
    lines = re.findall(r"^ *[\d.]+ %  .*$", capsys.readouterr().out, re.MULTILINE)
    assert lines[:5] == lines[5:]


def test_without_a_path_the_run_trained_last_is_tested(runs, monkeypatch, capsys):
    image = ROOT / "examples" / "cat.png"
    run_test(runs, f"--mode custom --image_path {image} --no_gif", monkeypatch)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line.startswith(
        "model/cnn/best.pt (the run trained last; --model_path chooses another): cnn trained on shapes"
    )


def test_without_any_run_the_shipped_vit_is_tested(tmp_path, monkeypatch, capsys):
    shipped = tmp_path / "model" / "cnn-32-cifar10"  # newer than the shipped ViT, as it may be after cloning
    shutil.copytree(ROOT / "model" / "cnn-32-cifar10", shipped)
    run_test(tmp_path, f"--mode custom --image_path {ROOT / 'examples' / 'cat.png'} --no_gif", monkeypatch)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "vit-layer12-32-cifar10/best.pt (comes with the project; --model_path chooses another): vit" in first_line


def test_head_fusion_and_discard_ratio_change_the_rollout_and_are_in_the_caption(runs, tmp_path, monkeypatch):
    panels, drawn = {}, []
    monkeypatch.setattr("vit_cifar10.plots.gif.save_gif", lambda frames, path, **_: drawn.append(frames[0].astype(int)))
    for flags in ("", "--head_fusion max", "--discard_ratio 0.5"):
        flags_of_run = f"--method attention rollout gradient-rollout --gif_path {tmp_path}/a.gif {flags}"
        run_test(runs, f"--model_path vit --mode cifar-single --index 5 {flags_of_run}", monkeypatch)
        panels[flags] = drawn[-1][:40], drawn[-1][58:232, 198:372], drawn[-1][58:232, 384:558]
    caption, attention, rollout = panels.pop("")
    for other_caption, other_attention, other_rollout in panels.values():
        assert abs(caption - other_caption).mean() > 0.5
        assert abs(rollout - other_rollout).mean() > 0.1
        assert np.array_equal(attention, other_attention)


# Real CIFAR-10


def test_training_and_testing_work_on_cifar10(cifar10_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = str((ROOT / cifar10_root).resolve())
    flags = "--epochs 2 --num_train_images 2000 --num_test_images 1000 --val_images 100 --device cpu"
    networks = {"cnn": "--model cnn --width 8 --learning_rate 4e-3", "vit": f"{SMALL_VIT} --learning_rate 2e-3"}
    for run, network in networks.items():
        train.main(["--run_name", run, "--data_path", data, *network.split(), *flags.split()])
        assert checkpoint.load(tmp_path / "model" / run)["metrics"]["test_accuracy"] > 0.15
    test_command.main(["--model_path", "model/vit", "--mode", "cifar-single", "--index", "5", "--data_path", data])
    assert "true class: frog" in capsys.readouterr().out
    assert (tmp_path / "attention_map_gif" / "cifar-index-5.gif").exists()


# Mistakes


MISTAKES = [
    ("train", "@recipes/none.txt", "there is no recipe recipes/none.txt"),
    ("train", "--data_path {tmp}/none", "is not in .*none and could not be downloaded.*--data_path"),
    ("train", "--embed_dim 100 --n_attention_heads 3", "embed_dim 100 .*--n_attention_heads 3; choose 99"),
    ("train", "--patch_size 5", "--patch_size 5 does not divide --image_size 32; choose one of 1, 2, 4"),
    ("train", "--model cnn --image_size 8", "too small"),
    ("train", "--epochs 0", "--epochs: 0 is out of range; it must be at least 1"),
    ("train", "--epochs many", "invalid whole number value: 'many'"),
    ("train", "--learning_rate nan", "nan is out of range"),
    ("train", "--dropout 1", "below 1"),
    ("train", "--epoch 3", "unrecognized arguments: --epoch 3; did you mean --epochs?"),
    ("train", "--lr 0.1", "unrecognized arguments: --lr 0.1; did you mean --learning_rate?"),
    ("train", "--batch-size=64 --bs 64", "--batch-size=64 --bs 64; did you mean --batch_size?"),
    ("train", "stray -lr 1", "stray -lr 1; did you mean --learning_rate?"),
    ("test", "--checkpoint x", "unrecognized arguments: --checkpoint x \\(--help lists the flags"),
    ("train", "--epochs 5 --warmup_epochs 5", "must be less than --epochs 5"),
    ("train", "--epochs 5 --small_epochs 5", "must be less than --epochs 5"),
    ("train", "--model cnn --keep_patches 0.5", "need --model vit"),
    ("train", "--small_epochs 1 --patch_size 32", "even number of patches"),
    ("train", "--keep_patches 0.95", "would keep all patches"),
    ("train", "--resize pad", "those of cifar10 are square"),
    ("train", "--crop_padding 32", "must be less than --image_size 32"),
    ("train", "--dataset shapes --val_images 5000", "leaves nothing"),
    ("train", "--dataset shapes --num_train_images 99999", "lower it"),
    ("train", "--dataset shapes --n_classes 7", "has 10 classes"),
    ("train", "--dataset shapes --device {missing}", "not available here; use --device .*cpu"),
    ("train", "--dataset shapes --device cpu --compile graphs", "--compile graphs needs a CUDA GPU"),
    ("train", "--dataset shapes --output_path {tmp}/file", "cannot write to .*file"),
    ("train", "--dataset shapes --run_name ../escape", "cannot name a folder"),
    ("train", "--dataset shapes --run_name ..", "cannot name a folder"),
    ("train", f"--run_name {'x' * 300}", "--run_name"),
    ("train", "--seed 99999999999999999999999", "at most"),
    ("train", "--embed_dim 99999999999 --n_attention_heads 1", "--embed_dim"),
    ("train", "--embed_dim 90000 --n_layers 99", r"parameters needs [\d,]+ GB to train.*--embed_dim"),
    ("train", "--dataset shapes --run_name vit --model_path {runs}/model", "already exists.*--overwrite"),
    ("train", "--schedule plateau --val_images 0", "needs --val_images"),
    ("train", "--schedule plateau --eval_every 2", "leave out --eval_every"),
    ("train", "--resume {tmp}/none", "there is no checkpoint"),
    ("train", "--resume {runs}/model/vit --epochs 1", "already has 2 epochs"),
    ("train", "--resume {runs}/model/vit --epochs 9 --embed_dim 64", "--embed_dim cannot change when a run is resumed"),
    ("train", "--resume {runs}/model/vit --learning_rate 1", "--learning_rate .* from its weights: --init .*model/vit"),
    ("train", "--resume {runs}/model/vit/best.pt", "no training state"),
    ("compare", "{tmp}/none", "none of the given runs can be read"),
    ("compare", "{tmp}/\x1b[31mnone", "none of the given runs can be read"),
    ("compare", "{runs}/model/vit --compare_path {tmp}/file/\x1b[31m", "cannot write to .*\ufffd"),
    ("compare", "{runs}/model/vit --device {missing}", "not available here"),
    ("test", "--model_path {tmp}/none", "there is no checkpoint .*none"),
    ("test", "--model_path {tmp}/file", "cannot be read"),
    ("test", "--model_path {runs}/model/vit --mode cifar-single --index 1000", "the test images are 0 to 999"),
    ("test", "--model_path {runs}/model/vit --mode cifar-single --index -1", "out of range"),
    ("test", "--model_path {runs}/model/vit --mode custom", "needs --image_path"),
    ("test", "--model_path {runs}/model/vit --mode custom --image_path {tmp}/none.png", "no image .*none.png"),
    ("test", "--model_path {runs}/model/vit --mode custom --image_path {tmp}", "would be written among the images"),
    ("test", "--model_path {runs}/model/vit --mode custom --image_path {tmp}/file", "cannot be read as an image"),
    (
        "test",
        "--model_path {runs}/model/vit --mode custom --image_path {cat} --gif_path {tmp}/file/a.gif",
        "cannot write",
    ),
    ("test", f"--model_path {'x' * 5000}", "File name too long"),
    ("test", f"--model_path {{runs}}/model/vit --mode custom --image_path {'x' * 5000}", "File name too long"),
    ("test", "--model_path {runs}/model/vit --mode custom --image_path /dev/null", "not a regular file"),
    ("test", "--gif_path a.png", "must end in .gif"),
    ("test", "--model_path {runs}/model/vit --device {missing}", "not available here"),
    ("test", "--mode other", "invalid choice: 'other'"),
    ("test", "--image_path {cat}", "--image_path needs --mode custom"),
    ("test", "--index 3", "--index needs --mode cifar-single"),
    ("test", "--mode cifar-single --csv", "use it with --mode cifar, or with a folder as --image_path"),
    ("test", "--csv {cat}", "not a CSV file; choose a file name that ends in .csv"),
    ("test", "--csv {tmp}/file/a.csv", "cannot write"),
    ("test", "--attention", "add --embeddings"),
    ("test", "--model_path {runs}/model/cnn --embeddings --attention", "--attention needs a Vision Transformer"),
    ("test", "--mode custom --image_path {tmp} --method rollout", "is a folder, of which no GIFs are drawn"),
    ("test", "--mode cifar-single --tta", "--tta needs --mode cifar"),
    ("test", "--num_images 100", "--num_images needs --mode faithfulness"),
    ("test", "--mode cifar --head_fusion max", "only GIFs depend on --head_fusion and --discard_ratio"),
    ("test", "--mode faithfulness --method masks", "only GIFs depend on --method"),
    ("test", "--mode cifar-single --method masks --no_gif --no_image", "leave nothing to draw"),
    ("test", "--mode faithfulness --num_images 9", "choose 10 or more"),
    ("test", "--mode faithfulness --samples 15 --model_path {runs}/model/vit", "too few for 16 patches; choose 64"),
    ("test", "--mode cifar-single --samples 100", "add --method masks"),
    ("test", "--mode cifar-single --method deep-lift --model_path {runs}/model/vit", "choose from attention, rollout"),
    (
        "test",
        "--mode cifar-single --method attention --head_fusion max --model_path {runs}/model/vit",
        "add rollout to --method",
    ),
    (
        "test",
        "--model_path {runs}/model/cnn --mode cifar-single --discard_ratio 0.5",
        "need a Vision Transformer",
    ),
    ("train", "--resume {tmp}/elsewhere/vit --model_path {runs}/model", "there is no checkpoint"),
    ("train", "--mixup 1e-320", "--mixup: 1e-320 is out of range; it must be 0 or at least 1e-09"),
    ("train", "--forward_mul 0.001", "without hidden units"),
    ("train", "--run_name a\udcff", "cannot name a folder"),
    ("train", "--\x1b[31m", "unrecognized arguments: --\ufffd"),
    ("train", "@\x1b[31m", "there is no recipe \ufffd"),
    ("train", "--resume \x1b[31m", "there is no checkpoint of \ufffd"),
    ("train", "--dataset shapes --model_path {tmp}/a --output_path {tmp}/./a", "are the same folder"),
    ("train", "--resume {runs}/model/vit --epochs 3 --output_path {runs}/output/../model", "are the same folder"),
    ("train", "--dataset folder --data_path {tmp} --output_path {tmp}/output", "would be written among the images"),
    ("test", "--model_path \x1b[31m", "there is no checkpoint of \ufffd"),
    ("test", "--gif_path \x1b[31m.png", "must end in .gif"),
    ("test", "--mode custom --image_path {cat} --html {tmp}/file/\x1b[31m.html", "cannot write .*\ufffd"),
    ("test", "--model_path {runs}/model/vit --mode custom --image_path \x1b[31m", "there is no image \ufffd"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("script", "flags", "reason"), MISTAKES, ids=[f"{m[0]} {m[1]}" for m in MISTAKES])
def test_mistakes_end_in_one_line_and_status_2(script, flags, reason, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("neither a folder nor an image nor a checkpoint")
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    values = {"tmp": tmp_path, "runs": runs, "missing": missing, "cat": ROOT / "examples" / "cat.png"}
    before = sorted(runs.rglob("*"))
    with exits_with(2):
        COMMANDS[script].main([flag.format(**values) for flag in flags.split()])
    *_, last_line = lines = capsys.readouterr().err.strip().split("\n")
    assert re.search(f"^{script}.py: error: .*{reason}", last_line)
    assert all(line.isprintable() for line in lines)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize("script", COMMANDS)
def test_no_number_is_too_large_and_no_name_is_empty(script, capsys):
    runs = ["run"] if script == "compare" else []
    actions = [action for action in FLAGS[script].build_parser()._actions if action.option_strings and action.type]
    is_name = {action.option_strings[0]: action.type in (cli.not_empty, cli.path) for action in actions}
    assert set(is_name.values()) == {True, False}
    for flag, name in is_name.items():
        for value in [""] if name else ["1" + "0" * 400, "1e308"]:
            with exits_with(2):
                COMMANDS[script].main([*runs, flag, value])
            (line,) = capsys.readouterr().err.splitlines()
            reason = "its value is empty" if name else "(must be|invalid whole number|not allowed)"
            assert re.match(rf"{script}\.py: error: argument {flag}: .*{reason}", line)


def test_a_network_that_only_guesses_at_a_huge_rate_gets_one_hint(tmp_path, capsys):
    for rate, hints in (
        ("learning_rate 5", ["--learning_rate 5 is 10,000 times the default, 0.0005"]),
        ("epochs 4", []),
    ):
        flags = f"--epochs 4 --warmup_epochs 0 --optimizer adamw --num_test_images 100 --overwrite {SMALL_VIT}"
        run_training(tmp_path, f"--run_name run {flags} --{rate}")
        printed = capsys.readouterr()
        assert re.findall("hint: .* guesses, and (.*); try", printed.out + printed.err) == hints


def test_the_largest_rates_end_in_a_message(tmp_path, capsys):
    flags = "--learning_rate 1e6 --weight_decay 1e6 --muon_learning_rate 1e6 --muon_weight_decay 1e6 --optimizer muon"
    flags += " --clip_grad 1e6 --mixup 1e6 --cutmix 1e-9 --epochs 1 --num_test_images 100"
    with exits_with(2):
        run_training(tmp_path, f"--run_name run {SMALL_VIT} {flags}")
    assert "not finite" in capsys.readouterr().err


SPELLINGS = [
    ("mine.png", "mine.gif"),
    ("mine.png", "./folder/../mine.gif"),
    ("mine.png", "linked/mine.gif"),
    ("symbolic.png", "mine.gif"),
    ("mine.png", "symbolic.gif"),
    ("mine.png", "hard.gif"),
    ("attention_map_gif/mine.png", None),
    ("attention_map_gif/mine.gif", None),
]


@pytest.mark.parametrize(("image", "gif"), SPELLINGS)
def test_no_output_overwrites_the_image(image, gif, runs, tmp_path, monkeypatch, capsys):
    for folder in ("folder", "attention_map_gif"):
        (tmp_path / folder).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path)
    for name in ("mine.png", "attention_map_gif/mine.png", "attention_map_gif/mine.gif"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    (tmp_path / "symbolic.png").symlink_to("mine.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "mine.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    flags = f"--model_path {runs}/model/cnn --mode custom --image_path {image}" + (f" --gif_path {gif}" if gif else "")
    with exits_with(2):
        run_test(tmp_path, flags, monkeypatch)
    assert "would be overwritten, but the command reads it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_no_output_overwrites_a_checkpoint_or_an_image_of_the_data_set(tmp_path, monkeypatch, capsys):
    images, file = tmp_path / "data" / "cat", tmp_path / "output" / "run" / "test_logits.pt"
    images.mkdir(parents=True)
    for name in ("a.png", "disagreements.png"):
        Image.new("RGB", (40, 40)).save(images / name)
    checkpoint.save(file, checkpoint_contents(dataset="folder"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    monkeypatch.chdir(tmp_path)
    custom = "--model_path output/run/test_logits.pt --device cpu --mode custom --image_path data/cat/disagreements.png"
    for command, flags in (
        (test_command, "--model_path output/run/test_logits.pt --device cpu"),
        (test_command, f"{custom} --gif_path data/cat/a.gif"),
        (compare, "output/run/test_logits.pt --device cpu"),
        (compare, "output/run/test_logits.pt --device cpu --output_path elsewhere --compare_path data/cat"),
    ):
        with exits_with(2):
            command.main(flags.split())
        assert re.search("would be (overwritten, but|written among the images)", capsys.readouterr().err)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_run_may_have_any_folder_name(runs, tmp_path, monkeypatch, capsys):
    name = os.fsdecode(b"a\x1b[31m\xff")
    shutil.copytree(runs / "model" / "vit", tmp_path / "model" / name)
    monkeypatch.chdir(tmp_path)
    for mode in ("cifar", "cifar-single --html page.html --no_gif"):
        test_command.main(["--model_path", name, "--device", "cpu", "--mode", *mode.split()])
    compare.main([name, "--device", "cpu", "--compare_path", f"{name}/tables"])
    printed = capsys.readouterr()
    shown = "a\ufffd[31m\ufffd"
    assert all(line.isprintable() for line in printed.out.split("\n"))
    assert f" {shown} " in printed.out
    assert shown in (tmp_path / "page.html").read_text("utf-8")
    for file in ("comparison.md", "comparison.csv"):
        assert shown in (tmp_path / name / "tables" / file).read_text("utf-8")


def run_with_closed_streams(command, flags, closed):
    """In a new process: run a command after closing some of its descriptors 0 to 2, as a shell does with `2>&-`."""
    for descriptor in closed:
        os.close(descriptor)
        setattr(sys, ("stdin", "stdout", "stderr")[descriptor], None)
    sys.modules[command].main(flags)
    assert [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in closed] == [os.devnull] * len(closed)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_commands_work_with_closed_descriptors(runs, tmp_path):
    vit, output = f"{runs}/model/vit", f"--output_path={tmp_path}/output"
    small = f"--run_name run --epochs 1 --num_train_images 100 --num_test_images 100 {SMALL_VIT}"
    calls = [
        ("train", training_flags(tmp_path, small), (0, 1, 2)),
        ("test", ["--model_path", vit, output, "--device=cpu"], (2,)),
        ("compare", [vit, f"--output_path={tmp_path}", "--device=cpu", f"--compare_path={tmp_path}/tables"], (0, 1, 2)),
    ]
    processes = [new_process(run_with_closed_streams, *call) for call in calls]
    for process in processes:
        process.start()
    assert [end(process) for process in processes] == [0] * len(processes)
    for file in ("model/run/best.pt", "output/vit/mistakes.png", "tables/comparison.md"):
        assert (tmp_path / file).exists()


def test_ctrl_c_while_pytorch_is_imported_prints_nothing(tmp_path):
    torch_that_catches_everything = """
import pathlib, time
pathlib.Path("importing").touch()
try:
    time.sleep(60)
except BaseException:
    raise ImportError("broken")
"""
    (tmp_path / "torch.py").write_text(torch_that_catches_everything)
    options = {"env": {**os.environ, "PYTHONPATH": str(tmp_path)}, "stdout": subprocess.PIPE}
    processes = {}
    for script in ("train", "test", "compare"):
        folder = tmp_path / script
        folder.mkdir()
        command = [sys.executable, ROOT / f"{script}.py", *["run"] * (script == "compare")]
        processes[folder] = subprocess.Popen(command, cwd=folder, stderr=subprocess.STDOUT, **options)
    for folder, process in processes.items():
        wait_for((folder / "importing").exists)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGINT)
        assert printed == b""


def test_the_scripts_themselves_end_with_status_2():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    scripts = ("train.py", "test.py")
    processes = [subprocess.Popen([sys.executable, ROOT / script, "--device", "abacus"], **pipes) for script in scripts]
    for script, process in zip(scripts, processes, strict=True):
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 2
        assert stdout == ""
        assert re.fullmatch(f"{script}: error: .*abacus.*\n", stderr)


# Documents

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "[!.]*/README.md", ".github/workflows/pages.yml")
    for path in ROOT.glob(pattern)
)
FEWEST_COMMANDS = {"README.md": 18, "docs/training.md": 8, "docs/comparison.md": 10, "docs/your-own.md": 8}


def unroll(loop):
    """The commands that a shell loop runs, as text. `loop` is a regular-expression match."""
    script = f'python() {{ echo python "$@"; }}\n{loop[0]}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.quick
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_parse(document):
    text = re.sub(r"^for \w+ in .*?^done$", unroll, (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)
    text = text.replace("\\\n", " ")
    # after "python", or after the digit of "torchrun --nproc_per_node=4"
    commands = re.findall(r"(?:python|\d) (train|test|compare|convert)\.py ([^#`&|\n;]*)", text)
    assert len(commands) >= FEWEST_COMMANDS.get(document, 0)
    for script, typed in commands:
        flags = shlex.split(typed.replace("SEED", "0"))
        if flags == ["--help"]:
            continue
        parser = FLAGS[script].build_parser()
        parser.fromfile_prefix_chars = None
        parser.parse_args([flag for flag in flags if not flag.startswith("@")])
        for recipe in (flag[1:] for flag in flags if flag.startswith("@") and "NAME" not in flag):
            assert (ROOT / recipe).is_file(), recipe


@pytest.mark.quick
def test_the_published_pages_come_from_the_readme_and_need_no_data_set():
    commands = re.findall(r"run: (python test\.py (.*))", (ROOT / ".github" / "workflows" / "pages.yml").read_text())
    assert commands[0][0] in (ROOT / "README.md").read_text()
    for _, flags in commands:
        args = FLAGS["test"].parse(shlex.split(flags))
        assert FLAGS["test"].shows_example(args)
        assert (ROOT / "model" / args.model_path / "best.pt").is_file()


@pytest.mark.quick
@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_in_documents_lead_somewhere(document):
    path = ROOT / document
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text) + re.findall(r'<img src="([^":]+)"', text)
    assert [link for link in links if not (path.parent / link).exists()] == []
