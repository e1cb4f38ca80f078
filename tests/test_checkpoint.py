import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
from model import SimpleCNN, build_model
from runtime import UserError, replacing

CONFIG = {"model": "cnn", "num_classes": 3}


def contents(**changes):
    saved = {key: kind() for key, kind in checkpoint.KEYS.items() if key != "format"}
    weights = SimpleCNN(num_classes=3).state_dict()
    return {**saved, "mean": [0.5] * 3, "std": [0.2] * 3, "model_config": CONFIG, "weights": weights, **changes}


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


def write_truncated(path):
    checkpoint.save(path, contents())
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_attack, "refused"),
        (write_truncated, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("hello"), "refused"),
        (lambda path: torch.save(SimpleCNN().state_dict(), path), "not a checkpoint of this project"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of this project"),
        (lambda path: torch.save({**contents(), "format": 9}, path), "format 9"),
        (lambda path: checkpoint.save(path, contents(model_config={**CONFIG, "num_classes": 4})), "do not fit"),
        (lambda path: checkpoint.save(path, contents(model_config={"model": "resnet"})), "resnet"),
        (lambda path: checkpoint.save(path, contents(model_config=None)), "model_config is no dict"),
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
        "import checkpoint; from test_checkpoint import contents;"
        "checkpoint.save(sys.argv[1], contents())"
    )
    path = tmp_path / "best.pt"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parent.parent}"}
    ended = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.stderr.splitlines()[-1].startswith("runtime.UserError: cannot write")
    assert list(tmp_path.iterdir()) == []
