"""Tests of what can go wrong: signals, kills, full disks, no memory, missing data, two runs at once, damaged files."""

import concurrent.futures
import json
import os
import random
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
from background import end, start
from helpers import (
    EVERY_METHOD,
    SMALL_VIT,
    assert_equal_weights,
    exits_with,
    has_saved,
    load_weights,
    read_files,
    read_metrics,
    run_training,
    signals_in_step,
    training_flags,
    wait_for,
)
from PIL import Image

import train
from vit_cifar10.data.shapes import draw_shapes
from vit_cifar10.evaluation import metrics
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import find_run
from vit_cifar10.runs.writer import RunWriter
from vit_cifar10.training import trainer
from vit_cifar10.utils.errors import UserError

resource = pytest.importorskip("resource")  # not on Windows

LONG = (
    f"{SMALL_VIT} {EVERY_METHOD} --optimizer muon --epochs 10"
    " --num_train_images 700 --val_images 100 --num_test_images 100"
)


def saved_step(last):
    """The step of a last.pt, or 0 if there is none."""
    return checkpoint.load(last)["training"]["step"] if last.exists() else 0


def kill_and_resume(folder, flags, kills, seed):
    """Train a run named "run" that is killed and resumed `kills` times, and then let it end.

    The run saves after every step. Most kills come at a random moment of one of the next steps and saves; some come
    while the process starts.

    Returns:
        How many kills came in the middle of a write.
    """
    draw = random.Random(seed)
    last, log, torn = folder / "model" / "run" / "last.pt", folder / "log.txt", 0
    new_run = training_flags(folder, f"--run_name run --overwrite --save_minutes 1e-6 {flags}")
    for _ in range(kills):
        step, steps = saved_step(last), draw.randint(1, 8)
        process = start(["--resume", str(last.parent)] if last.exists() else new_run, log)
        if draw.random() < 0.8:
            wait_for(lambda: saved_step(last) >= step + steps)  # noqa: B023 (called in this iteration)
        time.sleep(draw.uniform(0, 0.1))
        assert process.exitcode is None, log.read_text()
        process.kill()
        end(process)
        torn += any(file.name.startswith(".") for file in last.parent.glob("*.pt"))
        assert saved_step(last) >= step
    assert end(start(["--resume", str(last.parent)], log)) == 0, log.read_text()
    return torn


def check_kills(tmp_path, flags, kills, seed):
    """Check that a run that is killed ends like one that is not. Returns the kills in the middle of a write."""
    run_training(tmp_path, f"--run_name whole {flags}")
    torn = kill_and_resume(tmp_path, flags, kills, seed)
    for name in ("best.pt", "last.pt"):
        assert_equal_weights(load_weights(tmp_path, "whole", name), load_weights(tmp_path, "run", name))
    whole, run = (
        [[row[key] for key in ("epoch", "train_loss", "val_loss", "test_loss")] for row in read_metrics(tmp_path, name)]
        for name in ("whole", "run")
    )
    assert whole == run
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]  # no half-written file is left
    return torn


def resume(folder, *flags):
    train.main(["--resume", str(folder / "model" / "run"), *flags])


def test_a_run_killed_5_times_ends_with_the_weights_of_an_uninterrupted_run(tmp_path):
    check_kills(tmp_path, f"{LONG} --epochs 7", kills=5, seed=0)


@pytest.mark.soak
def test_soak_of_200_kills(tmp_path, capsys):
    torn = check_kills(tmp_path, f"{LONG} --epochs 200", kills=200, seed=1)
    with capsys.disabled():
        print(f"\n200 kills, {torn} of them in the middle of a write")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_prints_how_to_resume(number, tmp_path):
    log = tmp_path / "log.txt"
    process = start(training_flags(tmp_path, f"--run_name run {LONG} --epochs 500"), log)
    wait_for(lambda: has_saved(tmp_path))
    os.kill(process.pid, number)
    assert end(process, 30) == 128 + number
    text = log.read_text()
    step = int(re.search(r"interrupted at step (\d+); resume with:\npython train.py --resume \S+/model/run\n", text)[1])
    assert "Traceback" not in text
    assert checkpoint.load(tmp_path / "model" / "run", "last.pt")["training"]["step"] == step


