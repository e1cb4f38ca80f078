"""Tests of checkpoints and records from strangers: whatever they contain, the answer is a result or one line.

Valid files are changed at random places, which `CHECKPOINT` enumerates: types, ranges, shapes, strides, storages,
missing and additional entries.
"""

import collections
import contextlib
import copy
import inspect
import io
import json
import math
import random
import re
import shutil
import signal
import time
import zipfile

import pytest
import torch
from helpers import edit_pickle, exits_with, memory_within, read_files, signals_in_step, training_flags
from PIL import Image

import compare
import test as test_command
import train
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.schema import CHECKPOINT

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
    if isinstance(kind, tuple):
        kind = kind[0]
    if inspect.isfunction(kind) and isinstance(value, dict):
        kind = kind(value)
    yield parents
    if isinstance(kind, dict) and isinstance(value, dict):
        fields = {field.removesuffix("?"): item for field, item in kind.items() if isinstance(field, str)}
        others = next((item for field, item in kind.items() if not isinstance(field, str)), None)
        for key in value:
            yield from places(fields.get(key, others), value[key], (*parents, key))
    if isinstance(kind, list) and isinstance(value, list):
        for place, item in enumerate(value):
            yield from places(kind[0], item, (*parents, place))


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


def run_with(contents, name, file, stopped, folder, edit=None):
    """Run the command that reads a checkpoint with these contents, after `edit(path)`. Return its exit status."""
    for part in ("model", "output"):
        shutil.copytree(stopped / part / name, folder / part / "run")
    path = folder / "model" / "run" / f"{file}.pt"
    torch.save(contents, path)
    if edit:
        edit(path)
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


# Files that no change of a valid one makes


def load(stopped, name, file):
    return torch.load(stopped / "model" / name / f"{file}.pt", weights_only=True)


def forge(value):
    """The same values in tensors that have a gradient, a negative bit, and hooks."""
    if isinstance(value, dict):
        return {key: forge(item) for key, item in value.items()}
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    forged = torch._neg_view(-value)
    assert forged.is_neg()
    forged.requires_grad_(True)
    return forged


@pytest.mark.parametrize("name", RUNS)
def test_forged_properties_of_tensors_end_where_they_are_read(name, stopped, tmp_path):
    """With them, the commands give what they give without them."""
    trained = []
    for number, change in enumerate((lambda value: value, forge)):
        folder = tmp_path / str(number)
        assert run_with(change(load(stopped, name, "last")), name, "last", stopped, folder) == 0
        trained.append(load_file(folder / "model" / "run" / "last.pt")["weights"])
        assert run_with(change(load(stopped, name, "best")), name, "best", stopped, folder / "test") == 0
    for key, value in trained[0].items():
        assert torch.equal(value, trained[1][key]), key


def load_file(path):
    return torch.load(path, weights_only=True)


@pytest.mark.usefixtures("no_pictures")
def test_forged_properties_of_measured_tensors_end_where_they_are_read(stopped, tmp_path, capsys):
    """A faithfulness test that continues, and a comparison that uses the logits of an earlier test."""
    for part in ("model", "output"):
        shutil.copytree(stopped / part / "cnn", tmp_path / part / "run")
    folders = [f"--output_path={tmp_path / 'output'}", f"--data_path={stopped / 'data'}", "--device=cpu"]
    run, output = str(tmp_path / "model" / "run"), tmp_path / "output" / "run"
    measure = ["--model_path", run, *folders, "--mode", "faithfulness", "--num_images", "10"]
    test_command.main(measure)
    test_command.main(["--model_path", run, *folders, "--mode", "cifar"])
    files = {}
    for name in ("faithfulness.pt", "test_logits.pt"):
        torch.save(forge(load_file(output / name)), output / name)
        files[name] = (output / name).read_bytes()
    tables = (output / "faithfulness.csv").read_text()
    capsys.readouterr()
    test_command.main(measure)
    assert "10 of the images have been measured before" in capsys.readouterr().out
    assert (output / "faithfulness.csv").read_text() == tables
    compare.main([run, *folders, f"--compare_path={tmp_path / 'compared'}"])
    assert {name: (output / name).read_bytes() for name in files} == files  # nothing was measured again


def shared(count):
    """An optimizer's state that expands: one dict of `count` empty tensors, referred to `count` times."""
    inner = {f"x{number}": torch.zeros(0) for number in range(count)}
    return dict.fromkeys(range(count), inner)


