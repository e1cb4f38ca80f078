"""Tests of training in several processes: results match one process, and all ranks stop and fail together."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from background import end, new_process, start, start_job
from helpers import ROOT, SMALL_VIT, exits_with, has_saved, load_weights, read_metrics, training_flags, wait_for
from torch import nn

import train
from vit_cifar10.runs import checkpoint
from vit_cifar10.training import distributed, trainer

TWENTY_STEPS = "--epochs 20 --num_train_images 64 --batch_size 64 --num_test_images 31 --val_images 33"
AUGMENTED = "--augment randaugment --mixup 0.8 --cutmix 1 --random_erasing 0.25 --ema 0.9 --clip_grad 1"
LONG = (
    f"{SMALL_VIT} --epochs 500 --warmup_epochs 0 --batch_size 64"
    " --num_train_images 640 --val_images 100 --num_test_images 100"
)


@pytest.mark.parametrize(
    "flags",
    [
        f"{SMALL_VIT} --dropout 0 --learning_rate 2e-3 --class_weights balanced",
        f"{SMALL_VIT} --dropout 0 {AUGMENTED}",
        "--model cnn --width 8 --dropout 0 --learning_rate 1e-5",  # AdamW amplifies rounding errors to it
        "--model fast-cnn --width 4 --optimizer muon-sgd --learning_rate 1e-3 --muon_learning_rate 1e-4",
    ],
    ids=["vit", "augmented vit", "cnn", "fast cnn"],
)
def test_two_processes_have_the_same_losses_as_one(flags, tmp_path):
    flags = f"{TWENTY_STEPS} {flags}"
    alone = start(training_flags(tmp_path, f"--run_name one {flags}"), tmp_path / "one.log")
    job = start_job(training_flags(tmp_path, f"--run_name two {flags} --log tensorboard"), tmp_path)
    for process in (alone, *job):
        assert end(process) == 0, (tmp_path / "0.log").read_text()
    assert "epoch" not in (tmp_path / "1.log").read_text()
    assert (tmp_path / "output" / "two" / "confusion_matrix.png").exists()  # drawn for TensorBoard
    one, two = (read_metrics(tmp_path, run) for run in ("one", "two"))
    assert len(one) == 20
    for row, other in zip(one, two, strict=True):
        for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"):
            assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-5)
    assert float(one[-1]["train_loss"]) != float(one[0]["train_loss"])
    weights, other_weights = (load_weights(tmp_path, run) for run in ("one", "two"))
    for value, other in zip(weights.values(), other_weights.values(), strict=True):
        torch.testing.assert_close(value, other, atol=1e-3, rtol=1e-3)


def normalize_shard(rank, file):
    """Train batch normalization on half a batch in float64, and save gradients and statistics. Each rank calls it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    shard = images[3 * rank : 3 * rank + 3].clone().requires_grad_()
    norm = distributed.Job(rank, 2).convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3).double()))
    (norm(shard) ** 3 * images[:3].exp()).sum().backward()
    torch.save((shard.grad, norm[0].bias.grad, norm.state_dict()), f"{file}.{rank}")
    torch.distributed.barrier()  # as at the end of a job: a process that exits while gloo's threads run may crash
    torch.distributed.destroy_process_group()


def test_batch_normalization_uses_the_batches_of_all_ranks(tmp_path):
    file = tmp_path / "rendezvous"
    processes = [new_process(normalize_shard, rank, str(file)) for rank in (0, 1)]
    for process in processes:
        process.start()
    assert [end(process) for process in processes] == [0, 0]
    shards = [torch.load(f"{file}.{rank}") for rank in (0, 1)]
    torch.manual_seed(0)
    images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    batch = images.clone().requires_grad_()
    norm = nn.Sequential(nn.BatchNorm2d(3).double())
    (norm(batch) ** 3 * torch.cat([images[:3], images[:3]]).exp()).sum().backward()
    torch.testing.assert_close(torch.cat([grad for grad, _, _ in shards]), batch.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(grad for _, grad, _ in shards), norm[0].bias.grad, rtol=1e-10, atol=1e-10)
    for _, _, state in shards:
        torch.testing.assert_close(state, norm.state_dict(), rtol=1e-6, atol=1e-6)


def test_an_interrupted_torchrun_job_can_be_resumed_in_one_process(tmp_path):
    # without the --, torchrun would take --log as one of its own flags
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--", str(ROOT / "train.py")]
    flags = training_flags(tmp_path, f"--run_name run {LONG} --log tensorboard")
    with open(tmp_path / "log.txt", "w") as log:
        job = subprocess.Popen([*torchrun, *flags], stdout=log, stderr=log)
        wait_for(lambda: has_saved(tmp_path), 120)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) != 0
    text = (tmp_path / "log.txt").read_text()
    step = int(re.search(r"interrupted at step (\d+); resume with:\npython train.py --resume", text)[1])
    saved = checkpoint.load(tmp_path / "model" / "run", "last.pt")
    assert saved["training"]["step"] == step
    resumed = start(["--resume", str(tmp_path / "model" / "run"), "--epochs", "501"], tmp_path / "one.log")
    wait_for(lambda: checkpoint.load(tmp_path / "model" / "run", "last.pt")["epoch"] > saved["epoch"])
    os.kill(resumed.pid, signal.SIGINT)
    assert end(resumed) == 130


