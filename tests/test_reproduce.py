"""That the recipes run, and that the README, the recipes' heads and results.csv say the same."""

import pytest
import torch

import reproduce
import train
from model import build_model
from vit_cifar10.training.trainer import model_config

# parameters, in millions, of the networks that earlier projects describe
SIZES = {
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
    assert sorted(reproduce.ORDER) == sorted(path.stem for path in reproduce.RECIPES.glob("*.txt"))


@pytest.mark.parametrize("recipe", reproduce.ORDER)
def test_recipes_describe_networks_that_train(recipe):
    args, *_ = train.parse([f"@{reproduce.RECIPES / recipe}.txt"])
    with torch.device("meta"):
        model = build_model(model_config(args, num_classes=10))
    if recipe in SIZES:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert parameters / 1e6 == pytest.approx(SIZES[recipe], abs=0.005)
    assert reproduce.head(recipe)["title"].endswith(".")


def test_a_recipe_runs_from_end_to_end_and_a_try_is_not_written_down(tmp_path, capfd):
    before = reproduce.RESULTS.read_text() if reproduce.RESULTS.exists() else None
    places = f"--data_path={tmp_path} --model_path={tmp_path / 'model'} --output_path={tmp_path / 'output'}"
    reproduce.main(f"cnn-12ep --try --dataset shapes --device cpu {places}".split())
    printed = capfd.readouterr().out
    assert "Result(recipe='cnn-12ep', seed=0, test_accuracy=0." in printed
    assert "kept='last epoch', epochs=1, parameters=918826" in printed
    assert (reproduce.RESULTS.read_text() if reproduce.RESULTS.exists() else None) == before


def test_the_readme_and_the_recipes_say_what_results_csv_says():
    results = reproduce.read_results()
    assert reproduce.table(results) in reproduce.README.read_text()
    for recipe in reproduce.ORDER:
        assert reproduce.measured_lines(recipe, results) + "\n" in (reproduce.RECIPES / f"{recipe}.txt").read_text()


def test_seeds_become_mean_and_deviation_and_devices_stay_apart():
    results = [result(seed=seed, accuracy=accuracy) for seed, accuracy in enumerate((0.9, 0.91, 0.92))]
    results.append(result(accuracy=0.5, device="2 CPU threads", gpu_memory_gb=None, train_seconds=7200.0))
    lines = [line for line in reproduce.table(results).splitlines() if "`cnn-12ep`" in line]
    assert lines == [
        "| `cnn-12ep` | 0.92 M | 12 | 91.00 ± 1.00 % | 61 s | a GPU | 79.92 % |",
        "| `cnn-12ep` | 0.92 M | 12 | 50.00 % | 2.0 h | 2 CPU threads | 79.92 % |",
    ]
    first, second = reproduce.measured_lines("cnn-12ep", results).splitlines()
    start = "# measured: 91.00 ± 1.00 % on the test images (seed 0, 1, 2; last epoch), 61 s of training, 1.5 GB, a GPU"
    assert first.startswith(start)
    assert second.endswith("2 CPU threads, bf16, torch 2.11.0")
    assert "| `vit-best` | | | | | | |" in reproduce.table(results)


def test_results_survive_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.csv")
    results = [result(), result(seed=1, val_accuracy=0.875, gpu_memory_gb=None)]
    reproduce.write_results(results)
    assert reproduce.read_results() == results


def test_a_better_recipes_weights_are_not_replaced():
    assert reproduce.shipped_name("vit-laptop", []) == "vit-layer12-32-cifar10"
    assert reproduce.shipped_name("vit-laptop", [result("deit-ti")]) is None
    assert reproduce.shipped_name("deit-ti", [result("vit-laptop")]) == "vit-layer12-32-cifar10"
    assert reproduce.shipped_name("vit-fast", []) is None
