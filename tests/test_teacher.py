"""Tests of distillation: what the student learns from a teacher, what is recorded, and which teachers are refused."""

import hashlib
import json
import re
import signal

import pytest
import torch
from helpers import SMALL_VIT, assert_equal_weights, exits_with, load_weights, signals_in_step, training_flags
from torch.nn import functional as F

import compare
import train
from vit_cifar10.runs import checkpoint
from vit_cifar10.training.trainer import Trainer

pytestmark = pytest.mark.quick

SHORT = "--num_train_images 128 --num_test_images 100 --val_images 100 --batch_size 64"
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]  # unlike the ones of the drawn shapes


@pytest.fixture(scope="module")
def teacher(runs, tmp_path_factory):
    """The folder of a CNN that was trained with another normalization."""
    folder = tmp_path_factory.mktemp("teachers") / "cnn"
    saved = checkpoint.load(runs / "model" / "cnn")
    checkpoint.save(folder / "best.pt", {**saved, "mean": MEAN, "std": STD})
    return folder


def start(folder, flags):
    """The trainer of a new run, before its first step."""
    args, _, _, initial, teacher = train.read_flags(training_flags(folder, f"{SHORT} {flags}"))
    return Trainer(args, train.load_splits(args, initial), torch.device("cpu"), teacher=teacher)


@pytest.mark.parametrize("flags", ["--teacher_temperature 3", "--teacher_hard --teacher_weight 0.5"])
def test_the_loss_compares_the_student_with_the_teacher_on_the_same_whole_images(flags, teacher, tmp_path, monkeypatch):
    trainer = start(tmp_path, f"--teacher {teacher} {SMALL_VIT} --small_epochs 1 --epochs 2 --augment none {flags}")
    monkeypatch.setattr(trainer.model, "forward", model := trainer.model.forward)
    seen = []
    monkeypatch.setattr(trainer, "forward", lambda images: seen.append(images) or model(images))
    images, labels = trainer.train_split.images[:64], trainer.train_split.labels[:64]
    trainer.model.eval()  # without dropout
    with torch.no_grad():
        logits = model(F.avg_pool2d(trainer.augment(images, labels)[0], 2)).double()
    sums = trainer.train_step(images, labels)
    assert seen[0].shape == (64, 3, 16, 16)

    network = checkpoint.load_network(teacher, torch.device("cpu"))
    theirs = network.logits(images).double()
    hard = "hard" in flags
    weight, temperature = (0.5, 1) if hard else (0.7, 3)
    log_probabilities = (logits / temperature).log_softmax(dim=1)
    targets = F.one_hot(theirs.argmax(1), 10) if hard else (theirs / temperature).softmax(dim=1)
    taught = -(targets * log_probabilities).sum(dim=1).mean() * temperature**2
    own = -logits.log_softmax(dim=1)[range(64), labels].mean()
    assert (sums[0] / 64).item() == pytest.approx(((1 - weight) * own + weight * taught).item(), rel=1e-4)


def test_a_teacher_teaches_only_in_its_part_of_the_run(teacher, tmp_path):
    trainer = start(tmp_path, f"--teacher {teacher} {SMALL_VIT} --epochs 4 --teacher_start 0.25 --teacher_end 0.75")
    taught = []
    for step in range(8):  # two steps an epoch
        trainer.step = step
        taught.append(trainer.lesson(torch.zeros(1, 3, 32, 32)) is not None)
    assert taught == [False] * 2 + [True] * 4 + [False] * 2


def test_a_resumed_distillation_ends_with_the_same_weights_and_the_same_record(teacher, tmp_path):
    flags = f"{SHORT} {SMALL_VIT} --teacher {teacher} --epochs 4 --cutmix 1 --small_epochs 1 --keep_patches 0.5"
    train.main(training_flags(tmp_path, f"--run_name whole {flags}"))
    with signals_in_step(5, signal.SIGTERM), exits_with(128 + signal.SIGTERM):
        train.main(training_flags(tmp_path, f"--run_name stopped {flags}"))
    train.main(["--resume", str(tmp_path / "model" / "stopped")])
    assert_equal_weights(*(load_weights(tmp_path, run) for run in ("whole", "stopped")))
    record = checkpoint.load(tmp_path / "model" / "stopped")["teacher"]
    assert (record["name"], record["sha256"]) == (
        "cnn",
        hashlib.sha256((teacher / "best.pt").read_bytes()).hexdigest(),
    )
    config = json.loads((tmp_path / "output" / "stopped" / "config.json").read_text())
    assert config["teacher"] == record
    convolutions = 9 * 32 * 32 * (3 * 8 + 8 * 16 // 4 + 16 * 32 // 16 + 32 * 64 // 64)
    assert record["flops"] == 2 * (convolutions + 256 * 128 + 128 * 10)


def test_compare_says_who_was_taught(teacher, tmp_path, no_pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, flags in (("alone", ""), ("taught", f"--teacher {teacher}")):
        train.main(training_flags(tmp_path, f"--run_name {name} {SHORT} {SMALL_VIT} --epochs 1 {flags}"))
    compare.main(["alone", "taught", "--device=cpu", f"--data_path={tmp_path}"])
    report = json.loads((tmp_path / "output" / "comparison" / "comparison.json").read_text())
    assert [row["network"] for row in report["runs"]] == [
        "ViT 3 x 32, patch 8",
        "ViT 3 x 32, patch 8, distilled from cnn",
    ]


ERRORS = [
    ("--teacher nobody", "there is no checkpoint of nobody"),
    ("--teacher {teacher} --image_size 64", "takes images of 32 pixels, and --image_size is 64"),
    ("--teacher_weight 0.5", "--teacher_weight needs --teacher RUN"),
    ("--teacher_hard", "--teacher_hard needs --teacher RUN"),
    ("--teacher {teacher} --teacher_hard --teacher_temperature 2", "leave out --teacher_temperature"),
    ("--teacher {teacher} --teacher_start 0.5 --teacher_end 0.5", "must be less than --teacher_end 0.5"),
    ("--teacher {other}", "knows other classes than the images have"),
]


def test_teachers_and_flags_that_do_not_fit_are_refused_in_one_line(teacher, tmp_path, capsys):
    saved = checkpoint.load(teacher)
    checkpoint.save(tmp_path / "other" / "best.pt", {**saved, "classes": saved["classes"][::-1]})
    for template, message in ERRORS:
        flags = template.format(teacher=teacher, other=tmp_path / "other")
        with exits_with(2):
            train.main(training_flags(tmp_path, f"--run_name run {SHORT} {SMALL_VIT} --epochs 1 {flags}"))
        error = capsys.readouterr().err
        assert re.search(re.escape(message), error), error
        assert not (tmp_path / "model" / "run").exists()


def test_a_run_is_not_resumed_with_another_teacher(teacher, tmp_path, capsys):
    saved = checkpoint.load(teacher)
    checkpoint.save(tmp_path / "teacher" / "best.pt", saved)
    flags = f"--run_name run {SHORT} {SMALL_VIT} --epochs 2 --teacher {tmp_path / 'teacher'}"
    with signals_in_step(1, signal.SIGTERM), exits_with(128 + signal.SIGTERM):
        train.main(training_flags(tmp_path, flags))
    saved["weights"]["classifier.4.bias"] += 1
    checkpoint.save(tmp_path / "teacher" / "best.pt", saved)
    capsys.readouterr()
    with exits_with(2):
        train.main(["--resume", str(tmp_path / "model" / "run")])
    assert "is not the teacher that this run started with" in capsys.readouterr().err