def test_a_process_that_dies_ends_the_job(tmp_path):
    job = start_job(training_flags(tmp_path, f"--run_name run {LONG}"), tmp_path)
    wait_for(lambda: has_saved(tmp_path))
    job[1].kill()
    killed_at = time.monotonic()
    assert end(job[0], 30) == 2
    assert time.monotonic() - killed_at < 20
    assert "another process of this job has ended" in (tmp_path / "0.log").read_text()


def test_a_signal_to_one_rank_stops_all_ranks_and_more_processes_can_resume(tmp_path):
    job = start_job(training_flags(tmp_path, f"--run_name run {LONG}"), tmp_path)
    wait_for(lambda: has_saved(tmp_path))
    os.kill(job[1].pid, signal.SIGTERM)  # only rank 1 gets it
    assert [end(process, 30) for process in job] == [143, 143]
    saved = checkpoint.load(tmp_path / "model" / "run", "last.pt")
    resumed = start_job(["--resume", str(tmp_path / "model" / "run"), "--epochs", str(saved["epoch"] + 2)], tmp_path, 4)
    assert [end(process) for process in resumed] == [0] * 4
    rows = read_metrics(tmp_path, "run")
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, saved["epoch"] + 3)]


def evaluate_slowly():
    predict = trainer.predict

    def predict_slowly(model, split, batch_size, precision, after_batch):
        def wait():
            time.sleep(0.2)
            print("evaluating", flush=True)
            after_batch()

        return predict(model, split, 4, precision, wait)

    trainer.predict = predict_slowly


def test_a_signal_during_evaluation_stops_all_ranks_before_it_is_complete(tmp_path):
    job = start_job(
        training_flags(tmp_path, f"--run_name run {LONG} --val_images 600"), tmp_path, setup=evaluate_slowly
    )
    log = tmp_path / "0.log"
    wait_for(lambda: log.exists() and "evaluating" in log.read_text())
    for process in job:
        os.kill(process.pid, signal.SIGTERM)
    assert [end(process, 10) for process in job] == [143, 143]
    saved = checkpoint.load_last(tmp_path / "model" / "run")
    assert (saved["epoch"], saved["training"]["step"]) == (0, 10)


def fail_on_rank_1():
    if os.environ["RANK"] == "1":
        trainer.Trainer.train_step = lambda *_: os.stat("/nowhere/at/all")


def test_an_error_on_one_rank_is_printed_by_that_rank(tmp_path):
    job = start_job(training_flags(tmp_path, f"--run_name run {LONG}"), tmp_path, setup=fail_on_rank_1)
    assert [end(process, 30) for process in job] == [2, 2]
    assert "train.py: error: [Errno 2] No such file or directory: '/nowhere/at/all'" in (tmp_path / "1.log").read_text()
    assert not (tmp_path / "model" / "run").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--num_train_images 1", "use fewer"),
        ("--batch_size 63", "a batch of 63 images cannot be split evenly among 2 processes; use --batch_size 62"),
        ("--patch_size 5", "patch_size 5 does not divide"),
        ("--compile graphs", "--compile graphs works in one process only"),
        ("--num_train_images 99999", "is more than the 4900 images"),
    ],
)
def test_a_mistake_is_reported_once(flags, reason, tmp_path):
    job = start_job(training_flags(tmp_path, f"--run_name run {LONG} {flags}"), tmp_path)
    assert [end(process) for process in job] == [2, 2]
    (line,) = re.findall("^train.py: .*", (tmp_path / "0.log").read_text(), re.MULTILINE)
    assert reason in line
    assert "train.py" not in (tmp_path / "1.log").read_text()
    assert not (tmp_path / "model").exists()


LAUNCHERS = [{"RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}, {"OMPI_COMM_WORLD_SIZE": "2"}]


@pytest.mark.parametrize("environment", LAUNCHERS, ids=str)
def test_processes_of_other_launchers_are_told_of_torchrun(environment, tmp_path, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with exits_with(2):
        train.main(training_flags(tmp_path, f"--num_train_images 64 --epochs 1 {SMALL_VIT}"))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"train\.py: error: [A-Z_]+=2 says .*: torchrun --nproc_per_node=N train\.py", line)
    assert not list(tmp_path.iterdir())


def test_the_older_launcher_of_pytorch_starts_a_job(tmp_path):
    flags = f"--local-rank=0 --local_rank=0 --run_name run --epochs 1 --num_train_images 64 --val_images 0 {SMALL_VIT}"
    job = start_job(training_flags(tmp_path, flags), tmp_path)
    assert [end(process) for process in job] == [0, 0], (tmp_path / "0.log").read_text()
    assert " in 2 processes" in (tmp_path / "0.log").read_text().replace("\n ", "")