def hang_in_the_third_step():
    train_step = trainer.Trainer.train_step

    def step(self, *batch):
        if self.step == 2:
            time.sleep(1000)
        return train_step(self, *batch)

    trainer.Trainer.train_step = step


def test_a_second_signal_stops_at_once_and_damages_no_file(tmp_path):
    log = tmp_path / "log.txt"
    flags = training_flags(tmp_path, f"--run_name run {LONG} --save_minutes 1e-6")
    process = start(flags, log, setup=hang_in_the_third_step)
    folder = tmp_path / "model" / "run"
    wait_for(lambda: has_saved(tmp_path) and checkpoint.load(folder, "last.pt")["training"]["step"] == 2)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "second signal" in log.read_text())
    os.kill(process.pid, signal.SIGINT)
    assert end(process, 10) == 130
    assert checkpoint.load(folder, "last.pt")["training"]["step"] == 2


@pytest.mark.quick
def test_an_epoch_interrupted_during_evaluation_is_evaluated_again(tmp_path, monkeypatch):
    flags = f"{SMALL_VIT} --epochs 2 --num_train_images 200"
    run_training(tmp_path, f"--run_name whole {flags}")
    predict = trainer.predict

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return predict(*arguments)

    monkeypatch.setattr(trainer, "predict", interrupt)
    with exits_with(143):
        run_training(tmp_path, f"--run_name run {flags}")
    monkeypatch.setattr(trainer, "predict", predict)
    resume(tmp_path)
    assert_equal_weights(load_weights(tmp_path, "whole"), load_weights(tmp_path, "run"))
    for whole, run in zip(read_metrics(tmp_path, "whole"), read_metrics(tmp_path, "run"), strict=True):
        assert whole["train_loss"] == run["train_loss"]


@pytest.mark.parametrize("val_images", [20, 0])
def test_only_evaluated_epochs_are_kept_and_all_others_stay_the_same(val_images, tmp_path, capsys):
    flags = f"{SMALL_VIT} --epochs 5 --batch_size 64 --num_train_images 148 --val_images {val_images}"
    run_training(tmp_path, f"--run_name whole {flags}")
    with signals_in_step(2, signal.SIGTERM), exits_with(143):  # in epoch 2: none has been evaluated yet
        run_training(tmp_path, f"--run_name run --eval_every 2 {flags}")
    assert not (tmp_path / "model" / "run" / "best.pt").exists()
    with pytest.raises(UserError, match="continue the run with"):
        find_run("run", tmp_path / "model", tmp_path / "output")
    with exits_with(2):
        resume(tmp_path, "--epochs", "1")  # the rate of epoch 1 is near its peak
    assert "already has 1 epochs; raise --epochs" in capsys.readouterr().err
    resume(tmp_path)
    assert_equal_weights(load_weights(tmp_path, "whole", "last.pt"), load_weights(tmp_path, "run", "last.pt"))
    accuracies = {}
    for every, some in zip(read_metrics(tmp_path, "whole"), read_metrics(tmp_path, "run"), strict=True):
        epoch = int(some["epoch"])
        for column in ("train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"):
            is_empty = epoch in (1, 3) and column != "train_loss"
            assert some[column] == ("" if is_empty else every[column])
        if epoch not in (1, 3):
            accuracies[epoch] = some["val_accuracy"]
    best = max(accuracies, key=lambda epoch: float(accuracies[epoch])) if val_images else 5
    kept = checkpoint.load(tmp_path / "model" / "run")
    assert kept["epoch"] == kept["metrics"]["epoch"] == best
    assert f"kept epoch {best} " in capsys.readouterr().out


