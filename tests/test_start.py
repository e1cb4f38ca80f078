"""Tests that commands answer at once: they import nothing that takes long before it is needed.

Each command runs in a new process, in which the packages that it must not import raise an error. Nothing is timed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SMALL_VIT, training_flags

import model
from vit_cifar10.explain import maps, methods
from vit_cifar10.runs.trackers import TRACKING_FOLDERS
from vit_cifar10.utils import choices, networks
from vit_cifar10.utils.device import AUTOCAST_DTYPES
from vit_cifar10.utils.methods import METHODS

DRAWING = ("matplotlib", "imageio")
HEAVY = ("torch", "numpy", "torchvision", "PIL", "tqdm", *DRAWING)
CUSTOM = f"--mode custom --image_path {ROOT / 'examples' / 'cat.png'}"


def run_without(packages, folder, script, flags):
    """Run a script in `folder`, in a process in which these packages cannot be imported."""
    for package in packages:
        (folder / f"{package}.py").write_text(f"raise ImportError('{package} was imported')")
    command = [sys.executable, ROOT / script, *flags]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    options = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, cwd=folder, env=environment, check=False, **options)


@pytest.mark.quick
@pytest.mark.parametrize("script", ["train.py", "test.py", "compare.py", "convert.py"])
def test_help_needs_no_package(script, tmp_path):
    process = run_without(HEAVY, tmp_path, script, ["--help"])
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(f"usage: {script} ")


EARLY_MISTAKES = [
    ("train.py", "@recipes/none.txt", "there is no recipe"),
    ("train.py", "--epochs 0", "must be at least 1"),
    ("train.py", "--epochs 5 --warmup_epochs 5", "must be less than --epochs 5"),
    ("train.py", "--model fast-cnn --dropout 0.1", "--dropout is a size of --model vit or cnn, not of fast-cnn"),
    ("train.py", "--run_name taken", "already exists"),
    ("train.py", "--dataset folder --data_path . --output_path output", "among the images"),
    ("train.py", "--resume run --epoch 3", "unrecognized arguments: --epoch 3"),
    ("test.py", "--device abacus", "invalid choice: 'abacus'"),
    ("test.py", "--mode custom", "needs --image_path"),
    ("test.py", "--mode custom --image_path none.png", "there is no image none.png"),
    ("test.py", "--mode cifar-single --method attention --head_fusion max", "add rollout to --method"),
    ("test.py", "--mode cifar-single --html page.txt", "is not an HTML file"),
    ("compare.py", "", "the following arguments are required: RUN"),
    ("convert.py", "run", "the following arguments are required: TARGET"),
    ("convert.py", "timm: run", "needs a name or a folder after the colon"),
    ("convert.py", "hf:folder run.onnx", "convert to a run first"),
    ("convert.py", "run folder --attention", "needs a TARGET that ends in .onnx"),
    ("convert.py", "run weights.pth", "a name that ends in .onnx or .safetensors"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("script", "flags", "reason"), EARLY_MISTAKES)
def test_mistakes_in_flags_are_reported_without_any_package(script, flags, reason, tmp_path):
    (tmp_path / "model" / "taken").mkdir(parents=True)
    process = run_without(HEAVY, tmp_path, script, flags.split())
    assert (process.returncode, process.stdout) == (2, "")
    assert re.fullmatch(f"{script}: error: .*{reason}.*\n", process.stderr)


def test_an_image_is_classified_before_anything_is_imported_that_draws(tmp_path):
    process = run_without((*DRAWING, "torchvision", "tqdm"), tmp_path, "test.py", CUSTOM.split())
    assert len(re.findall(r"^ *[\d.]+ %  \w", process.stdout, re.MULTILINE)) == 5
    assert process.stderr.endswith("ImportError: matplotlib was imported\n")


def test_without_a_gif_nothing_is_imported_that_draws(tmp_path):
    flags = [*CUSTOM.split(), "--no_gif", "--no_image", "--resize=pad"]
    process = run_without((*DRAWING, "torchvision", "tqdm"), tmp_path, "test.py", flags)
    assert (process.returncode, process.stderr) == (0, "")


def test_pictures_are_drawn_with_a_backend_that_is_not_installed(tmp_path):
    processes = []
    for backend in ("none", "module://none.backend"):  # matplotlib rejects the first one at once, and the second later
        environment = {**os.environ, "MPLBACKEND": backend, "DISPLAY": ":none"}
        flags = [*CUSTOM.split(), "--resize=pad", f"--model_path={ROOT / 'model' / 'cnn-32-cifar10'}"]
        flags += [f"--gif_path={backend[0]}.gif"]
        options = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, ROOT / "test.py", *flags], **options))
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert (process.returncode, error) == (0, "")
    assert {"n.gif", "n.png", "m.gif", "m.png"} <= {file.name for file in tmp_path.iterdir()}


def test_cifar10_on_the_disk_is_read_without_torchvision(cifar10_root, tmp_path):
    data = f"--data_path={Path(cifar10_root).resolve()}"
    small = f"--run_name run --epochs 1 --num_train_images 100 --num_test_images 100 --val_images 0 {SMALL_VIT}"
    calls = (
        ("train.py", [*training_flags(tmp_path, small), "--dataset=cifar10", data]),
        ("test.py", ["--model_path=model/run", "--mode=cifar-single", "--index=5", "--no_gif", "--no_image", data]),
    )
    for script, flags in calls:
        process = run_without(("torchvision",), tmp_path, script, flags)
        assert process.returncode == 0, process.stderr
    assert "true class: frog" in process.stdout


# The values that flags offer


def test_the_code_implements_exactly_what_the_flags_offer():
    assert model.NETWORKS.keys() == networks.NETWORKS.keys()
    assert all(callable(methods.find(flag).compute) for flag in METHODS)
    assert tuple(maps.HEAD_FUSIONS) == choices.HEAD_FUSIONS
    assert ("none", *TRACKING_FOLDERS) == choices.TRACKERS
    assert {"auto", "fp32", *AUTOCAST_DTYPES} == set(choices.PRECISIONS)


def test_the_end_of_a_test_reports_no_leaks():
    code = "import vit_cifar10; vit_cifar10.end_quickly(); import torchvision.transforms.v2"  # which imports Triton
    ended = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr == ""