@pytest.mark.parametrize("count", [1_000, 10_000])
def test_an_optimizer_state_that_expands_is_refused_before_it_is_expanded(count, stopped, tmp_path, capsys):
    contents = load(stopped, "cnn", "last")
    contents["training"]["optimizer"]["state"] = shared(count)
    start = time.process_time()
    with memory_within(MEMORY_BOUND):
        assert run_with(contents, "cnn", "last", stopped, tmp_path) == 2
    assert time.process_time() - start < 15
    assert "last.pt is refused: its tensors are stored in a way" in capsys.readouterr().err


def inserts(key, value=b"N"):
    """A function that adds an entry to the dict in a checkpoint, as operations of the pickle format."""
    return lambda path: edit_pickle(path, b"}q\x00(", b"}q\x00(" + key + value)


def memo(operation, number):
    return operation + (10**6 + number).to_bytes(4, "little")


WIDE = b")" + b"".join(memo(b"r", number) + memo(b"j", number) + b"\x86" for number in range(60))
LONG_LIST = b"]" + memo(b"r", 0) + b"(" + (b"X\1\0\0\0aN\x86" * 200_000) + b"e"
ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
TENSOR = REBUILD + b"(" + STORAGE + b"K\0))\x89N" + b"tR"
RESIZE = b"(" + STORAGE + b"K\0" + b"J\0\0\0\x40\x85K\1\x85tb"  # to 2^30 numbers, 4 GB


