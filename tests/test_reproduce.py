"""The recipes run, and all tables of results agree with results.csv."""

import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch
from helpers import checkpoint_contents, training_flags, wait_for

import reproduce
import train
from model import build_model
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.architecture import model_config
from vit_cifar10.utils.errors import UserError

ALL_RECIPES = sorted(path.stem for path in reproduce.RECIPES.glob("*.txt"))
SIZES = {  # parameters, in millions, of the networks that earlier projects describe
    "vit-patch8-12ep": 2.71,
    "cnn-12ep": 0.92,
    "vit-layer6": 2.69,
    "vit-layer12": 5.36,
    "deit-ti": 5.36,
    "cnn-small": 0.56,
    "vit-256x8": 4.25,
}


def result(recipe="cnn-12ep", seed=0, accuracy=0.9, device="a GPU", **changes):
    values = {"val_accuracy": None, "kept": "last epoch", "epochs": 12, "parameters": 918_826, "train_seconds": 61.2}
    values |= {"total_seconds": 70.0, "gpu_memory_gb": 1.5, "precision": "bf16", "torch": "2.11.0", "commit": "abc"}
    return reproduce.Result(recipe, seed, accuracy, device=device, date="2026-01-31", **{**values, **changes})


def test_every_recipe_is_in_the_table():
    assert sorted(reproduce.TABLE_RECIPES) == sorted(set(ALL_RECIPES) - set(reproduce.OTHER_RECIPES))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A folder with the runs that recipes start from; the one that is pre-trained on CIFAR-100 is untrained here."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "vit-layer12-32-cifar10").symlink_to(reproduce.ROOT / "model" / "vit-layer12-32-cifar10")
    flags = f"@{reproduce.RECIPES / 'vit-layer12'}.txt --dataset cifar100".split()
    config, classes = model_config(train.parse(flags), num_classes=100), [str(label) for label in range(100)]
    contents = checkpoint_contents(model_config=config, weights=build_model(config).state_dict(), classes=classes)
    checkpoint.save(folder / "vit-layer12-32-cifar100" / "best.pt", contents)
    return folder


@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_recipes_describe_networks_that_train(recipe, model_path):
    args, _, _, initial = train.read_flags([f"@{reproduce.RECIPES / recipe}.txt", f"--model_path={model_path}"])
    with torch.device("meta"):
        model = build_model(model_config(args, num_classes=10, shape=initial and initial.model_config))
    if recipe in SIZES:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters / 1e6 == pytest.approx(SIZES[recipe], abs=0.005)
    assert reproduce.read_header(recipe)["title"].endswith(".")


def test_a_recipe_runs_from_end_to_end_and_try_records_no_result(tmp_path, capfd):
    before = reproduce.RESULTS.read_text() if reproduce.RESULTS.exists() else None
    places = f"--data_path={tmp_path} --model_path={tmp_path / 'model'} --output_path={tmp_path / 'output'}"
    reproduce.main(f"cnn-12ep --try --dataset shapes --device cpu {places}".split())
    printed = capfd.readouterr().out
    assert "Result(recipe='cnn-12ep', seed=0, test_accuracy=0." in printed
    assert "kept='last epoch', epochs=1, parameters=918826" in printed
    assert (reproduce.RESULTS.read_text() if reproduce.RESULTS.exists() else None) == before


def test_the_recipes_report_what_results_csv_contains():
    results = reproduce.read_results()
    for recipe in reproduce.TABLE_RECIPES:
        assert reproduce.measured_lines(recipe, results) + "\n" in (reproduce.RECIPES / f"{recipe}.txt").read_text()


@pytest.mark.parametrize(("path", "name"), reproduce.generated_blocks([]), ids=lambda value: Path(value).name)
def test_generated_text_matches_results_csv(path, name):
    _, block, _ = reproduce.split_at_markers(path, name)
    assert block == reproduce.generated_blocks(reproduce.read_results())[path, name] + "\n"


def rows(table, recipe):
    return [line for line in table.splitlines() if f"`{recipe}`" in line]


def test_seeds_become_mean_and_standard_deviation_and_devices_get_separate_rows():
    results = [result(seed=seed, accuracy=accuracy) for seed, accuracy in enumerate((0.9, 0.91, 0.92))]
    results.append(result(accuracy=0.5, device="2 CPU threads", gpu_memory_gb=None, train_seconds=7200.0))
    link = "[`cnn-12ep`](../recipes/cnn-12ep.txt)"
    assert rows(reproduce.full_table(results), "cnn-12ep") == [
        f"| {link} | 0.92 M | 12 | 91.00 ± 1.00 % | 61 s | a GPU | 79.92 % |",
        f"| {link} | 0.92 M | 12 | 50.00 % | 2.0 h | 2 CPU threads | 79.92 % |",
    ]
    first, second = reproduce.measured_lines("cnn-12ep", results).splitlines()
    start = "# measured: 91.00 ± 1.00 % on the test images (seeds 0, 1, 2; last epoch), 61 s of training, 1.5 GB, a GPU"
    assert first.startswith(start)
    assert second.startswith("# measured: 50.00 % on the test images (seed 0; last epoch), 2.0 h of training, 2 CPU")
    assert second.endswith("2 CPU threads, bf16, torch 2.11.0")


