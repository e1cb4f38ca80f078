"""Tests of checkpoints: they are written completely or not at all, and damaged or malicious ones are refused."""

import os
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from helpers import PYTHON_ENVIRONMENT, SMALL_CNN, checkpoint_contents

from model import SimpleCNN, build_model
from vit_cifar10.runs import checkpoint
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write


class Attack:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch attacked",))


def test_weights_survive_saving_and_loading(tmp_path):
    model = build_model(SMALL_CNN)
    checkpoint.save(tmp_path / "best.pt", checkpoint_contents(weights=checkpoint.cpu_weights(model)))
    restored = checkpoint.load_network(tmp_path, "cpu").model
    assert not restored.training
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(restored(images), model.eval()(images))
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def write_attack(path):
    torch.save({**checkpoint_contents(), "format": 1, "extra": Attack()}, path)


class MemoryHog:
    """Runs nothing when it is unpickled, but allocates 2 GB."""

    def __reduce__(self):
        return (bytearray, (2_000_000_000,))


def write_memory_hog(path):
    torch.save({**checkpoint_contents(), "format": 1, "extra": MemoryHog()}, path)


def write_duplicate_entry(path):
    """Write two entries with the same name. One reader may use the first, another one the second."""
    checkpoint.save(path, checkpoint_contents())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name, archive.read(name))


def write_truncated(path):
    checkpoint.save(path, checkpoint_contents())
    path.write_bytes(path.read_bytes()[:5000])


def write_compressed(path):
    """Write a valid checkpoint with compressed entries, which could unpack to any size."""
    checkpoint.save(path, checkpoint_contents())
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def saves(**changes):
    """A function that writes a checkpoint which is valid except for `changes`."""
    return lambda path: checkpoint.save(path, checkpoint_contents(**changes))


def saves_config(**changes):
    """A function that writes a checkpoint with `changes` to the description of its network."""
    return saves(model_config={**SMALL_CNN, **changes})


def saves_bias(value):
    """A function that writes a checkpoint with `value` as one of its weights."""
    weights = SimpleCNN(num_classes=3).state_dict()
    return saves(weights={**weights, "classifier.4.bias": value})


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_attack, "refused: it contains posix system"),
        (write_memory_hog, "refused: it contains (builtins|__builtin__) bytearray"),
        (write_duplicate_entry, "packed"),
        (write_truncated, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("hello"), "cannot be read"),
        (write_compressed, "packed"),
        (saves_config(model="vit", embed_dim=99_999, num_heads=1), "do not fit"),
        (saves_config(model="vit", embed_dim=10_000_000, num_heads=1), "model_config"),
        (saves_config(model="vit", depth=99_999), "model_config"),
        (saves_config(width=99_999), "do not fit"),
        (saves_config(img_size=[1, 2]), "model_config"),
        (saves_bias(torch.zeros(1).expand(10**9)), "weights"),
        (saves_bias(torch.full((3,), torch.nan)), "weights"),
        (saves_bias("no tensor"), "weights"),
        (saves(std=[0.2, 0.2]), "normalization"),
        (saves(classes=["a", 2, "c"]), "names"),
        (saves(classes=["a", "\x1b[2J", "c"]), "names"),
        (saves(dataset="../../x"), "data set"),
        (saves(classes=["a"]), "number of classes"),
        (saves(metrics={"test_accuracy": "99 %"}), "metrics"),
        (lambda path: torch.save(SimpleCNN().state_dict(), path), "not a checkpoint of this project"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of this project"),
        (lambda path: torch.save({**checkpoint_contents(), "format": 9}, path), "format 9"),
        (saves_config(width=4), "do not fit"),
        (saves(model_config={"model": "resnet"}), "resnet"),
        (saves(model_config=None), "model_config is not a dict"),
        (saves_config(img_size="big"), "do not fit"),
    ],
)
def test_invalid_checkpoints_are_refused_with_a_reason(write, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "best.pt")
    with pytest.raises(UserError, match=reason):
        checkpoint.load_network(tmp_path, "cpu")
    assert not (tmp_path / "attacked").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "best.pt"
    path.write_text("before")

    def fail_halfway():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        fail_halfway()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_reported_in_one_line(tmp_path):
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from helpers import checkpoint, checkpoint_contents;"
        "checkpoint.save(sys.argv[1], checkpoint_contents())"
    )
    path = tmp_path / "best.pt"
    process = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False, env=PYTHON_ENVIRONMENT
    )
    assert process.stderr.splitlines()[-1].startswith("vit_cifar10.utils.errors.UserError: cannot write")
    assert list(tmp_path.iterdir()) == []


def test_200_damaged_checkpoints_are_refused_or_harmless(tmp_path):
    checkpoint.save(tmp_path / "whole.pt", checkpoint_contents())
    whole = (tmp_path / "whole.pt").read_bytes()
    random = np.random.RandomState(0)
    path, refusals = tmp_path / "best.pt", []
    for number in range(200):
        data = bytearray(whole)
        if number % 4 == 0:  # cut short
            data = data[: random.randint(len(data))]
        elif number % 4 == 1:  # 200 random bytes anywhere
            start = random.randint(len(data))
            data[start : start + 200] = random.bytes(min(200, len(data) - start))
        else:  # flipped bits in the pickled values at the front or in the archive's index at the end
            first = 0 if number % 4 == 2 else len(data) - 4000
            for _ in range(3):
                data[first + random.randint(4000)] ^= 1 << random.randint(8)
        path.write_bytes(data)
        try:
            checkpoint.load_network(path, "cpu")
        except UserError as error:
            refusals.append(str(error))
    assert all(str(path) in refusal for refusal in refusals)
    assert len(refusals) > 150  # in the other files, only padding is damaged