def write_legacy_file(path):
    """A file of PyTorch's older format with a bytearray of 3 GB, which is also an archive that holds a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    legacy = io.BytesIO()
    torch.save({}, legacy, _use_new_zipfile_serialization=False)
    data = legacy.getvalue()
    place = data.rindex(b"\x80\x02}")
    hog = b"c__builtin__\nbytearray\n" + b"\x8a\4" + (3 * 10**9).to_bytes(4, "little") + b"\x85R."
    path.write_bytes(data[:place] + b"\x80\x02" + hog)
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


PICKLES = {
    "a key nested a million deep": inserts(b"N" + b"\x85" * 1_000_000),
    "a key of 2^60 shared tuples": inserts(WIDE),
    "a key of many tuples in a list": inserts(b"X\1\0\0\0y", LONG_LIST + (ORDERED + memo(b"j", 0) + b"\x85R" * 1) * 50),
    "a legacy file with a bytearray of 3 GB": write_legacy_file,
    "a tensor that is resized": inserts(b"X\1\0\0\0y", TENSOR + RESIZE),
    "values nested 200,000 deep": inserts(b"X\1\0\0\0y", b"]" * 200_000 + b"a" * 199_999),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_crashes_or_exhausts_its_reader_is_refused(kind, stopped, tmp_path, capsys):
    edit, file = PICKLES[kind], "last" if "tuples" in kind else "best"
    start = time.process_time()
    with memory_within(MEMORY_BOUND):
        assert run_with(load(stopped, "cnn", file), "cnn", file, stopped, tmp_path, edit) == 2
    assert time.process_time() - start < 10
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert f"{file}.pt is refused" in error


def test_a_state_dict_whose_methods_are_replaced_is_read(stopped, tmp_path):
    contents = load(stopped, "cnn", "best")
    weights = collections.OrderedDict(contents["weights"])
    weights.itemz = 1
    edit = lambda path: edit_pickle(path, b"itemz", b"items")  # noqa: E731
    assert run_with({**contents, "weights": weights}, "cnn", "best", stopped, tmp_path, edit) == 0


def wide_table(columns, rows):
    """A table with short lines, which stand for as many empty cells as it has columns."""
    lines = [",".join(["epoch", *(f"c{number}" for number in range(1, columns))]), *map(str, range(1, rows + 1))]
    return "\n".join(lines) + "\n"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "text",
    [
        wide_table(columns=100_000, rows=300),
        wide_table(columns=1_000_000, rows=20),
        "epoch\n" + "\n" * 14_000_000,
        "epoch,a\n" + "1," + "1," * 5_000_000 + "\n",
    ],
    ids=["100,000 columns", "1,000,000 columns", "empty lines", "a long line"],
)
def test_a_table_of_metrics_that_is_too_large_is_refused_in_a_second(text, stopped, tmp_path, capsys):
    for part in ("model", "output"):
        shutil.copytree(stopped / part / "cnn", tmp_path / part / "run")
    folders = [f"--output_path={tmp_path / 'output'}", f"--data_path={stopped / 'data'}", "--device=cpu"]
    command = [str(tmp_path / "model" / "run"), *folders, f"--compare_path={tmp_path / 'compared'}"]
    compare.main(command)  # tests the run
    (tmp_path / "output" / "run" / "metrics.csv").write_text(text)
    capsys.readouterr()
    start = time.process_time()
    compare.main(command)
    seconds = time.process_time() - start
    assert "so there are no curves" in capsys.readouterr().err
    assert seconds < 3  # with the tables


# Folders


@pytest.fixture
def foreign_record(stopped, tmp_path, monkeypatch):
    """A stranger's run in model/run that asks for the folder documents/run, which holds a table of the user's."""
    shutil.copytree(stopped / "model" / "cnn", tmp_path / "model" / "run")
    path = tmp_path / "model" / "run" / "last.pt"
    contents = load_file(path)
    contents["recipe"] |= {"model_path": "model", "output_path": "documents", "data_path": str(stopped / "data")}
    torch.save(contents, path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents" / "run").mkdir(parents=True)
    (tmp_path / "documents" / "run" / "metrics.csv").write_text("mine")
    return tmp_path


CONFIGS = [None, "{}", '{"flags": {}}', '{"flags": {"epochs": 3, "seed": 0}, "train_images": 40}']


@pytest.mark.parametrize("config", CONFIGS)
def test_a_resume_does_not_take_over_a_folder_that_is_not_its_own(config, foreign_record):
    documents = foreign_record / "documents" / "run"
    if config:
        (documents / "config.json").write_text(config)
    files = read_files(documents)
    train.main(["--resume", "model/run"])
    assert read_files(documents) == files
    assert (foreign_record / "output" / "run" / "config.json").exists()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_resume_does_not_overwrite_what_another_program_wrote_under_its_name(config, foreign_record, capsys):
    (foreign_record / "documents").rename(foreign_record / "output")
    if config:
        (foreign_record / "output" / "run" / "config.json").write_text(config)
    files = read_files(foreign_record)
    with exits_with(2):
        train.main(["--resume", "model/run"])
    assert "choose another --output_path" in capsys.readouterr().err
    assert read_files(foreign_record) == files


def test_a_run_whose_config_is_damaged_is_recognized_by_its_history(stopped, tmp_path):
    for part in ("model", "output"):
        shutil.copytree(stopped / part / "cnn", tmp_path / part / "run")
    config = tmp_path / "output" / "run" / "config.json"
    before = json.loads(config.read_text())
    config.write_text("{")
    train.main(["--resume", str(tmp_path / "model" / "run"), "--output_path", str(tmp_path / "output")])
    assert json.loads(config.read_text())["flags"]["seed"] == before["flags"]["seed"]


# What was loaded is what is recorded


@pytest.mark.usefixtures("no_pictures")
def test_results_are_recorded_for_the_weights_that_were_tested(stopped, tmp_path, monkeypatch):
    """A training may replace best.pt after a test has loaded it."""
    for part in ("model", "output"):
        shutil.copytree(stopped / part / "cnn", tmp_path / part / "run")
    path, other = tmp_path / "model" / "run" / "best.pt", tmp_path / "other.pt"
    sha256 = checkpoint.hash_file(path)
    contents = load_file(path)
    contents["weights"] = {
        name: value.roll(1, 0) if value.ndim else value for name, value in contents["weights"].items()
    }
    load_test = checkpoint.dataset.load_test

    def replace_and_load(*arguments, **options):
        torch.save(contents, other)
        other.replace(path)
        return load_test(*arguments, **options)

    monkeypatch.setattr(checkpoint.dataset, "load_test", replace_and_load)
    folders = [f"--output_path={tmp_path / 'output'}", f"--data_path={stopped / 'data'}", "--device=cpu"]
    run, output = str(path.parent), tmp_path / "output" / "run"
    for mode in (["cifar"], ["faithfulness", "--num_images", "10"]):
        shutil.copy(stopped / "model" / "cnn" / "best.pt", path)
        test_command.main(["--model_path", run, *folders, "--mode", *mode])
    assert json.loads((output / "test_results.json").read_text())["checkpoint_sha256"] == sha256
    for name in ("test_logits.pt", "faithfulness.pt"):
        assert load_file(output / name)["checkpoint_sha256"] == sha256
