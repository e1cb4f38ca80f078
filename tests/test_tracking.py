"""Tracking: TensorBoard's event files and an offline W&B run are read back and compared with metrics.csv."""

import importlib.util
import json
import re
import struct
import time
from unittest import mock

import pytest
from helpers import SMALL_VIT, read_metrics, run_training
from PIL import Image

from vit_cifar10.runs import checkpoint
from vit_cifar10.training import recorder

FLAGS = f"--run_name run --epochs 2 {SMALL_VIT} --num_train_images 200 --num_test_images 50"
PICTURES = ("curves", "confusion_matrix", "reliability", "mistakes")
SCALARS = {"loss/train": "train_loss", "accuracy/val": "val_accuracy", "accuracy/test": "test_accuracy"}
SCALARS |= {"learning_rate": "learning_rate", "images_per_second": "images_per_second"}


def test_tensorboard_gets_the_metrics_the_pictures_and_the_flags(tmp_path, curves):
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
        with Image.open(tmp_path / "output" / "run" / f"{picture}.png") as image:
            assert (events.Images(picture)[0].width, events.Images(picture)[0].height) == image.size
    results = json.loads((tmp_path / "output" / "run" / "test_results.json").read_text())
    assert results["accuracy"] == pytest.approx(checkpoint.load(tmp_path / "model" / "run")["metrics"]["test_accuracy"])
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| embed_dim | 32 |" in text


def read_log(data):
    """Yield the records of a W&B file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    position, record = 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if left_in_block < 7 or kind == 0:
            position += left_in_block
            continue
        if position + 7 + length > len(data):  # still being written
            return
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield record
            record = b""


def wandb_records(path):
    """The records of a W&B file. W&B's own process may complete the file a little after the run has ended."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + 60
    while True:
        records = [wandb_internal_pb2.Record.FromString(data) for data in read_log(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def test_wandb_gets_the_metrics_the_pictures_and_the_flags_offline(tmp_path, monkeypatch, curves):
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


def test_a_run_is_complete_even_if_its_pictures_cannot_be_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recorder, "run_full_test", mock.Mock(side_effect=RuntimeError("CUDA out of memory")))
    run_training(tmp_path, f"{FLAGS} --log tensorboard")
    printed = capsys.readouterr()
    assert "warning: the final pictures were not sent: out of memory" in printed.err
    assert "kept epoch" in printed.out
    assert checkpoint.load(tmp_path / "model" / "run", "last.pt")["epoch"] == 2


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_reported_before_anything_is_written(package, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(SystemExit) as exited:
        run_training(tmp_path, f"{FLAGS} --log {package}")
    assert exited.value.code == 2
    assert f"pip install {package}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
