"""The recipes run, and all tables of results agree with results.csv."""

import csv
import os
import re
import shutil
import signal
import statistics
import threading
from pathlib import Path

import pytest
import torch
from helpers import exits_with, folder_flags, wait_for

import reproduce
import tables
import train
from model import build_model
from vit_cifar10.runs.architecture import model_config
from vit_cifar10.runs.run import find_run
from vit_cifar10.utils.errors import UserError

run_training_in_a_process = reproduce.run_training

ALL_RECIPES = sorted(path.stem for path in tables.RECIPES.glob("*.txt"))
SIZES = {  # parameters, in millions, of the networks that earlier projects describe
    "vit-patch8-12ep": 2.71,
    "cnn-12ep": 0.92,
    "vit-layer6-36ep": 2.69,
    "vit-laptop-layer6": 2.69,
    "vit-layer12-36ep": 5.36,
    "cnn-small": 0.56,
}


def result(recipe="cnn-12ep", seed=0, accuracy=0.9, device="a GPU", **changes):
    values = {
        "six_views": None,
        "pflop": 0.095,
        "val_accuracy": None,
        "kept": "last epoch",
        "epochs": 12,
        "parameters": 918_826,
        "train_seconds": 61.2,
    }
    values |= {"total_seconds": 70.0, "gpu_memory_gb": 1.5, "precision": "bf16", "torch": "2.11.0", "commit": "abc"}
    return tables.Result(recipe, seed, accuracy, device=device, date="2026-01-31", **{**values, **changes})


def test_every_recipe_is_in_the_table_and_measured():
    assert sorted(tables.TABLE_RECIPES) == sorted(set(ALL_RECIPES) - set(tables.OTHER_RECIPES))
    assert {row.recipe for row in tables.read_results()} == set(tables.TABLE_RECIPES)


@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_recipes_describe_networks_that_train(recipe):
    flags = [f"@{tables.RECIPES / recipe}.txt", f"--model_path={tables.ROOT / 'model'}"]
    args, _, _, initial, _ = train.read_flags(flags)
    with torch.device("meta"):
        model = build_model(model_config(args, num_classes=10, shape=initial and initial.model_config))
    if recipe in SIZES:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters / 1e6 == pytest.approx(SIZES[recipe], abs=0.005)
    assert tables.read_header(recipe)["title"].endswith(".")


def test_trying_a_recipe_trains_it_and_records_no_result(tmp_path, monkeypatch):
    before = tables.RESULTS.read_text()
    few = ["--num_train_images=256", "--num_test_images=100", "--dataset=shapes"]
    monkeypatch.setattr(reproduce, "FEW_IMAGES", few)
    monkeypatch.setattr(reproduce, "run_training", run_training)
    places = f"--data_path={tmp_path} --model_path={tmp_path / 'model'} --output_path={tmp_path / 'output'}"
    reproduce.main(f"cnn-12ep --try {places}".split())
    run = find_run("cnn-12ep-try", tmp_path / "model", tmp_path / "output")
    ((metrics,), _), config = run.read_metrics(), run.read_config()
    assert (metrics["epoch"], config["parameters"], config["flags"]["optimizer"]) == (1, 918826, "muon")
    assert 0 < metrics["test_accuracy"] < 1
    assert tables.RESULTS.read_text() == before


@pytest.mark.parametrize("recipe", tables.TABLE_RECIPES)
def test_every_recipe_can_be_tried(recipe):
    assert train.parse(reproduce.try_flags(recipe)).epochs == 1


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
    measured = ((0.9, 0.92), (0.91, None), (0.92, 0.93))
    results = [result(seed=seed, accuracy=one, six_views=six) for seed, (one, six) in enumerate(measured)]
    results.append(result(accuracy=0.5, device="2 CPU threads", gpu_memory_gb=None, train_seconds=7200.0))
    link = "[`cnn-12ep`](../recipes/cnn-12ep.txt)"
    assert rows(tables.full_table(results), "cnn-12ep") == [
        f"| {link} | 0.92 M | 12 | 91.00 ± 1.00 % | 92.50 ± 0.71 % | 61 s | a GPU | 0.10 | 79.92 % |",
        f"| {link} | 0.92 M | 12 | 50.00 % | | 2.0 h | 2 CPU threads | 0.10 | 79.92 % |",
    ]
    first, second = tables.measured_lines("cnn-12ep", results).splitlines()
    start = "# measured: 91.00 ± 1.00 % on the test images (seeds 0, 1, 2; last epoch), 61 s of training, 1.5 GB, a GPU"
    assert first.startswith(start)
    assert second.startswith("# measured: 50.00 % on the test images (seed 0; last epoch), 2.0 h of training, 2 CPU")
    assert second.endswith("2 CPU threads, bf16, torch 2.11.0")