def fill_the_disk_in_the_second_epoch():
    log_epoch = RunWriter.log_epoch

    def fill_and_log(self, trainer, metrics, is_last):
        if metrics["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        log_epoch(self, trainer, metrics, is_last)

    RunWriter.log_epoch = fill_and_log


def test_on_a_full_disk_a_run_ends_with_one_line_and_keeps_its_files(tmp_path):
    log = tmp_path / "log.txt"
    process = start(training_flags(tmp_path, f"--run_name run {LONG}"), log, setup=fill_the_disk_in_the_second_epoch)
    assert end(process) == 2
    text = log.read_text()
    assert re.search(r"train.py: error: cannot write \S+; is the disk full\?\n$", text)
    assert "Traceback" not in text
    folder = tmp_path / "model" / "run"
    assert checkpoint.load(folder)["epoch"] == checkpoint.load(folder, "last.pt")["epoch"] == 1
    assert {file.name for file in folder.iterdir()} == {"best.pt", "last.pt"}


@pytest.mark.parametrize("before", [None, "an earlier run"])
def test_out_of_memory_reports_the_flags_to_lower_and_changes_no_files(before, tmp_path, monkeypatch, capsys):
    if before:
        run_training(tmp_path, f"--run_name run --epochs 1 {SMALL_VIT} --num_train_images 100")
    files = read_files(tmp_path)

    def fail(self, *batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(trainer.Trainer, "train_step", fail)
    with exits_with(2):
        run_training(tmp_path, f"--run_name run --overwrite {SMALL_VIT}")
    assert re.search(r"^train.py: error: out of memory; lower --batch_size, --embed_dim", capsys.readouterr().err, re.M)
    assert read_files(tmp_path) == files
    assert (tmp_path / "model").exists() == bool(before)


def test_training_does_not_need_the_data_set_once_it_is_loaded(tmp_path, monkeypatch):
    images, labels = draw_shapes(60, 32, seed=0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = tmp_path / "data" / str(label.item()) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    end_epoch = trainer.Trainer.end_epoch

    def delete_data_and_end_epoch(self, metrics):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        end_epoch(self, metrics)

    monkeypatch.setattr(trainer.Trainer, "end_epoch", delete_data_and_end_epoch)
    run_training(tmp_path, f"--run_name run --dataset folder --num_train_images 30 --epochs 2 {SMALL_VIT}")
    assert not (tmp_path / "data").exists()
    assert checkpoint.load(tmp_path / "model" / "run", "last.pt")["epoch"] == 2


def test_a_second_training_with_the_same_name_is_refused(tmp_path, capsys):
    log = tmp_path / "log.txt"
    process = start(training_flags(tmp_path, f"--run_name run {LONG} --epochs 1000"), log)
    wait_for(lambda: has_saved(tmp_path))
    for flags, reason in (
        ("--run_name run --num_test_images 100", "already exists"),
        ("--run_name run --num_test_images 100 --overwrite", "is in use by another training"),
        (f"--resume {tmp_path}/model/run", "is in use by another training"),
    ):
        with exits_with(2):
            train.main(flags.split() if "--resume" in flags else training_flags(tmp_path, flags))
        assert reason in capsys.readouterr().err
    os.kill(process.pid, signal.SIGINT)  # it is still running, and can save and be resumed
    assert end(process) == 130, log.read_text()
    assert saved_step(tmp_path / "model" / "run" / "last.pt") > 0


def test_of_many_starts_with_one_name_exactly_one_gets_the_folders(tmp_path):
    together = threading.Barrier(20)

    def begin(name, mode):
        run = RunWriter(tmp_path / "model" / name, tmp_path / "output" / name, mode)
        together.wait()
        try:
            run.begin()
        except UserError as error:
            return str(error)
        return run

    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        for name in map(str, range(20)):
            began = list(threads.map(begin, [name] * 20, ["new"] * 20))
            (run,) = [run for run in began if isinstance(run, RunWriter)]
            assert all(folder.is_dir() for folder in run.folders)
            run.close(failed=True)
        assert not any(tmp_path.glob("*/*"))
        named = list(threads.map(begin, ["unnamed"] * 20, ["unnamed"] * 20))
    assert len({run.name for run in named}) == 20
    for run in named:
        run.close(failed=True)


def change_folders_after_the_first_epoch(monkeypatch, change):
    end_epoch = trainer.Trainer.end_epoch

    def change_and_end_epoch(self, metrics):
        if metrics["epoch"] == 2:
            monkeypatch.setattr(trainer.Trainer, "end_epoch", end_epoch)
            change()
        end_epoch(self, metrics)

    monkeypatch.setattr(trainer.Trainer, "end_epoch", change_and_end_epoch)


def remove_folders(folder):
    for name in ("model", "output"):
        shutil.rmtree(folder / name / "run")


def test_a_run_whose_folders_another_run_has_taken_ends_and_leaves_them_alone(tmp_path, monkeypatch, capsys):
    flags, files = f"--run_name run {SMALL_VIT} --num_train_images 100 --num_test_images 50", {}

    def take_the_folders():
        remove_folders(tmp_path)
        run_training(tmp_path, f"{flags} --epochs 1")
        files.update(read_files(tmp_path))

    change_folders_after_the_first_epoch(monkeypatch, take_the_folders)
    with exits_with(2):
        run_training(tmp_path, f"{flags} --epochs 9")
    assert "model/run was removed and now belongs to another run, so this training ends" in capsys.readouterr().err
    assert read_files(tmp_path) == files


def test_a_run_whose_folders_are_removed_creates_them_again(tmp_path, monkeypatch, capsys):
    change_folders_after_the_first_epoch(monkeypatch, lambda: remove_folders(tmp_path))
    run_training(tmp_path, f"--run_name run {SMALL_VIT} --num_train_images 100 --num_test_images 50 --epochs 3")
    assert capsys.readouterr().err.count("was removed; it is created again") == 2
    assert [row["epoch"] for row in read_metrics(tmp_path, "run")] == ["1", "2", "3"]
    assert {"config.json", "curves.png", "history.pt"} <= {file.name for file in (tmp_path / "output/run").iterdir()}
    assert checkpoint.load(tmp_path / "model" / "run")["epoch"] in (2, 3)
    resume(tmp_path)


def damage(path):
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_run_with_a_damaged_last_pt_resumes_from_previous_pt(tmp_path, capsys):
    flags = f"{SMALL_VIT} --epochs 3 --save_every 1 --val_images 0"  # so that the last epoch is kept, not a lost one
    run_training(tmp_path, f"--run_name whole {flags}")
    run_training(tmp_path, f"--run_name run {flags}")
    for name in ("last.pt", "best.pt"):
        damage(tmp_path / "model" / "run" / name)
    resume(tmp_path)
    printed = capsys.readouterr()
    assert re.search(r"warning: \S+model/run/last.pt cannot be read .*resuming from previous.pt", printed.err)
    assert re.search(r"warning: \S+model/run/best.pt cannot be read", printed.err)
    assert "resuming after 2 of 3 epochs" in printed.out
    for name in ("best.pt", "last.pt"):
        assert_equal_weights(load_weights(tmp_path, "whole", name), load_weights(tmp_path, "run", name))
    for name in ("last.pt", "previous.pt"):
        damage(tmp_path / "model" / "run" / name)
    with exits_with(2):
        resume(tmp_path, "--epochs", "4")
    assert "previous.pt cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("val_images", [0, 500])
def test_resuming_a_complete_run_restores_its_missing_files_and_succeeds(val_images, tmp_path, capsys):
    run_training(
        tmp_path,
        f"--run_name run --epochs 2 {SMALL_VIT} --num_train_images 200 --num_test_images 100 --val_images {val_images}",
    )
    files = read_files(tmp_path)
    for name in ("curves.png", "history.pt", "metrics.csv", "config.json"):
        (tmp_path / "output" / "run" / name).unlink()
    resume(tmp_path)  # exits with status 0, so that a loop that resumes until the run succeeds ends too
    printed = capsys.readouterr().out
    assert "all 2 epochs are complete; nothing is left to train" in printed
    assert "kept epoch" in printed
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files.keys()
    for name in ("model/run/best.pt", "model/run/last.pt", "output/run/metrics.csv"):
        assert (tmp_path / name).read_bytes() == files[tmp_path / name]


@pytest.mark.parametrize(("lose", "val_images"), [(Path.unlink, 500), (damage, 0)], ids=["missing", "damaged"])
def test_the_last_epoch_replaces_a_lost_best_checkpoint_of_a_complete_run(lose, val_images, tmp_path, capsys):
    run_training(
        tmp_path,
        f"--run_name run --epochs 2 {SMALL_VIT} --num_train_images 200 --num_test_images 100 --val_images {val_images}",
    )
    lose(tmp_path / "model" / "run" / "best.pt")
    resume(tmp_path)
    printed = capsys.readouterr()
    assert re.search(r"warning: .*model/run/best.pt.*; the last epoch replaces it", printed.err)
    assert "kept epoch 2" in printed.out
    assert_equal_weights(load_weights(tmp_path, "run"), load_weights(tmp_path, "run", "last.pt"))
    resume(tmp_path)  # the run is consistent again
    assert "warning" not in capsys.readouterr().err


def test_weights_within_an_epoch_do_not_replace_a_lost_best_checkpoint(tmp_path):
    flags = f"--run_name run --epochs 3 {SMALL_VIT} --num_train_images 384 --num_test_images 100 --val_images 0"
    with signals_in_step(5, signal.SIGTERM), exits_with(143):  # in epoch 2
        run_training(tmp_path, flags)
    best = tmp_path / "model" / "run" / "best.pt"
    best.unlink()
    with signals_in_step(7, signal.SIGTERM), exits_with(143):  # in epoch 3
        resume(tmp_path)
    kept, last = checkpoint.load(best), checkpoint.load(best.with_name("last.pt"))
    assert kept["metrics"] == last["training"]["rows"][1]
    network = checkpoint.load_network(best, torch.device("cpu"))
    test = network.load_test_images(tmp_path / "data", 100)
    measured = metrics.scores(network.logits(test.images), test.labels)
    assert measured["loss"] == pytest.approx(kept["metrics"]["test_loss"], rel=1e-4)


def test_an_older_save_does_not_count_as_a_complete_run(tmp_path, capsys):
    run_training(tmp_path, f"--run_name run --epochs 2 {SMALL_VIT} --num_train_images 200 --num_test_images 100")
    resume(tmp_path, "--epochs", "3")
    previous, last = (tmp_path / "model" / "run" / name for name in ("previous.pt", "last.pt"))
    assert [checkpoint.load(path)["epoch"] for path in (previous, last)] == [2, 3]
    files = read_files(tmp_path)
    for flags in (["--resume", str(previous)], ["--resume", str(last.parent)]):
        if flags[1] == str(last.parent):
            damage(last)
            files[last] = last.read_bytes()
        with exits_with(2):
            train.main(flags)
        assert "already has 2 epochs; raise --epochs" in capsys.readouterr().err
        assert read_files(tmp_path) == files


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"epochs": "many"}, "recipe.epochs is not a whole number"),
        ({"batch_size": 1e12}, "recipe.batch_size is not a whole number"),
        ({"patch_size": 1.5}, "invalid whole number"),
        ({"num_workers": -1}, "must be at least 0"),
        ({"device": "abacus"}, "invalid choice: 'abacus'"),
        ({"surprise": 1}, "unknown: surprise"),
        ({"help": True}, "unknown: help"),
        ({"run_name": "../../escape"}, "cannot name a folder"),
        ({"embed_dim": 10**9, "n_attention_heads": 1}, "--embed_dim"),
        ({"dataset": ["folder"]}, "recipe.dataset"),
    ],
)
def test_the_flags_in_an_untrusted_checkpoint_are_checked_like_typed_ones(
    runs, recipe, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "model" / "vit", tmp_path / "model" / "run", ignore=shutil.ignore_patterns("previous.pt"))
    path = tmp_path / "model" / "run" / "last.pt"
    saved = checkpoint.load(path)
    saved["recipe"] |= recipe
    checkpoint.save(path, saved)
    with exits_with(2):
        resume(tmp_path, *([] if "epochs" in recipe else ["--epochs", "9"]))
    assert reason in capsys.readouterr().err


