"""Several processes that train one network: as one would, and ending together."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from background import end, start, start_job
from helpers import ROOT, SMALL_VIT, flags_for, has_saved, read_metrics, wait_for
from torch import nn

from vit_cifar10.runs import checkpoint
from vit_cifar10.training import distributed, trainer

TWENTY_STEPS = "--epochs 20 --num_train_images 64 --batch_size 64 --num_test_images 31 --val_images 33 --dropout 0"
MIXED = "--augment randaugment --mixup 0.8 --cutmix 1 --random_erasing 0.25 --ema 0.9 --clip_grad 1"
LONG = f"{SMALL_VIT} --epochs 500 --warmup_epochs 0 --num_train_images 640 --batch_size 64 --val_images 100"


@pytest.mark.parametrize(
    "flags",
    [
        f"{SMALL_VIT} --learning_rate 2e-3",
        f"{SMALL_VIT} {MIXED}",
        "--model cnn --learning_rate 1e-5",  # AdamW makes steps of the rate even of gradients that are rounding errors
    ],
    ids=["vit", "vit mixed", "cnn"],
)
def test_two_processes_give_the_losses_of_one(flags, tmp_path):
    flags = f"{TWENTY_STEPS} {flags}"
    alone = start(flags_for(tmp_path, f"--run_name one {flags}"), tmp_path / "one.log")
    job = start_job(flags_for(tmp_path, f"--run_name two {flags} --log tensorboard"), tmp_path)
    for process in (alone, *job):
        assert end(process) == 0, (tmp_path / "0.log").read_text()
    assert "epoch" not in (tmp_path / "1.log").read_text()
    assert (tmp_path / "output" / "two" / "confusion_matrix.png").exists()  # for the tracker
    one, two = (read_metrics(tmp_path, run) for run in ("one", "two"))
    assert len(one) == 20
    for row, other in zip(one, two, strict=True):
        for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"):
            assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-5)
    assert float(one[-1]["train_loss"]) != float(one[0]["train_loss"])
    for ours, theirs in zip(
        *(checkpoint.load(tmp_path / "model" / run)["weights"].values() for run in ("one", "two")), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def normalise_a_share(rank, file):
    """In a process of its own: gradients and statistics of batch normalisation of half a batch, in float64."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    share = images[3 * rank : 3 * rank + 3].clone().requires_grad_()
    norm = distributed.Job(rank, 2).convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3).double()))
    (norm(share) ** 3 * images[:3].exp()).sum().backward()
    torch.save((share.grad, norm[0].bias.grad, norm.state_dict()), f"{file}.{rank}")


def test_batch_normalisation_sees_the_batch_of_all_processes(tmp_path):
    file = tmp_path / "meeting"
    program = f"import test_processes; test_processes.normalise_a_share(int(__import__('sys').argv[1]), {str(file)!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    running = [subprocess.Popen([sys.executable, "-c", program, str(rank)], env=environment) for rank in (0, 1)]
    assert [process.wait(60) for process in running] == [0, 0]
    parts = [torch.load(f"{file}.{rank}") for rank in (0, 1)]
    torch.manual_seed(0)
    images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    whole = images.clone().requires_grad_()
    norm = nn.Sequential(nn.BatchNorm2d(3).double())
    (norm(whole) ** 3 * torch.cat([images[:3], images[:3]]).exp()).sum().backward()
    torch.testing.assert_close(torch.cat([grad for grad, _, _ in parts]), whole.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(grad for _, grad, _ in parts), norm[0].bias.grad, rtol=1e-10, atol=1e-10)
    for _, _, state in parts:
        torch.testing.assert_close(state, norm.state_dict(), rtol=1e-6, atol=1e-6)