def test_only_measured_recipes_are_in_the_tables_in_a_fixed_order():
    results = [result(recipe) for recipe in sorted(tables.TABLE_RECIPES)]
    for measured in (results, results[:2]):
        expected = [recipe for recipe in tables.TABLE_RECIPES if recipe in {row.recipe for row in measured}]
        assert re.findall(r"\[`(.*?)`\]\(\.\./recipes/(.*?)\.txt\)", tables.full_table(measured)) == pairs(expected)
        short = [recipe for recipe in expected if tables.TABLE_RECIPES[recipe]]
        assert re.findall(r"\[`(.*?)`\]\(recipes/(.*?)\.txt\)", tables.short_table(measured)) == pairs(short)


def pairs(names):
    return [(name, name) for name in names]


def test_the_short_table_prefers_more_seeds_and_then_the_faster_device():
    slow = [result(device="slow", train_seconds=300.0)]
    fast = [result(device="fast", train_seconds=100.0)]
    two_seeds = [result(seed=seed, device="two seeds", train_seconds=500.0) for seed in range(2)]
    for results, device in ((slow + fast, "fast"), (slow + fast + two_seeds, "two seeds")):
        (row,) = rows(tables.short_table(results), "cnn-12ep")
        assert row.endswith(f" | {device} |")


def test_generated_text_needs_its_markers(tmp_path):
    (tmp_path / "page.md").write_text("<!-- results -->\n| a |\n")
    with pytest.raises(UserError, match="add the lines <!-- results --> and <!-- end of results -->"):
        tables.split_at_markers(tmp_path / "page.md", "results")


def test_results_csv_keeps_every_value():
    results = [result(), result(seed=1, val_accuracy=0.875, gpu_memory_gb=None), result(total_seconds=None)]
    assert tables.parse_rows(tables.format_rows(results)) == results


