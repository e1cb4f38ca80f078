"""Tests of checkpoints and records from strangers: whatever they contain, the answer is a result or one line.

Valid files are changed at random places, which `CHECKPOINT` enumerates: types, ranges, shapes, strides, storages,
missing and additional entries.
"""

import contextlib
import copy
import math
import random
import re
import shutil
import signal
import time

import pytest
import torch
from helpers import exits_with, memory_within, signals_in_step, training_flags
from PIL import Image

import test as test_command
import train
from vit_cifar10.runs.schema import CHECKPOINT, Choice, DictOf, ListOf, OrNone, Record

MEMORY_BOUND = 400_000_000  # bytes above those of the file
RUNS = {
    "vit": "--embed_dim 16 --n_layers 2 --n_attention_heads 2 --patch_size 8 --optimizer muon --ema 0.5",
    "cnn": "--model cnn --width 2 --schedule plateau",
}
VALUES = (
    *(None, True, -1, 0, 1, 1.5, math.nan, math.inf, -math.inf, 1e308, 10**400, 2**63),
    *("", "x" * 10**6, "\x1b[2J", "../../x", "\udcff", b"bytes"),
    *([], {}, [[]] * 3, {"a": {}}, (1, 2), torch.zeros(()), torch.zeros(3)),
)
TENSORS = (
    *(torch.Tensor.half, torch.Tensor.double, torch.Tensor.long, torch.Tensor.bool, torch.Tensor.to_sparse),
    *(torch.neg, torch.zeros_like, lambda x: 1000 * x, lambda x: x.flip(0)),
    *(lambda x: torch.full_like(x, math.nan), lambda x: torch.full_like(x, 3e38), lambda x: torch.full_like(x, -1)),
    *(lambda x: torch.zeros(1).expand(x.shape), lambda x: torch.zeros(1).expand(10**9), lambda x: x[None]),
    *(
        lambda x: torch.zeros(2 * x.numel())[::2].view(x.shape),
        lambda x: x.flatten()[:0],
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    ),
    *(lambda x: torch.zeros(x.numel() + 9)[: x.numel()].view(x.shape), lambda x: x.to("meta")),
)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def places(kind, value, parents=()):
    """All places in a value: (keys that lead to it, kind)."""
    if isinstance(kind, OrNone):
        kind = kind.item
    if isinstance(kind, Choice) and isinstance(value, dict):
        kind = kind.choose(value)
    yield parents
    if isinstance(kind, Record) and isinstance(value, dict):
        for key, item in kind.fields.items():
            if key in value:
                yield from places(item, value[key], (*parents, key))
    if isinstance(kind, DictOf) and isinstance(value, dict):
        for key in value:
            yield from places(kind.item, value[key], (*parents, key))
    if isinstance(kind, ListOf) and isinstance(value, list):
        for place, item in enumerate(value):
            yield from places(kind.item, item, (*parents, place))


def change(value, draw):
    """A value that differs from the given one in its type, range, shape or contents; it may still be valid."""
    if isinstance(value, int | float) and draw.random() < 0.6:
        return draw.choice([value + 1, value - 1, 2 * value, -value, value / 3, 1e-9 * value, 1e9 * value])
    if isinstance(value, str) and draw.random() < 0.4:
        return draw.choice(["avg", "token", "vit", "cnn", "folder", "cifar10", "adamw", "plateau", "off", "fp16", "a"])
    if isinstance(value, torch.Tensor) and draw.random() < 0.9:
        with contextlib.suppress(RuntimeError, IndexError):  # not all changes fit all shapes
            return draw.choice(TENSORS)(value)
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        item = value.pop(key)
        if draw.random() < 0.6:  # else it is missing
            value[draw.choice(["surprise", "\x1b", "x" * 10**5, 7, 10**400])] = item
        return value
    if isinstance(value, list) and draw.random() < 0.5:
        return draw.choice([value[:-1], value * 1000, value[::-1], nested(100), [value], dict(enumerate(value))])
    return draw.choice(VALUES)


def mutate(contents, draw):
    """Change one to three places of a checkpoint, which are chosen evenly among the depths and entries."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        keys = draw.choice(list(places(CHECKPOINT, contents)))[: draw.randint(1, 6)]
        if not keys:
            continue
        *parents, last = keys
        place = contents
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change has removed it
            for key in parents:
                place = place[key]
            place[last] = other_tensor(contents, draw) if draw.random() < 0.05 else change(place[last], draw)


def other_tensor(contents, draw):
    """A tensor that the checkpoint contains at another place."""
    return draw.choice(list(contents["weights"].values()))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with the runs in `RUNS`, each stopped in its third epoch, one step before its end."""
    folder = tmp_path_factory.mktemp("stopped")
    small = "--epochs 3 --num_train_images 40 --val_images 50 --num_test_images 20 --batch_size 20 --device cpu"
    for name, flags in RUNS.items():
        with exits_with(143), signals_in_step(4, signal.SIGTERM):
            train.main(training_flags(folder, f"--run_name {name} {flags} {small}"))
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    return folder


def run_with(contents, name, file, stopped, folder):
    """Run the command that reads a checkpoint with these contents, and return its exit status."""
    for part in ("model", "output"):
        shutil.copytree(stopped / part / name, folder / part / "run")
    path = folder / "model" / "run" / f"{file}.pt"
    torch.save(contents, path)
    try:
        if file == "last":
            path.with_name("previous.pt").unlink()
            train.main(["--resume", str(path.parent), "--epochs", "3", "--output_path", str(folder / "output")])
        else:
            image = str(stopped / "red.png")
            flags = ["--mode", "custom", "--image_path", image, "--no_gif", "--no_image", "--device", "cpu"]
            test_command.main(["--model_path", str(path.parent), *flags])
    except SystemExit as stop:
        return stop.code
    return 0


def check_mutations(numbers, stopped, folder, capsys):
    """Change a valid checkpoint at random, once for each number, and check the answer. Returns how many are refused."""
    contents = {
        (name, file): torch.load(stopped / "model" / name / f"{file}.pt", weights_only=True)
        for name in RUNS
        for file in ("best", "last")
    }
    refused = 0
    for number in numbers:
        draw = random.Random(number)
        name, file = draw.choice(list(contents))
        changed = copy.deepcopy(contents[name, file])
        mutate(changed, draw)
        capsys.readouterr()
        start = time.monotonic()
        with memory_within(MEMORY_BOUND):
            status = run_with(changed, name, file, stopped, folder / str(number))
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if "error: " in line]
        assert time.monotonic() - start < 20, number
        assert (status, len(errors)) in ((0, 0), (2, 1)), (number, status, printed.err)
        assert not errors or len(errors[0]) < 1_000, number
        assert not re.search(r"\bnan\b", printed.out), (number, printed.out)
        assert "\x1b[2J" not in printed.out + printed.err, number
        refused += status == 2
        shutil.rmtree(folder / str(number))
    return refused


def test_200_changed_checkpoints_are_used_or_refused_in_one_line(stopped, tmp_path, capsys):
    assert 0 < check_mutations(range(200), stopped, tmp_path, capsys) < 200


@pytest.mark.soak
def test_soak_of_2000_changed_checkpoints(stopped, tmp_path, capsys):
    assert 0 < check_mutations(range(1_000, 3_000), stopped, tmp_path, capsys) < 2_000