@pytest.fixture
def foreign(runs, tmp_path, monkeypatch):
    """A stranger's run in home/model/run, with a folder of files elsewhere that it must not touch."""
    shutil.copytree(runs / "model" / "vit", tmp_path / "home" / "model" / "run")
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    (tmp_path / "elsewhere" / "run" / "metrics.csv").write_text("mine")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path


@pytest.mark.parametrize("kind", ["output_path", "data_path", "a link", "files of other kinds"])
def test_folders_in_an_untrusted_checkpoint_are_not_followed(kind, foreign):
    path, elsewhere = foreign / "home" / "model" / "run" / "last.pt", foreign / "elsewhere"
    saved = checkpoint.load(path)
    saved["recipe"] |= {"model_path": "home/model", "output_path": "records", "data_path": "data"}
    if kind == "a link":
        (foreign / "records").mkdir()
        (foreign / "records" / "run").symlink_to(elsewhere / "run")
    elif kind == "files of other kinds":
        elsewhere = foreign / "home" / "documents"
        (elsewhere / "run").mkdir(parents=True)
        (elsewhere / "run" / "letter.txt").write_text("mine")
        saved["recipe"]["output_path"] = "home/documents"
    else:
        saved["recipe"][kind] = "elsewhere"
    checkpoint.save(path, saved)
    files = read_files(elsewhere)
    train.main(["--resume", "model/run", "--epochs", "3"])
    assert read_files(elsewhere) == files
    assert (foreign / "home" / "output" / "run" / "metrics.csv").exists()


