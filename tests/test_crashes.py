"""Tests of crashes and full disks at every single file-system operation of a run: nothing is lost.

An audit hook counts the operations that change files below a folder. At a given one, it raises `Killed`, and again at
all later ones, so that the files stay as they would if the process had been killed there.
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from helpers import (
    SMALL_VIT_CONFIG,
    assert_equal_weights,
    checkpoint_contents,
    exits_with,
    load_weights,
    read_metrics,
    run_test,
    signals_in_step,
    training_flags,
)

import compare
import convert
import textures
import train
from model import build_model
from vit_cifar10.evaluation import faithfulness_report, full_test
from vit_cifar10.runs import checkpoint

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
TINY = (
    "--embed_dim 16 --n_layers 1 --n_attention_heads 2 --patch_size 8 --epochs 3 --batch_size 100 --optimizer muon"
    " --num_train_images 200 --val_images 100 --num_test_images 20 --ema 0.5 --muon_learning_rate 0.05"
)


class Killed(BaseException):
    """The process would have been killed here."""


def kill(event, path):
    raise Killed


def fill_disk(event, path):
    if event not in ("os.remove", "os.rmdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


class Faults:
    """Counts the changes of files below a folder and, from a given number on, fails instead."""

    def __init__(self):
        self.folder = None

    @contextlib.contextmanager
    def inject(self, folder, fail=None, first=sys.maxsize):
        """Call `fail(event, path)` instead of each change below `folder`, from number `first` on."""
        self.folder, self.fail, self.first, self.changes = str(folder), fail, first, []
        try:
            yield
        finally:
            self.folder = None

    def hook(self, event, arguments):
        if self.folder and self.is_change(event, arguments):
            path = os.fspath(arguments[0])
            self.changes.append((event, re.sub(r"^\.(\w+)\..*\.", r"\1.", os.path.basename(path))))
            if len(self.changes) >= self.first:
                self.fail(event, path)

    def is_change(self, event, arguments):
        path = arguments[0] if arguments else None
        if not (isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)):
            return False
        if event == "open":
            return bool(isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if event == "os.mkdir":
            return not os.path.exists(path)
        if event == "os.remove":
            return os.path.exists(path)
        return event in CHANGES


FAULTS = Faults()


@pytest.fixture(scope="module", autouse=True)
def _hook():
    sys.addaudithook(FAULTS.hook)  # it cannot be removed, but does nothing outside `FAULTS.inject`


def train_new(folder, name, extra=""):
    train.main(training_flags(folder, f"--run_name {name} --save_minutes 1e-6 {TINY} {extra}"))


def train_until_sigterm(folder):
    """Resume a run and stop it by SIGTERM after its next step, if there is one."""
    step = checkpoint.load(folder / "model" / "run", "last.pt")["training"]["step"]
    with contextlib.suppress(SystemExit), signals_in_step(step, signal.SIGTERM):
        resume(folder)


def resume(folder):
    train.main(["--resume", str(folder / "model" / "run")])


def check_equal(folder, whole):
    """Check that the run "run" in `folder` ended as the run "run" in the folder `whole` did, which had no faults."""
    for name in ("best.pt", "last.pt"):
        assert_equal_weights(load_weights(whole, "run", name), load_weights(folder, "run", name))
    losses = [
        [[row[key] for key in ("epoch", "train_loss", "val_loss", "test_loss")] for row in read_metrics(place, "run")]
        for place in (whole, folder)
    ]
    assert losses[0] == losses[1]
    assert not [file for file in folder.rglob(".*") if file.is_file()]  # no half-written file is left


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run without faults."""
    folder = tmp_path_factory.mktemp("whole")
    train_new(folder, "run")
    return folder


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """The changes of files in a whole run, in order, as (event, file name)."""
    folder = tmp_path_factory.mktemp("changes")
    with FAULTS.inject(folder):
        train_new(folder, "run")
    return FAULTS.changes