def test_a_recipe_is_either_in_the_table_or_in_the_list_of_unmeasured_ones():
    results = [result("deit-ti")]
    table, unmeasured = reproduce.full_table(results), reproduce.unmeasured_list(results)
    assert len(rows(table, "deit-ti")) == 1
    assert not rows(unmeasured, "deit-ti")
    for recipe in set(reproduce.TABLE_RECIPES) - {"deit-ti"}:
        assert not rows(table, recipe)
        assert len(rows(unmeasured, recipe)) == 1
        assert reproduce.read_header(recipe)["title"] in " ".join(unmeasured.split())
        assert f"\n  `python train.py @recipes/{recipe}.txt`" in unmeasured
    assert "Earlier projects report 76.12 % on validation images." in " ".join(unmeasured.split())
    assert (
        reproduce.unmeasured_list([result(recipe) for recipe in reproduce.TABLE_RECIPES])
        == "Every recipe has been measured."
    )


def test_the_short_table_has_five_measured_recipes_in_a_fixed_order():
    results = [result(recipe) for recipe in sorted(reproduce.TABLE_RECIPES)]
    for measured in (results, results[:2]):
        names = re.findall(r"\(\[`(.*?)`\]\(recipes/(.*?)\.txt\)\)", reproduce.headline_table(measured))
        expected = [name for name in reproduce.HEADLINE if name in {row.recipe for row in measured}][:5]
        assert names == [(name, name) for name in expected]
    assert set(reproduce.HEADLINE) <= set(reproduce.TABLE_RECIPES)


def test_the_short_table_prefers_more_seeds_and_then_the_faster_device():
    slow = [result(device="slow", train_seconds=300.0)]
    fast = [result(device="fast", train_seconds=100.0)]
    two_seeds = [result(seed=seed, device="two seeds", train_seconds=500.0) for seed in range(2)]
    for results, device in ((slow + fast, "fast"), (slow + fast + two_seeds, "two seeds")):
        (row,) = rows(reproduce.headline_table(results), "cnn-12ep")
        assert row.endswith(f" | {device} |")


def test_generated_text_needs_its_markers(tmp_path):
    (tmp_path / "page.md").write_text("<!-- results -->\n| a |\n")
    with pytest.raises(UserError, match="add the lines <!-- results --> and <!-- end of results -->"):
        reproduce.split_at_markers(tmp_path / "page.md", "results")


def test_results_csv_keeps_every_value(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.csv")
    results = [result(), result(seed=1, val_accuracy=0.875, gpu_memory_gb=None)]
    reproduce.write_results(results)
    assert reproduce.read_results() == results


def test_the_weights_of_a_better_recipe_are_not_replaced():
    assert reproduce.shipped_name("vit-laptop", []) == "vit-layer12-32-cifar10"
    assert reproduce.shipped_name("vit-laptop", [result("deit-ti")]) is None
    assert reproduce.shipped_name("deit-ti", [result("vit-laptop")]) == "vit-layer12-32-cifar10"
    assert reproduce.shipped_name("vit-fast", []) is None


def test_a_stop_signal_goes_to_the_training_which_may_save(tmp_path, monkeypatch):
    script = """
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path("saved").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""
    (tmp_path / "train.py").write_text(script)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)

    def stop():
        wait_for((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert reproduce.train_and_wait([]) == 143
    stopper.join()
    assert (tmp_path / "saved").exists()


def test_only_a_run_with_the_same_flags_and_commit_is_resumed(runs):
    folders = runs / "model" / "cnn", runs / "output" / "cnn"
    flags = "--num_train_images 600 --run_name cnn --overwrite --epochs 2 --model cnn --learning_rate 2e-3"
    flags = training_flags(runs, flags)
    commit = json.loads((folders[1] / "config.json").read_text())["git_commit"]
    assert reproduce.is_begun(flags, commit, *folders)
    assert not reproduce.is_begun(flags, "another commit", *folders)
    assert not reproduce.is_begun([*flags, "--seed", "1"], commit, *folders)
    assert not reproduce.is_begun(flags, commit, runs / "model" / "none", runs / "output" / "none")