def test_a_run_is_not_resumed_into_the_record_of_another_run(runs, foreign, capsys):
    shutil.copytree(runs / "output" / "cnn", foreign / "home" / "output" / "run")
    files = read_files(foreign)
    with exits_with(2):
        train.main(["--resume", "model/run", "--epochs", "3"])
    assert "output/run contains the record of another run; choose another --output_path" in capsys.readouterr().err
    assert read_files(foreign) == files


def test_a_resume_from_previous_pt_keeps_it_if_last_pt_is_damaged(tmp_path):
    run_training(tmp_path, f"--run_name run --epochs 2 {SMALL_VIT} --num_train_images 100 --num_test_images 50")
    folder = tmp_path / "model" / "run"
    resume(tmp_path, "--epochs", "3")
    damage(folder / "last.pt")
    train.main(["--resume", str(folder / "previous.pt"), "--epochs", "4"])
    assert [checkpoint.load(folder, name)["epoch"] for name in ("previous.pt", "last.pt")] in ([2, 4], [3, 4])


def test_a_run_finds_its_own_folders_wherever_they_are(tmp_path, monkeypatch):
    folders = [f"--{name}_path={tmp_path / name / 'far'}" for name in ("model", "output", "data")]
    flags = f"--dataset shapes --run_name run --epochs 1 --device cpu --num_train_images 100 {SMALL_VIT}"
    train.main([*folders, *flags.split()])
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", str(tmp_path / "model" / "far" / "run"), "--epochs", "2"])
    assert len((tmp_path / "output" / "far" / "run" / "metrics.csv").read_text().splitlines()) == 3
    config = json.loads((tmp_path / "output" / "far" / "run" / "config.json").read_text())
    assert config["flags"]["data_path"] == str(tmp_path / "data" / "far")
    assert not (tmp_path / "output" / "run").exists()


