"""The recipes run, and all tables of results agree with results.csv."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import checkpoint_contents, training_flags, wait_for

import bundle
import reproduce
import tables
import train
from model import build_model
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.architecture import model_config
from vit_cifar10.utils.errors import UserError

ALL_RECIPES = sorted(path.stem for path in tables.RECIPES.glob("*.txt"))
SIZES = {  # parameters, in millions, of the networks that earlier projects describe
    "vit-patch8-12ep": 2.71,
    "cnn-12ep": 0.92,
    "vit-layer6": 2.69,
    "vit-layer12": 5.36,
    "deit-ti": 5.36,
    "deit-ti-adamw": 5.36,
    "cnn-small": 0.56,
    "vit-256x8": 4.25,
}


def result(recipe="cnn-12ep", seed=0, accuracy=0.9, device="a GPU", **changes):
    values = {"val_accuracy": None, "kept": "last epoch", "epochs": 12, "parameters": 918_826, "train_seconds": 61.2}
    values |= {"total_seconds": 70.0, "gpu_memory_gb": 1.5, "precision": "bf16", "torch": "2.11.0", "commit": "abc"}
    return tables.Result(recipe, seed, accuracy, device=device, date="2026-01-31", **{**values, **changes})


def test_every_recipe_is_in_the_table():
    assert sorted(tables.TABLE_RECIPES) == sorted(set(ALL_RECIPES) - set(tables.OTHER_RECIPES))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A folder with the runs that recipes start from; the one that is pre-trained on CIFAR-100 is untrained here."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "vit-layer12-32-cifar10").symlink_to(tables.ROOT / "model" / "vit-layer12-32-cifar10")
    flags = f"@{tables.RECIPES / 'vit-layer12'}.txt --dataset cifar100".split()
    config, classes = model_config(train.parse(flags), num_classes=100), [str(label) for label in range(100)]
    contents = checkpoint_contents(model_config=config, weights=build_model(config).state_dict(), classes=classes)
    checkpoint.save(folder / "vit-layer12-32-cifar100" / "best.pt", contents)
    return folder


@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_recipes_describe_networks_that_train(recipe, model_path):
    args, _, _, initial, _ = train.read_flags([f"@{tables.RECIPES / recipe}.txt", f"--model_path={model_path}"])
    with torch.device("meta"):
        model = build_model(model_config(args, num_classes=10, shape=initial and initial.model_config))
    if recipe in SIZES:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters / 1e6 == pytest.approx(SIZES[recipe], abs=0.005)
    assert tables.read_header(recipe)["title"].endswith(".")


def test_a_recipe_runs_from_end_to_end_and_try_records_no_result(tmp_path, capfd):
    before = tables.RESULTS.read_text() if tables.RESULTS.exists() else None
    places = f"--data_path={tmp_path} --model_path={tmp_path / 'model'} --output_path={tmp_path / 'output'}"
    reproduce.main(f"cnn-12ep --try --dataset shapes --device cpu {places}".split())
    printed = capfd.readouterr().out
    assert "Result(recipe='cnn-12ep', seed=0, test_accuracy=0." in printed
    assert "kept='last epoch', epochs=1, parameters=918826" in printed
    assert (tables.RESULTS.read_text() if tables.RESULTS.exists() else None) == before


@pytest.mark.parametrize("recipe", tables.TABLE_RECIPES)
def test_every_recipe_can_be_tried_and_timed(recipe):
    for more, epochs in ((reproduce.TRY_FLAGS, 1), (reproduce.ALONE_FLAGS, reproduce.ALONE_EPOCHS)):
        flags = [f"@{tables.RECIPES / recipe}.txt", *more, *reproduce.length_flags(recipe, epochs)]
        assert reproduce.train.parse(flags).epochs == epochs


def test_the_recipes_report_what_results_csv_contains():
    results = tables.read_results()
    for recipe in tables.TABLE_RECIPES:
        assert tables.measured_lines(recipe, results) + "\n" in (tables.RECIPES / f"{recipe}.txt").read_text()


@pytest.mark.parametrize(("path", "name"), tables.generated_blocks([]), ids=lambda value: Path(value).name)
def test_generated_text_matches_results_csv(path, name):
    _, block, _ = tables.split_at_markers(path, name)
    assert block == tables.generated_blocks(tables.read_results())[path, name] + "\n"


def rows(table, recipe):
    return [line for line in table.splitlines() if f"`{recipe}`" in line]


def test_seeds_become_mean_and_standard_deviation_and_devices_get_separate_rows():
    results = [result(seed=seed, accuracy=accuracy) for seed, accuracy in enumerate((0.9, 0.91, 0.92))]
    results.append(result(accuracy=0.5, device="2 CPU threads", gpu_memory_gb=None, train_seconds=7200.0))
    link = "[`cnn-12ep`](../recipes/cnn-12ep.txt)"
    assert rows(tables.full_table(results), "cnn-12ep") == [
        f"| {link} | 0.92 M | 12 | 91.00 ± 1.00 % | 61 s | a GPU | 79.92 % |",
        f"| {link} | 0.92 M | 12 | 50.00 % | 2.0 h | 2 CPU threads | 79.92 % |",
    ]
    first, second = tables.measured_lines("cnn-12ep", results).splitlines()
    start = "# measured: 91.00 ± 1.00 % on the test images (seeds 0, 1, 2; last epoch), 61 s of training, 1.5 GB, a GPU"
    assert first.startswith(start)
    assert second.startswith("# measured: 50.00 % on the test images (seed 0; last epoch), 2.0 h of training, 2 CPU")
    assert second.endswith("2 CPU threads, bf16, torch 2.11.0")


def test_a_recipe_is_either_in_the_table_or_in_the_list_of_unmeasured_ones():
    results = [result("deit-ti")]
    table, unmeasured = tables.full_table(results), tables.unmeasured_list(results)
    assert len(rows(table, "deit-ti")) == 1
    assert not rows(unmeasured, "deit-ti")
    for recipe in set(tables.TABLE_RECIPES) - {"deit-ti"}:
        assert not rows(table, recipe)
        assert len(rows(unmeasured, recipe)) == 1
        assert tables.read_header(recipe)["title"] in " ".join(unmeasured.split())
        assert f"\n  `python train.py @recipes/{recipe}.txt`" in unmeasured
    assert "Earlier projects report 76.12 % on validation images." in " ".join(unmeasured.split())
    assert (
        tables.unmeasured_list([result(recipe) for recipe in tables.TABLE_RECIPES]) == "Every recipe has been measured."
    )


def test_the_short_table_has_five_measured_recipes_in_a_fixed_order():
    results = [result(recipe) for recipe in sorted(tables.TABLE_RECIPES)]
    for measured in (results, results[:2]):
        names = re.findall(r"\(\[`(.*?)`\]\(recipes/(.*?)\.txt\)\)", tables.headline_table(measured))
        expected = [name for name in tables.HEADLINE if name in {row.recipe for row in measured}][:5]
        assert names == [(name, name) for name in expected]
    assert set(tables.HEADLINE) <= set(tables.TABLE_RECIPES)


def test_the_short_table_prefers_more_seeds_and_then_the_faster_device():
    slow = [result(device="slow", train_seconds=300.0)]
    fast = [result(device="fast", train_seconds=100.0)]
    two_seeds = [result(seed=seed, device="two seeds", train_seconds=500.0) for seed in range(2)]
    for results, device in ((slow + fast, "fast"), (slow + fast + two_seeds, "two seeds")):
        (row,) = rows(tables.headline_table(results), "cnn-12ep")
        assert row.endswith(f" | {device} |")


def test_generated_text_needs_its_markers(tmp_path):
    (tmp_path / "page.md").write_text("<!-- results -->\n| a |\n")
    with pytest.raises(UserError, match="add the lines <!-- results --> and <!-- end of results -->"):
        tables.split_at_markers(tmp_path / "page.md", "results")


def test_results_csv_keeps_every_value():
    results = [result(), result(seed=1, val_accuracy=0.875, gpu_memory_gb=None), result(jobs=3, train_seconds=None)]
    assert tables.parse_rows(tables.format_rows(results)) == results


def test_the_weights_of_a_better_recipe_are_not_replaced():
    assert reproduce.shipped_name("vit-layer12-36ep", []) == "vit-layer12-32-cifar10"
    assert reproduce.shipped_name("vit-layer12-36ep", [result("deit-ti")]) is None
    assert reproduce.shipped_name("deit-ti", [result("vit-layer12-36ep")]) == "vit-layer12-32-cifar10"
    assert reproduce.shipped_name("vit-fast", []) is None


FAKE_TRAINING = """
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path("saved").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("reason", ["signal", "time"])
def test_a_run_that_is_stopped_may_save_and_no_other_begins(reason, tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(FAKE_TRAINING)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    args = reproduce.build_parser().parse_args(["--model_path", str(tmp_path), "--output_path", str(tmp_path)])
    tasks = [reproduce.make_task("cnn-12ep", seed, args) for seed in range(2)]

    def stop():
        wait_for((tmp_path / "ready").exists)
        if reason == "signal":
            os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    deadline = time.monotonic() + (2 if reason == "time" else 1000)
    assert list(reproduce.run_all(tasks, args, deadline)) == [(tasks[0], 143)]
    stopper.join()
    assert (tmp_path / "saved").exists()
    with pytest.raises(SystemExit) as stopped:
        reproduce.report(tasks, [(tasks[0], 143)])
    assert stopped.value.code == 143


TINY = "--dataset shapes --num_train_images 128 --num_test_images 100 --num_workers 0 --val_images 0 --batch_size 64"
FOUR_EPOCHS = "--epochs 4 --small_epochs 2"
TINY_RECIPES = {
    "cnn-12ep": f"{TINY} --model cnn --width 4 --epochs 3",
    "cnn-small": f"{TINY} --model cnn --epochs 0",
    "vit-patch8-12ep": f"{TINY} --patch_size 16 --embed_dim 8 --n_layers 1 --n_attention_heads 1 {FOUR_EPOCHS}",
}


def copy_project(folder):
    """A copy of the code without data, checkpoints and results, with tiny recipes."""
    for name in ("vit_cifar10", "benchmarks", "recipes", "docs"):
        shutil.copytree(tables.ROOT / name, folder / name)
    for name in ("model.py", "train.py", "README.md"):
        shutil.copy(tables.ROOT / name, folder)
    for recipe, flags in TINY_RECIPES.items():
        path = folder / "recipes" / f"{recipe}.txt"
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        path.write_text("\n".join([*head, "", flags, ""]))
    (folder / "benchmarks" / "results.csv").unlink()
    return folder


def reproduce_in(folder, flags):
    """Run reproduce.py in a copy of the project."""
    command = [sys.executable, "benchmarks/reproduce.py", "--device", "cpu", *flags.split()]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)