def test_torchrun_trains_is_interrupted_and_one_process_goes_on(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--", str(ROOT / "train.py")]
    flags = flags_for(tmp_path, f"--run_name run {LONG} --log tensorboard")  # without the -- it would be torchrun's
    with open(tmp_path / "log.txt", "w") as log:
        job = subprocess.Popen([*torchrun, *flags], stdout=log, stderr=log)
        wait_for(lambda: has_saved(tmp_path), 120)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) != 0
    text = (tmp_path / "log.txt").read_text()
    step = int(re.search(r"interrupted at step (\d+); resume with: python train.py --resume", text)[1])
    saved = checkpoint.load(tmp_path / "model" / "run", "last.pt")
    assert saved["training"]["step"] == step
    resumed = start(["--resume", str(tmp_path / "model" / "run"), "--epochs", "501"], tmp_path / "one.log")
    wait_for(lambda: checkpoint.load(tmp_path / "model" / "run", "last.pt")["epoch"] > saved["epoch"])
    os.kill(resumed.pid, signal.SIGINT)
    assert end(resumed) == 130


def test_a_process_that_dies_ends_the_job(tmp_path):
    job = start_job(flags_for(tmp_path, f"--run_name run {LONG}"), tmp_path)
    wait_for(lambda: has_saved(tmp_path))
    job[1].kill()
    start_of_wait = time.monotonic()
    assert end(job[0], 30) == 2
    assert time.monotonic() - start_of_wait < 20
    assert "another process of this job has ended" in (tmp_path / "0.log").read_text()


def test_an_agreed_stop_and_a_resume_in_more_processes(tmp_path):
    job = start_job(flags_for(tmp_path, f"--run_name run {LONG}"), tmp_path)
    wait_for(lambda: has_saved(tmp_path))
    os.kill(job[1].pid, signal.SIGTERM)  # one alone is told
    assert [end(process, 30) for process in job] == [143, 143]
    saved = checkpoint.load(tmp_path / "model" / "run", "last.pt")
    more = start_job(["--resume", str(tmp_path / "model" / "run"), "--epochs", str(saved["epoch"] + 2)], tmp_path, 4)
    assert [end(process) for process in more] == [0] * 4
    rows = read_metrics(tmp_path, "run")
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, saved["epoch"] + 3)]


def measure_slowly():
    predict = trainer.predict

    def slow(model, split, batch_size, precision, after_batch):
        def wait():
            time.sleep(0.2)
            print("measuring", flush=True)
            after_batch()

        return predict(model, split, 4, precision, wait)

    trainer.predict = slow


def test_a_signal_while_they_measure_stops_all_before_the_end(tmp_path):
    job = start_job(flags_for(tmp_path, f"--run_name run {LONG} --val_images 600"), tmp_path, setup=measure_slowly)
    log = tmp_path / "0.log"
    wait_for(lambda: log.exists() and "measuring" in log.read_text())
    for process in job:
        os.kill(process.pid, signal.SIGTERM)
    assert [end(process, 10) for process in job] == [143, 143]
    saved = checkpoint.load_last(tmp_path / "model" / "run")
    assert (saved["epoch"], saved["training"]["step"]) == (0, 10)


def fail_alone():
    if os.environ["RANK"] == "1":
        trainer.Trainer.train_step = lambda *_: os.stat("/nowhere/at/all")


def test_one_process_says_what_befalls_it_alone(tmp_path):
    job = start_job(flags_for(tmp_path, f"--run_name run {LONG}"), tmp_path, setup=fail_alone)
    assert [end(process, 30) for process in job] == [2, 2]
    assert "train.py: error: [Errno 2] No such file or directory: '/nowhere/at/all'" in (tmp_path / "1.log").read_text()
    assert not (tmp_path / "model" / "run").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--num_train_images 1", "use fewer"),
        ("--batch_size 63", "a batch of 63 images cannot be shared out evenly among 2 processes; use --batch_size 62"),
        ("--patch_size 5", "patch_size 5 does not divide"),
        ("--num_train_images 99999", "asks for more"),
    ],
)
def test_a_mistake_is_said_once(flags, reason, tmp_path):
    job = start_job(flags_for(tmp_path, f"--run_name run {LONG} {flags}"), tmp_path)
    assert [end(process) for process in job] == [2, 2]
    (line,) = re.findall("^train.py: .*", (tmp_path / "0.log").read_text(), re.MULTILINE)
    assert reason in line
    assert "train.py" not in (tmp_path / "1.log").read_text()
    assert not (tmp_path / "model").exists()