def second_save(changes):
    """The numbers of the changes at the end of the second epoch: metrics.csv, best.pt, last.pt and history.pt."""
    names = [name for _, name in changes]
    first = names.index("metrics.csv")
    return range(first + 1, names.index("history.pt", first) + 3)


def finish(folder):
    """Resume a run, or train it again if it has saved nothing."""
    if (folder / "model" / "run" / "last.pt").exists():
        resume(folder)
    else:
        train_new(folder, "run", "--overwrite")


def check_crashes(numbers, folder, whole):
    """Kill a run at each of these changes, resume it, stop it by SIGTERM, and resume it to its end."""
    for number in numbers:
        place = folder / str(number)
        with pytest.raises(Killed), FAULTS.inject(place, kill, number):
            train_new(place, "run")
        if (place / "model" / "run" / "last.pt").exists():
            train_until_sigterm(place)
        finish(place)
        check_equal(place, whole)


def check_full_disks(numbers, folder, whole, capsys):
    """Fill the disk before each of these changes, and finish the run when there is space again."""
    capsys.readouterr()
    for number in numbers:
        place = folder / str(number)
        with contextlib.suppress(SystemExit), FAULTS.inject(place, fill_disk, number):
            train_new(place, "run")
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line or "warning" in line]
        assert len(errors) == 1, errors
        assert "No space left" in errors[0]
        finish(place)
        check_equal(place, whole)


def test_a_run_that_is_killed_at_any_change_of_a_save_ends_with_equal_weights(changes, tmp_path, whole):
    check_crashes(second_save(changes), tmp_path, whole)


def test_a_run_whose_disk_is_full_at_any_change_of_a_save_can_be_resumed(changes, tmp_path, whole, capsys):
    check_full_disks(second_save(changes), tmp_path, whole, capsys)


def test_a_run_that_is_replaced_is_kept_until_the_new_one_can_be_resumed(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "count")
    flags = "--overwrite --seed 7 --save_minutes 1000 --save_every 3"
    with FAULTS.inject(tmp_path / "count"):
        train_new(tmp_path / "count", "run", flags)
    for number in range(1, [name for _, name in FAULTS.changes].index("previous.pt") + 2):
        place = tmp_path / str(number)
        shutil.copytree(whole, place)
        with pytest.raises(Killed), FAULTS.inject(place, kill, number):
            train_new(place, "run", flags)
        last = checkpoint.load(place / "model" / "run", "last.pt")
        if last["recipe"]["seed"] == 0:
            assert_equal_weights(load_weights(whole, "run"), load_weights(place, "run"))
        else:
            resume(place)
            assert checkpoint.load(place / "model" / "run")["recipe"]["seed"] == 7


@pytest.mark.soak
def test_soak_of_kills_at_every_change(changes, tmp_path, whole):
    check_crashes(range(1, len(changes) + 1), tmp_path, whole)


@pytest.mark.soak
def test_soak_of_full_disks_at_every_change(changes, tmp_path, whole, capsys):
    check_full_disks(range(1, len(changes) + 1), tmp_path, whole, capsys)


def test_a_run_that_two_signals_stopped_after_a_new_best_epoch_can_be_stopped_again(tmp_path, whole):
    with exits_with(130), signals_in_step(5, signal.SIGINT, signal.SIGINT):  # in epoch 3; epoch 2 is the best
        train_new(tmp_path, "run", "--save_minutes 1000 --save_every 1")
    (tmp_path / "model" / "run" / "previous.pt").replace(tmp_path / "model" / "run" / "last.pt")
    train_until_sigterm(tmp_path)
    resume(tmp_path)
    check_equal(tmp_path, whole)


@pytest.fixture
def networks(tmp_path):
    """What to convert to each target: a run to a folder of timm and to a file, and that folder to a run."""
    weights = build_model(SMALL_VIT_CONFIG).state_dict()
    checkpoint.save(tmp_path / "vit" / "best.pt", checkpoint_contents(model_config=SMALL_VIT_CONFIG, weights=weights))
    convert.main([str(tmp_path / "vit"), str(tmp_path / "timm")])
    vit = str(tmp_path / "vit")
    return {"net": vit, "net.safetensors": vit, "run": f"timm:{tmp_path / 'timm'}"}


