"""Tests that every flag of train.py has its effect, that the right weights are kept, and that runs stay separate."""

import copy
import functools
import itertools
import re
import subprocess
import types

import numpy as np
import pytest
import torch
from helpers import SMALL_VIT, checkpoint_contents, exits_with, folder_flags, train_epoch, training_flags
from sklearn.utils.class_weight import compute_class_weight
from torch._dynamo.testing import CompileCounter

import train
from vit_cifar10.data import dataset
from vit_cifar10.runs import checkpoint, writer
from vit_cifar10.runs.writer import RunWriter
from vit_cifar10.training import trainer as trainer_module
from vit_cifar10.training.distributed import Job
from vit_cifar10.training.recorder import describe_epoch, progress_bar, recorded
from vit_cifar10.training.schedule import Schedule
from vit_cifar10.training.signals import StopSignals
from vit_cifar10.utils import device as device_module
from vit_cifar10.utils.device import pick_compile
from vit_cifar10.utils.errors import UserError

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def splits():
    return dataset.load("shapes", "", num_train_images=256, num_test_images=50, val_images=50)


def trainer_for(splits, flags="", network=SMALL_VIT):
    args = train.parse(f"--device cpu --precision fp32 --dataset shapes --epochs 4 {network} {flags}".split())
    return trainer_module.Trainer(args, splits, torch.device("cpu"))


def train_steps(trainer, count=3):
    """Train on the same batch a few times; returns all parameters of the network, flat."""
    trainer.model.train()
    for step in range(count):
        trainer.schedule.set_step(step)
        trainer.train_step(trainer.train_split.images[:64], trainer.train_split.labels[:64])
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


FLAGS = [
    "--learning_rate 1e-3",
    "--warmup_epochs 0",
    "--schedule onecycle",
    "--weight_decay 5",
    "--optimizer muon",
    "--label_smoothing 0.5",
    "--clip_grad 0.01",
    "--dropout 0.5",
    "--drop_path 0.5",
    "--small_epochs 1",
    "--keep_patches 0.5",
    "--crop_padding 8",
    "--crop_border reflect",
    "--flips alternating",
    "--augment none",
    "--augment randaugment",
    "--augment trivialaugment",
    "--mixup 1",
    "--cutmix 1",
    "--random_erasing 1",
    "--precision bf16",
    "--seed 1",
]


MUON_FLAGS = ["--muon_learning_rate 1e-3", "--muon_weight_decay 5"]


@pytest.mark.parametrize(
    ("base", "flag"),
    [
        *(("", flag) for flag in FLAGS),
        *(("--optimizer muon", flag) for flag in MUON_FLAGS),
        ("--mixup 1", "--mix_prob 0.5"),
    ],
)
def test_every_flag_changes_the_first_updates(base, flag, splits):
    plain, again, changed = (train_steps(trainer_for(splits, f"{base} {flags}")) for flags in ("", "", flag))
    assert torch.equal(plain, again)
    assert changed.isfinite().all()
    assert not torch.equal(plain, changed)


def test_alternating_flips_mirror_every_image_in_every_other_epoch(splits):
    trainer = trainer_for(splits, "--flips alternating --crop_padding 0 --batch_size 32")
    split, mirrored = trainer.train_split, []
    for epoch in range(1, 5):
        seen = torch.cat([trainer.augment(*batch)[0] for batch in trainer.batches(epoch)])
        plain, flipped = (
            dataset.normalize(images[trainer.order(epoch)], split.mean, split.std)
            for images in (split.images, split.images.flip(-1))
        )
        is_flipped = torch.empty(len(split), dtype=torch.bool)
        is_flipped[trainer.order(epoch)] = (seen == flipped).flatten(1).all(dim=1)
        assert torch.equal(seen, torch.where(is_flipped[trainer.order(epoch), None, None, None], flipped, plain))
        mirrored.append(is_flipped)
    assert 0.4 < mirrored[0].float().mean() < 0.6
    assert all(torch.equal(a, ~b) for a, b in itertools.pairwise(mirrored))