def test_what_a_borrowed_machine_has_trained_is_put_in_place_at_home(tmp_path):
    borrowed, home = copy_project(tmp_path / "borrowed"), copy_project(tmp_path / "home")
    flags = f"{' '.join(TINY_RECIPES)} --seeds 0 --jobs 2 --ship --out out --commit abc"
    ended = reproduce_in(borrowed, flags)
    assert ended.returncode == 2
    assert "error: cnn-small-seed0 failed with exit status 2; see " in ended.stderr
    assert "train.py: error: argument --epochs" in (borrowed / "output" / "cnn-small-seed0.log").read_text()
    rows = tables.parse_rows((borrowed / "benchmarks" / "results.csv").read_text())
    assert {row.recipe for row in rows} == {"cnn-12ep", "vit-patch8-12ep"}
    assert all(
        (row.commit, row.jobs, row.total_seconds) == ("abc", 2, None) and row.train_seconds is not None for row in rows
    )

    assert reproduce_in(home, "--collect ../borrowed/out --ship").returncode == 0
    shipped = "model/cnn-32-cifar10/best.pt"
    for name in ("benchmarks/results.csv", "docs/results.md", "recipes/cnn-12ep.txt", shipped):
        assert (home / name).read_bytes() == (borrowed / name).read_bytes()
    assert reproduce_in(home, "--collect ../borrowed/out").returncode == 0, "the same runs may be collected again"

    own = home / "model" / "cnn-12ep-seed0" / "best.pt"
    own.write_bytes(b"the weights of another run")
    ended = reproduce_in(home, "--collect ../borrowed/out")
    assert ended.returncode == 2
    assert "cnn-12ep-seed0 belongs to another run of this name; move it away" in ended.stderr
    assert own.read_bytes() == b"the weights of another run"

    (borrowed / "out" / "records.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"records\.zip is damaged"):
        bundle.unpack(borrowed / "out", tmp_path / "model", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_runs_in_results_csv_are_skipped_and_seed_0_comes_first(monkeypatch, capsys):
    measured = [result("vit-fast", device=reproduce.cpu_label(torch.get_num_threads())), result("cnn-12ep")]
    monkeypatch.setattr(reproduce, "read_results", lambda: measured)

    def tasks(flags):
        args = reproduce.build_parser().parse_args(f"vit-fast cnn-12ep --device cpu {flags}".split())
        return [(task.recipe, task.seed) for task in reproduce.remaining_tasks(args)]

    assert tasks("") == [("cnn-12ep", 0), ("vit-fast", 1), ("vit-fast", 2)]  # the CNN was measured on another device
    assert capsys.readouterr().out.startswith("vit-fast, seed 0: in results.csv already")
    assert tasks("--again --seeds 0 1") == [("vit-fast", 0), ("cnn-12ep", 0), ("vit-fast", 1), ("cnn-12ep", 1)]


def test_weights_are_packed_in_parts_that_are_joined_again(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PART_BYTES", 100_000)
    shutil.copytree(runs / "model" / "cnn", tmp_path / "model" / "cnn-12ep-seed0")
    bundle.pack_weights(tmp_path, "cnn-12ep-seed0", tmp_path / "model")
    parts = sorted(tmp_path.glob("cnn-12ep-seed0.pt.*"))
    assert len(parts) > 10
    (tmp_path / "joined.pt").write_bytes(bundle.join_weights(tmp_path, "cnn-12ep-seed0"))
    ours = checkpoint.load(tmp_path / "joined.pt")["weights"]
    for name, value in checkpoint.load(runs / "model" / "cnn")["weights"].items():
        torch.testing.assert_close(ours[name], value.half() if value.is_floating_point() else value)
    (tmp_path / "cnn-12ep-seed0.pt.5").write_bytes(b"damaged")
    with pytest.raises(UserError, match="copy all parts again"):
        bundle.join_weights(tmp_path, "cnn-12ep-seed0")


def test_only_a_run_with_the_same_flags_and_commit_is_resumed(runs, monkeypatch):
    folders = runs / "model" / "cnn", runs / "output" / "cnn"
    flags = "--num_train_images 600 --run_name cnn --overwrite --epochs 2 --model cnn --learning_rate 2e-3"
    flags = training_flags(runs, flags)
    commit = json.loads((folders[1] / "config.json").read_text())["git_commit"]
    monkeypatch.setattr(reproduce, "git_commit", lambda: commit)
    assert reproduce.is_begun(flags, *folders)
    assert not reproduce.is_begun(flags, *folders, is_repeating=True), "the run is complete"
    assert reproduce.is_begun([*flags, "--num_workers", "1"], *folders)
    for other in ("--seed 1", "--epochs 3"):
        assert not reproduce.is_begun([*flags, *other.split()], *folders)
    assert not reproduce.is_begun([*flags, "--patch_size", "5", "--model", "vit"], *folders)
    assert not reproduce.is_begun(flags, runs / "model" / "none", runs / "output" / "none")
    monkeypatch.setattr(reproduce, "git_commit", lambda: "another commit")
    assert not reproduce.is_begun(flags, *folders)
