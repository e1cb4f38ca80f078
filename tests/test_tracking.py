"""TensorBoard's event files read back, and W&B run offline and its files read."""

import importlib.util
import json
import re
import struct
import time
from unittest import mock

import pytest
from helpers import SMALL_VIT, read_metrics, run_training
from PIL import Image

from vit_cifar10.evaluation import full_test
from vit_cifar10.runs import checkpoint

FLAGS = f"--run_name run --epochs 2 {SMALL_VIT} --num_train_images 200 --num_test_images 50"
PICTURES = ("curves", "confusion_matrix", "reliability", "mistakes")
SCALARS = {"loss/train": "train_loss", "accuracy/val": "val_accuracy", "accuracy/test": "test_accuracy"}
SCALARS |= {"learning_rate": "learning_rate", "images_per_second": "images_per_second"}


def test_tensorboard_gets_what_metrics_csv_gets(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training(tmp_path, f"{FLAGS} --log tensorboard")
    events = EventAccumulator(str(tmp_path / "output" / "run" / "tensorboard"))
    events.Reload()
    rows = read_metrics(tmp_path, "run")
    for tag, column in SCALARS.items():
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    for picture in PICTURES:
        with Image.open(tmp_path / "output" / "run" / f"{picture}.png") as drawn:
            assert (events.Images(picture)[0].width, events.Images(picture)[0].height) == drawn.size
    results = json.loads((tmp_path / "output" / "run" / "test_results.json").read_text())
    assert results["accuracy"] == pytest.approx(checkpoint.load(tmp_path / "model" / "run")["metrics"]["test_accuracy"])
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| embed_dim | 32 |" in text


def read_log(data):
    """The records of a W&B file: after a header of 7 bytes, LevelDB's log format, in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if left < 7 or kind == 0:
            place += left
            continue
        if place + 7 + length > len(data):  # still being written
            return
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the record is whole, or this was its last part
            yield whole
            whole = b""


def wandb_records(path):
    """The records of a W&B file; its own process writes the file, and may do so a little after the run has ended."""
    from wandb.proto import wandb_internal_pb2

    end = time.monotonic() + 60
    while True:
        records = [wandb_internal_pb2.Record.FromString(data) for data in read_log(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records) or time.monotonic() > end:
            return records
        time.sleep(0.1)


def test_wandb_gets_what_metrics_csv_gets_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_training(tmp_path, f"{FLAGS} --log wandb")
    (file,) = (tmp_path / "output" / "run" / "wandb").glob("offline-run-*/*.wandb")
    history, config = [], {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            history.append(items)
        if record.WhichOneof("record_type") == "run":
            config |= {item.key: item.value_json for item in record.run.config.update}
    rows = read_metrics(tmp_path, "run")
    for tag, column in SCALARS.items():
        sent = [float(items[tag]) for items in history if tag in items]
        assert sent == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    for picture in PICTURES:
        assert any(f"{picture}/path" in items for items in history), history
    assert '"embed_dim":32' in re.sub(r"\s", "", config["flags"])


def test_a_complete_run_survives_that_its_pictures_cannot_be_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(full_test, "run_full_test", mock.Mock(side_effect=RuntimeError("CUDA out of memory")))
    run_training(tmp_path, f"{FLAGS} --log tensorboard")
    printed = capsys.readouterr()
    assert "warning: the final pictures were not sent: out of memory" in printed.err
    assert "kept epoch" in printed.out
    assert checkpoint.load(tmp_path / "model" / "run", "last.pt")["epoch"] == 2


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_said_before_anything_is_made(package, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(SystemExit) as stopped:
        run_training(tmp_path, f"{FLAGS} --log {package}")
    assert stopped.value.code == 2
    assert f"pip install {package}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