def set_to(*keys):
    """A function that changes a checkpoint's training state: set_to("a", "b", 3) sets state["a"]["b"] to 3."""
    *path, last, value = keys

    def change(saved):
        state = saved["training"]
        for key in path:
            state = state[key]
        state[last] = value

    return change


MOMENT = ("optimizer", "state", 3, "exp_avg")


def expanded(saved):
    """One zero in the shape of `MOMENT`."""
    return torch.zeros(1).expand(saved["training"]["optimizer"]["state"][3]["exp_avg"].shape)


def lose_test_accuracy(saved):
    rows = saved["training"]["rows"]
    rows[0] = {**rows[0], "test_accuracy": None}


INVALID_STATES = [
    (set_to(*MOMENT, torch.zeros(1)), "other shapes"),  # fused kernels would write beyond its end
    (lambda saved: set_to(*MOMENT, expanded(saved))(saved), "stored in a way"),
    (set_to(*MOMENT, "text"), "training.optimizer.state.3.exp_avg is not a tensor"),
    (set_to("optimizer", "state", {0: {}}), "other weights"),
    (set_to("optimizer", {}), "training.optimizer.state is not in the file"),
    (set_to("optimizer", {"together": []}), "training.optimizer.together is not a list of 2"),
    (set_to("step", 10**9), "step 1000000000"),
    (set_to("step", -3), "training.step"),
    (set_to("step", torch.inf), "training.step"),
    (set_to("timed_steps", -4), "training.timed_steps"),
    (set_to("sums", torch.zeros(())), "training.sums"),
    (set_to("seconds", [1.0, torch.nan]), r"training.seconds[1]"),
    (set_to("seconds", [1.0, 10**400]), r"training.seconds[1]"),
    (set_to("rows", []), "training.rows"),
    (set_to("rows", [{"a": 1}, {"b": 2}]), "training.rows[0]"),
    (set_to("rows", 0, "val_loss", 10**400), "training.rows[0].val_loss is not a finite number"),
    (set_to("best", {"val_accuracy": "high"}), "training.best"),
    (set_to("best", "test_accuracy", None), "test_accuracy is not a number in the epoch that was kept"),
    (lose_test_accuracy, "test_accuracy is not a number in every epoch that was evaluated"),
    (set_to("schedule", "scale", "high"), "training.schedule.scale"),
    (set_to("schedule", "best_loss", 10**400), "training.schedule.best_loss"),
    (set_to("scaler", {"scale": 1e300}), "training.scaler.scale"),
    (set_to("average", {"module": {}, "updates": "x"}), "training.average.updates"),
    (set_to("model", {"weights": "none"}), "training.model.weights"),
    (set_to("data", 3), "training.data"),
    (lambda saved: saved["training"].pop("scaler"), "training.scaler is not in the file"),
    (lambda saved: saved.update(epoch=1), "training.rows"),
    (lambda saved: saved["recipe"].update(seed=[[1], [2]]), "recipe.seed"),
]