@pytest.mark.parametrize("flags", ["", "--label_smoothing 0.2", "--mixup 1 --label_smoothing 0.2", "--precision bf16"])
def test_class_weights_are_those_of_scikit_learn_in_the_loss_of_torch(flags, splits):
    chosen = [index for index, label in enumerate(splits.train.labels.tolist()) if label > 2 or index % 3 == 0]
    split = splits.train.subset(chosen)
    trainer = trainer_for(
        splits._replace(train=split), f"--class_weights balanced --augment none --dropout 0 --drop_path 0 {flags}"
    )
    weights = compute_class_weight("balanced", classes=np.arange(10), y=split.labels.numpy())
    assert trainer.summary()["class_weights"] == pytest.approx(weights)
    batch = split.images[:64], split.labels[:64]
    inputs, targets = trainer.augment(*batch, seed=0)
    trainer.augment = lambda *_: (inputs, targets)
    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in flags):
        logits = copy.deepcopy(trainer.model)(inputs)
    smoothing = 0.2 if "smoothing" in flags else 0.0
    weight = torch.tensor(weights, dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(logits.float(), targets, weight, label_smoothing=smoothing)
    trainer.model.train()
    total, _ = trainer.train_step(*batch)
    assert total.item() / 64 == pytest.approx(expected.item(), rel=1e-2 if "bf16" in flags else 1e-5)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    gradient = trainer.model.head.bias.grad  # which is the sum of the gradients of the logits
    tolerance = 2e-3 if "bf16" in flags else 1e-6
    torch.testing.assert_close(gradient, expected_gradient.float().sum(dim=0), atol=tolerance, rtol=1e-4)
    plain = torch.nn.functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
    (plain_gradient,) = torch.autograd.grad(plain, logits)
    assert (plain_gradient.float().sum(dim=0) - gradient).abs().max() > 2e-2


def test_flags_reach_the_parts_that_they_configure(splits):
    flags = "--mixup 0.8 --cutmix 0.5 --mix_prob 0.7 --random_erasing 0.1 --pool avg --ema 0.9 --n_layers 5"
    trainer = trainer_for(splits, flags)
    augment = trainer.augment
    assert (augment.mixup, augment.cutmix, augment.random_erasing, augment.mix_prob) == (0.8, 0.5, 0.1, 0.7)
    assert (trainer.model.global_pool, len(trainer.model.blocks), trainer.ema.decay) == ("avg", 5, 0.9)
    assert trainer.model.cls_token is None
    assert trainer_for(splits, network="--model cnn --width 5").model.classifier[-1].in_features == 80
    state = trainer.inference_state({"epoch": 1})
    assert (state["mean"], state["std"]) == ([0.5] * 3, [0.25] * 3)
    assert trainer.schedule.total_steps == 4 * (256 // 128)


@torch._dynamo.config.patch(recompile_limit=8)  # and set back what the trainer sets
def test_every_number_of_patches_is_compiled(splits, monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    monkeypatch.setattr(trainer_module, "pick_compile", lambda *_: True)  # as where there is a compiler
    flags = "--augment none --patch_size 4 --small_epochs 0.5 --keep_patches 0.1"
    trainer = trainer_for(splits, f"{flags} --n_layers 1 --batch_size 16 --epochs 2 --warmup_epochs 0")
    train_epoch(trainer, 1)
    train_epoch(trainer, 2)
    graphs_of_augment = 1
    assert counter.frame_count == graphs_of_augment + 1 + 8
    assert trainer.timed_steps == 2 * 16 - 1 - 8, "the steps that compile take longer"


def test_without_a_toolchain_auto_does_not_compile(tmp_path, monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(device_module.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(device_module.shutil, "which", lambda name: name)
    assert not pick_compile("auto", gpu)
    for choice in ("on", "graphs"):
        with pytest.raises(UserError, match=f"--compile {choice} needs Python's header files"):
            pick_compile(choice, gpu)
    (tmp_path / "Python.h").touch()
    assert all(pick_compile(choice, gpu) for choice in ("auto", "on", "graphs"))


def test_without_a_compiler_a_cpu_says_what_is_missing(tmp_path, monkeypatch, capsys):
    flags = training_flags(tmp_path, f"--compile on --num_train_images 100 {SMALL_VIT}")
    for command in (str(tmp_path / "g++"), "no-cache g++", ""):
        monkeypatch.setenv("CXX", command)
        with exits_with(2):
            train.main(flags)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("train.py: error: --compile on needs a C++ compiler, such as g++; use --compile auto")
    assert not any(tmp_path.glob("*/*"))


@torch._dynamo.config.patch(recompile_limit=8)
def test_cuda_graphs_are_asked_for_and_their_recording_is_not_timed(splits, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.append(options) or function)
    monkeypatch.setattr(trainer_module, "pick_compile", lambda *_: True)  # as on a GPU
    trainer = trainer_for(splits, "--compile graphs --batch_size 16 --epochs 1 --warmup_epochs 0")
    train_epoch(trainer, 1)
    assert [options.get("options") for options in seen] == [{"triton.cudagraphs": True}, None]  # network, augmentation
    assert trainer.timed_steps == 16 - 3


def test_averaged_weights_are_evaluated_and_saved(splits):
    trainer = trainer_for(splits, "--ema 0.5")
    train_steps(trainer, 1)  # the first update copies the weights
    assert torch.equal(trainer.evaluated_model.head.weight, trainer.model.head.weight)
    before = trainer.evaluated_model.head.weight.clone()
    train_steps(trainer, 1)
    after = 0.5 * before + 0.5 * trainer.model.head.weight
    torch.testing.assert_close(trainer.evaluated_model.head.weight, after)
    torch.testing.assert_close(trainer.inference_state({"epoch": 1})["weights"]["head.weight"], after)
    assert not torch.equal(after, trainer.model.head.weight)


class FakeTrainer:
    """What `RunWriter` needs of a trainer."""

    def inference_state(self, metrics):
        return checkpoint_contents(epoch=metrics["epoch"], metrics=metrics)

    def training_state(self):
        return {}


def epoch_metrics(epoch, val_accuracy, test_accuracy):
    """A row of metrics.csv."""
    losses = {"train_loss": 1.0, "val_loss": 1.0, "test_loss": 1.0}
    accuracies = {"train_accuracy": 0.5, "val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
    speed = {"images_per_second": 1.0, "train_seconds": 1.0, "gpu_memory_gb": None, "seconds": 1.0}
    return {"epoch": epoch, "learning_rate": 1.0, **losses, **accuracies, **speed}


def test_validation_images_choose_the_best_epoch_and_test_images_never_do(tmp_path):
    run = RunWriter(tmp_path / "model", tmp_path / "output", "new")
    run.begin()
    accuracies = [(0.3, 0.9), (0.6, 0.1), (0.5, 0.95)]  # validation and test accuracy contradict each other
    for epoch, (val, test) in enumerate(accuracies, start=1):
        run.log_epoch(FakeTrainer(), epoch_metrics(epoch, val, test), is_last=epoch == len(accuracies))
    assert checkpoint.load(tmp_path / "model")["epoch"] == 2
    assert torch.load(tmp_path / "model" / "last.pt", weights_only=True)["epoch"] == 3
    assert run.best["epoch"] == 2


def test_plateau_follows_the_validation_loss_and_survives_a_resume(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "Schedule", functools.partial(Schedule, patience=0))
    same = {f"{split}_{quantity}": 0.5 for split in ("val", "test") for quantity in ("loss", "accuracy")}
    monkeypatch.setattr(trainer_module.Trainer, "evaluate", lambda self, epoch: same)
    trainer = trainer_for(splits, "--schedule plateau --warmup_epochs 0")
    run = RunWriter(tmp_path / "model", tmp_path / "output", "new")
    with recorded(trainer, run, StopSignals(Job())) as recorder:
        for epoch in range(1, 5):
            metrics = train_epoch(trainer, epoch) | trainer.evaluate(epoch)
            trainer.end_epoch(metrics)
            recorder.log_epoch(metrics)
    assert [metrics["learning_rate"] for metrics in run.epochs] == pytest.approx([5e-4, 5e-4, 5e-5, 5e-6])
    resumed = trainer_for(splits, "--schedule plateau --warmup_epochs 0")
    resumed.resume(checkpoint.load(tmp_path / "model", "last.pt"))
    assert resumed.schedule.set_step(0) == pytest.approx(5e-7)


def test_a_run_never_takes_the_folders_of_another(tmp_path):
    first, second = (RunWriter(tmp_path / "model" / "run", tmp_path / "output" / "run", "new") for _ in range(2))
    first.begin()
    with pytest.raises(train.UserError, match="already exists"):
        second.begin()


def test_runs_started_in_the_same_second_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "default_name", lambda args: "same")
    args = train.parse(folder_flags(tmp_path))
    runs = [writer.open_run(args) for _ in range(3)]
    for run in runs:
        run.begin()
    assert len({run.name for run in runs}) == 3
    assert len(list((tmp_path / "model").iterdir())) == len(list((tmp_path / "output").iterdir())) == 3


def test_the_recorded_commit_is_dirty_only_if_code_has_changed(tmp_path, monkeypatch):
    files = {
        name: tmp_path / "project" / name for name in ("code/module.py", "script.py", "results.csv", "recipes/a.txt")
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# measured: not yet\n--epochs 1\n")
    git = ["git", "-C", str(tmp_path / "project"), "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(writer, "__file__", str(files["code/module.py"]))
    commit = writer.git_commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    files["results.csv"].write_text("new")
    files["recipes/a.txt"].write_text("# measured: 90 %\n--epochs 1\n")
    assert writer.git_commit() == commit
    for name in ("script.py", "recipes/a.txt"):
        before = files[name].read_text()
        files[name].write_text("--epochs 2\n")
        assert writer.git_commit() == f"{commit}-dirty"
        files[name].write_text(before)
    monkeypatch.setattr(writer, "__file__", str(tmp_path / "module.py"))
    assert writer.git_commit() is None


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(train.UserError, match="cannot write"):
        RunWriter(tmp_path / "model" / "run", tmp_path / "file" / "run", "new").begin()
    assert not (tmp_path / "model" / "run").exists()


def test_replacing_a_run_leaves_nothing_of_the_old_one(tmp_path):
    run = RunWriter(tmp_path / "model", tmp_path / "output", "replace")
    for file in ("model/best.pt", "model/last.pt", "output/test_results.json", "output/mine.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    before = set(tmp_path.rglob("*"))
    run.begin()
    assert set(tmp_path.rglob("*")) == before  # the old files stay until there are new ones
    run.log_epoch(FakeTrainer(), epoch_metrics(1, 0.5, 0.5), is_last=False)
    written = {"config.json", "metrics.csv", "history.pt", "best.pt", "last.pt"}
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"mine.txt", *written}
    assert checkpoint.load(tmp_path / "model")["epoch"] == 1


def test_a_run_cannot_be_resumed_on_other_images(splits):
    trainer = trainer_for(splits)
    saved = {**trainer.inference_state({}), "training": trainer.training_state()}
    trainer.resume(saved)
    other = trainer_for(dataset.load("shapes", "", num_train_images=255, num_test_images=50, val_images=50))
    with pytest.raises(train.UserError, match="does not hold the images"):
        other.resume(saved)


def test_help_shows_every_default():
    text = train.build_parser().format_help()
    for flag, default in {"--seed": "0", "--ema": "0.0", "--batch_size": "128", "--drop_path": "0.0"}.items():
        start = text.index(f"  {flag} ")
        assert f"(default: {default})" in " ".join(text[start : start + 400].split("\n  --")[0].split())


def test_lines_of_a_training_fit_into_a_terminal_and_name_their_numbers(capsys):
    metrics = {"epoch": 1200, "learning_rate": 1e-3, "images_per_second": 123456.7}
    for split in ("train", "val", "test"):
        metrics |= {f"{split}_loss": 12.345, f"{split}_accuracy": 1.0}
    text = describe_epoch(metrics, 1200, seconds_left=1e6)
    assert max(map(len, text.splitlines())) < 80
    assert text.count("loss 12.345 acc 100.00 %") == 3
    args, job = types.SimpleNamespace(epochs=1200), types.SimpleNamespace(is_rank0=True)
    of_run = {"steps_per_epoch": 390, "batch_size": 128, "epoch": 1199, "step": 467_900, "is_complete": False}
    with progress_bar(types.SimpleNamespace(args=args, job=job, **of_run)) as bar:
        bar.set_postfix_str("loss 12.345, acc 100.0 %")
        assert len(str(bar)) < 80
        assert str(bar).endswith("loss 12.345, acc 100.0 %")