TINY = "--dataset shapes --num_train_images 128 --num_test_images 100 --num_workers 0 --val_images 0 --batch_size 64"
TINY_RECIPES = {
    "cnn-12ep": f"{TINY} --model cnn --width 4 --epochs 3",
    "cnn-small": f"{TINY} --dataset folder",  # there is no folder
    "vit-patch8-12ep": f"{TINY} --patch_size 16 --embed_dim 8 --n_layers 1 --n_attention_heads 1 --epochs 2",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with tiny recipes and the generated pages, which reproduce.py uses instead of its own."""
    folder = tmp_path / "project"
    for name in ("recipes", "docs"):
        shutil.copytree(tables.ROOT / name, folder / name)
    (folder / "benchmarks").mkdir()
    shutil.copy(tables.ROOT / "README.md", folder)
    for recipe, flags in TINY_RECIPES.items():
        write_recipe(folder, recipe, flags)
    for name in ("RECIPES", "RESULTS", "RESULTS_PAGE", "README"):
        monkeypatch.setattr(tables, name, folder / getattr(tables, name).relative_to(tables.ROOT))
    monkeypatch.setattr(reproduce, "RECIPES", tables.RECIPES)
    monkeypatch.setattr(reproduce, "run_training", run_training)
    return folder


def write_recipe(folder, recipe, flags):
    path = folder / "recipes" / f"{recipe}.txt"
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    path.write_text("\n".join([*head, "", flags, ""]))


def run_training(flags, args):
    """What reproduce.py does in a process of its own: run train.py, and return whether it succeeded."""
    try:
        train.main([*flags, "--data_path", args.data_path, "--device", "cpu", "--output_path", args.output_path])
    except SystemExit:
        return False
    return True


def reproduce_in(folder, flags):
    """Run reproduce.py with the folders of a project. Return its exit status."""
    places = [f"--{place}_path={folder / place}" for place in ("data", "model", "output")]
    try:
        reproduce.main([*flags.split(), *places, "--device", "cpu"])
    except SystemExit as stopped:
        return stopped.code
    return 0


def rows_in(folder):
    return tables.parse_rows((folder / "benchmarks" / "results.csv").read_text())


def printed(capsys):
    """All that was printed since the last call."""
    return "".join(capsys.readouterr())


def stop_this_process_once(condition):
    wait_for(condition)
    os.kill(os.getpid(), signal.SIGTERM)


def test_recipes_run_one_after_the_other_and_a_failure_does_not_stop_the_others(project, capsys):
    assert reproduce_in(project, "cnn-small cnn-12ep --seeds 0 1") == 2
    messages = printed(capsys)
    assert "error: there is no folder" in messages
    assert "error: cnn-small-seed0, cnn-small-seed1 failed; see the messages of train.py above" in messages
    rows = rows_in(project)
    assert [(row.recipe, row.seed) for row in rows] == [("cnn-12ep", 0), ("cnn-12ep", 1)]
    for row in rows:
        with open(project / "output" / f"{row.recipe}-seed{row.seed}" / "metrics.csv", newline="") as file:
            epochs = list(csv.DictReader(file))
        assert row.epochs == len(epochs) == 3
        assert row.test_accuracy == round(float(epochs[-1]["test_accuracy"]), 4)
        assert row.train_seconds == pytest.approx(sum(float(epoch["train_seconds"]) for epoch in epochs), abs=0.06)
        assert row.total_seconds == pytest.approx(sum(float(epoch["seconds"]) for epoch in epochs), abs=0.06)
    accuracy = 100 * statistics.mean(row.test_accuracy for row in rows)
    for name in ("README.md", "docs/results.md", "recipes/cnn-12ep.txt"):
        assert f"{accuracy:.2f} ± " in (project / name).read_text()


def test_an_interrupted_run_is_continued_and_a_complete_one_only_recorded(project, capsys, monkeypatch):
    write_recipe(project, "cnn-12ep", f"{TINY} --model cnn --width 4 --epochs 60 --eval_every 60 --save_every 2")
    model = project / "model" / "cnn-12ep-seed0"
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "run_training", run_training_in_a_process)
        stopping = threading.Thread(target=stop_this_process_once, args=[(model / "last.pt").exists])
        stopping.start()
        assert reproduce_in(project, "cnn-12ep vit-patch8-12ep") == 143
        stopping.join()
    assert "stopped; the same command goes on" in printed(capsys)
    assert not tables.RESULTS.exists()
    assert not (project / "model" / "vit-patch8-12ep-seed0").exists(), "no other run begins"

    assert reproduce_in(project, "cnn-12ep") == 0
    (row,) = rows_in(project)
    assert (row.recipe, row.epochs) == ("cnn-12ep", 60)
    assert "resum" in printed(capsys)

    tables.RESULTS.unlink()
    saved = (model / "last.pt").stat().st_mtime_ns
    assert reproduce_in(project, "cnn-12ep") == 0
    assert rows_in(project) == [row]
    assert (model / "last.pt").stat().st_mtime_ns == saved
    write_recipe(project, "cnn-12ep", f"{TINY} --model cnn --width 4 --epochs 60 --learning_rate 1e-3")
    tables.RESULTS.unlink()
    assert reproduce_in(project, "cnn-12ep") == 2
    assert "cnn-12ep-seed0 has other flags than cnn-12ep.txt; move it away, or add --again" in printed(capsys)


def test_a_finished_run_is_recorded_by_its_folder(project, capsys):
    recipe = [f"@{project}/recipes/cnn-12ep.txt", "--run_name", "mine", "--seed", "5"]
    train.main([*recipe, *folder_flags(project), "--device", "cpu"])
    assert reproduce_in(project, f"--record {project}/model/mine") == 0
    (row,) = rows_in(project)
    assert (row.recipe, row.seed, row.epochs) == ("cnn-12ep", 5, 3)
    assert f"{100 * row.test_accuracy:.2f} %" in (project / "recipes" / "cnn-12ep.txt").read_text()

    for folder in ("model", "output"):
        shutil.copytree(project / folder / "mine", project / folder / "other")
    config = project / "output" / "other" / "config.json"
    config.write_text(config.read_text().replace('"mixup": 0.0', '"mixup": 0.5'))
    lines = (project / "output" / "mine" / "metrics.csv").read_text().splitlines(keepends=True)
    (project / "output" / "mine" / "metrics.csv").write_text("".join(lines[:-1]))
    for name, error in (
        ("other", "other was trained with other flags than the recipes in the table"),
        ("mine", "mine is not finished; continue it with python train.py --resume"),
    ):
        assert reproduce_in(project, f"--record {name}") == 2
        assert f"error: {error}" in printed(capsys)
    assert rows_in(project) == [row]


def test_runs_in_results_csv_are_skipped(monkeypatch, capsys):
    device = reproduce.device_name("cpu", torch.get_num_threads())
    measured = [result("fast-cnn", device=device), result("cnn-12ep")]
    trained = []
    monkeypatch.setattr(reproduce, "read_results", lambda: measured)
    monkeypatch.setattr(reproduce, "complete_run", lambda run, recipe, seed, args: trained.append((recipe, seed)))

    def tasks(flags):
        trained.clear()
        with exits_with(2):  # as no run has become complete
            reproduce.main(f"fast-cnn cnn-12ep --device cpu {flags}".split())
        return list(trained)

    assert tasks("") == [("cnn-12ep", 0)]  # the CNN was measured on another device
    assert capsys.readouterr().out.startswith("fast-cnn, seed 0: in results.csv already")
    assert tasks("--again --seeds 0 1") == [("fast-cnn", 0), ("cnn-12ep", 0), ("fast-cnn", 1), ("cnn-12ep", 1)]