@pytest.mark.parametrize(("change", "reason"), INVALID_STATES)
def test_an_untrusted_training_state_is_checked_before_it_is_used(change, reason, runs, tmp_path, capsys):
    shutil.copytree(runs / "model" / "vit", tmp_path / "model" / "run", ignore=shutil.ignore_patterns("previous.pt"))
    shutil.copytree(runs / "output" / "vit", tmp_path / "output" / "run")
    path = tmp_path / "model" / "run" / "last.pt"
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    before = (tmp_path / "output" / "run" / "metrics.csv").read_bytes()
    with exits_with(2):
        resume(tmp_path, "--epochs", "9", "--output_path", str(tmp_path / "output"))
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert len(line) < 600
    assert (tmp_path / "output" / "run" / "metrics.csv").read_bytes() == before


def print_to_a_full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def test_a_run_whose_log_is_on_a_full_disk_ends_and_leaves_no_files(tmp_path):
    log = tmp_path / "log.txt"
    flags = training_flags(tmp_path, f"--run_name run {SMALL_VIT} --num_test_images 100")
    process = start(flags, log, setup=print_to_a_full_disk)
    assert end(process) == 2
    assert "train.py: error: [Errno 28] No space left on device" in log.read_text()
    assert not (tmp_path / "model").exists()


def test_a_run_whose_output_pipe_closes_saves_and_exits(tmp_path):
    read, write = os.pipe()
    log = tmp_path / "log.txt"
    flags = f"--run_name run {SMALL_VIT} --num_train_images 200 --num_test_images 100 --epochs 50"
    with open(log, "w") as errors:
        command = [sys.executable, train.__file__, *training_flags(tmp_path, flags)]
        process = subprocess.Popen(command, stdout=write, stderr=errors)
    os.close(write)
    with open(read, "rb") as output:
        while b"epoch  2" not in output.readline():
            pass
    assert process.wait(60) == 141
    assert "Traceback" not in log.read_text()
    assert checkpoint.load_last(tmp_path / "model" / "run")["training"]["step"] > 0


def test_a_run_can_be_resumed_from_any_folder_and_with_more_epochs(tmp_path, monkeypatch, capsys):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    train.main(f"--run_name run --dataset shapes --epochs 1 --device cpu {SMALL_VIT}".split())
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", "home/model/run", "--epochs", "2"])
    assert "--epochs 2 replaces 1: the learning rates" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "home" / "model" / "run", "last.pt")["epoch"] == 2
    assert len((tmp_path / "home" / "output" / "run" / "metrics.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "output").exists()