def contents(folder):
    """The files and folders below a folder and their sizes, without temporary ones that a killed process has left."""
    kept = [path for path in folder.rglob("*") if not any(".partial" in part for part in path.parts)]
    return {path.relative_to(folder): path.is_file() and path.stat().st_size for path in kept}


def convert_with(fault, networks, target, folder):
    """Convert a network to folder/new/TARGET, with `fault` at each change of a file. Yield what is left of each."""
    with FAULTS.inject(folder):
        convert.main([networks[target], str(folder / "new" / target)])
    whole, count = contents(folder), len(FAULTS.changes)
    for number in range(1, count + 1):
        place = folder.with_name(f"{folder.name} {number}")
        place.mkdir()
        with FAULTS.inject(place, fault(), number):
            try:
                convert.main([networks[target], str(place / "new" / target)])
            except (SystemExit, Killed) as end:
                yield end, set(place.rglob("*")), contents(place), whole
        if contents(place) != whole:
            convert.main([networks[target], str(place / "new" / target)])
            assert len(list(place.rglob("*"))) == len(whole)  # what was left behind is removed
        assert contents(place) == whole
    assert count >= 3


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("target", ["net", "net.safetensors", "run"])
def test_a_conversion_that_is_stopped_leaves_nothing_or_the_whole(target, number, networks, tmp_path):
    def stop_once():
        signals = [number]
        return lambda event, path: signals and signal.raise_signal(signals.pop())

    (tmp_path / "stopped").mkdir()
    for end, left, found, whole in convert_with(stop_once, networks, target, tmp_path / "stopped"):
        assert end.code == 128 + number
        assert found in ({}, whole)
        assert len(left) == len(found)


@pytest.mark.parametrize("target", ["net", "net.safetensors", "run"])
def test_a_conversion_that_is_killed_leaves_nothing_or_the_whole_in_its_place(target, networks, tmp_path):
    (tmp_path / "killed").mkdir()
    for _, _, found, whole in convert_with(lambda: kill, networks, target, tmp_path / "killed"):
        assert found in ({}, {Path("new"): False}, whole)


def test_a_folder_of_textures_is_made_completely_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "SPLITS", {"train": (6, 0, 330), "test": (3, 340, 512)})
    with FAULTS.inject(tmp_path):
        textures.main([str(tmp_path / "whole")])
    whole, count = contents(tmp_path / "whole"), len(FAULTS.changes)
    for number in range(1, count + 1):
        place = tmp_path / str(number)
        with contextlib.suppress(SystemExit, Killed), FAULTS.inject(place, (kill, fill_disk)[number % 2], number):
            textures.main([str(place / "new")])
        assert contents(place) in (
            {},
            {Path("new"): False} | {Path("new") / path: size for path, size in whole.items()},
        )
        if not (place / "new").exists():
            textures.main([str(place / "new")])
        assert contents(place / "new") == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("mode", ["cifar", "faithfulness"])
def test_a_test_that_is_stopped_before_its_first_result_leaves_no_folder(mode, number, whole, tmp_path, monkeypatch):
    def stop(*_, **__):
        signal.raise_signal(number)

    monkeypatch.setattr(full_test, "run_full_test", stop)
    monkeypatch.setattr(faithfulness_report, "measure_faithfulness", stop)
    with exits_with(128 + number):
        run_test(whole, f"--model_path model/run --mode {mode} --output_path {tmp_path}/output", monkeypatch)
    assert not list(tmp_path.iterdir())


def test_a_comparison_that_is_stopped_before_its_first_result_leaves_no_folder(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "test_all", lambda *_: signal.raise_signal(signal.SIGTERM))
    with exits_with(143):
        compare.main(
            [f"{whole}/model/run", "--compare_path", f"{tmp_path}/new/comparison", "--data_path", f"{whole}/data"]
        )
    assert not list(tmp_path.iterdir())
