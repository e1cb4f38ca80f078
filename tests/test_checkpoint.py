import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONFIG, contents

from model import SimpleCNN, build_model
from vit_cifar10.runs import checkpoint
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import replacing


class Attack:
    def __reduce__(self):
        return (os.system, ("touch attacked",))


def test_weights_come_back(tmp_path):
    model = build_model(CONFIG)
    checkpoint.save(tmp_path / "best.pt", contents(weights=checkpoint.cpu_weights(model)))
    restored = checkpoint.load_network(tmp_path, "cpu").model
    assert not restored.training
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(restored(images), model.eval()(images))
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def write_attack(path):
    torch.save({**contents(), "format": 1, "extra": Attack()}, path)


class Memory:
    """Nothing runs, but two thousand million bytes would be asked for."""

    def __reduce__(self):
        return (bytearray, (2_000_000_000,))


def write_greed(path):
    torch.save({**contents(), "format": 1, "extra": Memory()}, path)


def write_twice(path):
    """Two entries of one name, of which one reader may take the first and another the second."""
    checkpoint.save(path, contents())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name, archive.read(name))


def write_truncated(path):
    checkpoint.save(path, contents())
    path.write_bytes(path.read_bytes()[:5000])


def write_packed(path):
    """The same archive with its entries compressed, which could unpack to anything."""
    checkpoint.save(path, contents())
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def write_claim(path, **config):
    """A checkpoint that claims a network which its weights are not those of."""
    checkpoint.save(path, contents(model_config={**CONFIG, **config}))


def with_weight(value):
    weights = SimpleCNN(num_classes=3).state_dict()
    return contents(weights={**weights, "classifier.4.bias": value})


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_attack, "refused: it contains posix system"),
        (write_greed, "refused: it contains (builtins|__builtin__) bytearray"),
        (write_twice, "packed"),
        (write_truncated, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("hello"), "cannot be read"),
        (write_packed, "packed"),
        (lambda path: write_claim(path, model="vit", embed_dim=99_999, num_heads=1), "do not fit"),
        (lambda path: write_claim(path, model="vit", embed_dim=10_000_000, num_heads=1), "model_config"),
        (lambda path: write_claim(path, model="vit", depth=99_999), "model_config"),
        (lambda path: write_claim(path, width=99_999), "do not fit"),
        (lambda path: write_claim(path, img_size=[1, 2]), "model_config"),
        (lambda path: checkpoint.save(path, with_weight(torch.zeros(1).expand(10**9))), "weights"),
        (lambda path: checkpoint.save(path, with_weight(torch.full((3,), torch.nan))), "weights"),
        (lambda path: checkpoint.save(path, with_weight("no tensor")), "weights"),
        (lambda path: checkpoint.save(path, contents(std=[0.2, 0.2])), "normalization"),
        (lambda path: checkpoint.save(path, contents(classes=["a", 2, "c"])), "names"),
        (lambda path: checkpoint.save(path, contents(classes=["a", "\x1b[2J", "c"])), "names"),
        (lambda path: checkpoint.save(path, contents(dataset="../../x")), "data set"),
        (lambda path: checkpoint.save(path, contents(classes=["a"])), "number of classes"),
        (lambda path: checkpoint.save(path, contents(metrics={"test_accuracy": "99 %"})), "metrics"),
        (lambda path: torch.save(SimpleCNN().state_dict(), path), "not a checkpoint of this project"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of this project"),
        (lambda path: torch.save({**contents(), "format": 9}, path), "format 9"),
        (lambda path: checkpoint.save(path, contents(model_config={**CONFIG, "width": 4})), "do not fit"),
        (lambda path: checkpoint.save(path, contents(model_config={"model": "resnet"})), "resnet"),
        (lambda path: checkpoint.save(path, contents(model_config=None)), "model_config is not a dict"),
        (lambda path: checkpoint.save(path, contents(model_config={**CONFIG, "img_size": "big"})), "do not fit"),
    ],
)
def test_other_files_are_refused_in_a_line(write, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "best.pt")
    with pytest.raises(UserError, match=reason):
        checkpoint.load_network(tmp_path, "cpu")
    assert not (tmp_path / "attacked").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "best.pt"
    path.write_text("before")

    def fill_the_disk():
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        fill_the_disk()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_in_a_line(tmp_path):
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from helpers import checkpoint, contents;"
        "checkpoint.save(sys.argv[1], contents())"
    )
    path = tmp_path / "best.pt"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parent.parent}"}
    ended = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.stderr.splitlines()[-1].startswith("vit_cifar10.utils.errors.UserError: cannot write")
    assert list(tmp_path.iterdir()) == []


def test_200_damaged_checkpoints_are_refused_or_harmless(tmp_path):
    checkpoint.save(tmp_path / "whole.pt", contents())
    whole = (tmp_path / "whole.pt").read_bytes()
    random = np.random.RandomState(0)
    path, refusals = tmp_path / "best.pt", []
    for number in range(200):
        data = bytearray(whole)
        if number % 4 == 0:  # cut short
            data = data[: random.randint(len(data))]
        elif number % 4 == 1:  # a stretch of noise anywhere
            start = random.randint(len(data))
            data[start : start + 200] = random.bytes(min(200, len(data) - start))
        else:  # flipped bits: in the values' description at the front, or in the index at the end
            first = 0 if number % 4 == 2 else len(data) - 4000
            for _ in range(3):
                data[first + random.randint(4000)] ^= 1 << random.randint(8)
        path.write_bytes(data)
        try:
            checkpoint.load_network(path, "cpu")
        except UserError as error:
            refusals.append(str(error))
    assert all(str(path) in refusal for refusal in refusals)
    assert len(refusals) > 150  # the others met padding
