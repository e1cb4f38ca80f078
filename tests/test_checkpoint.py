"""Tests of checkpoints: they are written atomically, and damaged or malicious ones are refused."""

import argparse
import concurrent.futures
import os
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from helpers import PYTHON_ENVIRONMENT, SMALL_CNN, SMALL_VIT_CONFIG, checkpoint_contents, edit_pickle

import train
from model import SimpleCNN, build_model
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.schema import FLAGS, Invalid, check, is_text
from vit_cifar10.utils import limits
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import MACHINE, atomic_write, make_folder


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


def saves_config(without=(), **changes):
    """A function that writes a checkpoint with `changes` to the description of its network."""
    config = {**(SMALL_VIT_CONFIG if changes.get("model") == "vit" else SMALL_CNN), **changes}
    return saves(model_config={key: value for key, value in config.items() if key not in without})


def saves_bias(value):
    """A function that writes a checkpoint with `value` as one of its weights."""
    weights = SimpleCNN(num_classes=3).state_dict()
    return saves(weights={**weights, "classifier.4.bias": value})


def saves_views():
    """A function that writes a checkpoint whose weights are views of one storage."""
    weights = SimpleCNN(num_classes=3).state_dict()
    storage = torch.zeros(max(value.numel() for value in weights.values()))
    return saves(weights={name: storage[: value.numel()].view(value.shape) for name, value in weights.items()})


def saves_one_tensor_many_times(path):
    """Write one tensor under the names of many weights: 4 KB in the file, 4 MB in the network."""
    checkpoint.save(path, checkpoint_contents(weights=dict.fromkeys(map(str, range(1000)), torch.zeros(1000))))


def write_claimed_size(path):
    """Write a tensor that claims to be larger than its data, so that reading it would read beyond its end."""
    checkpoint.save(path, checkpoint_contents(weights={"x": torch.zeros(77)}))
    edit_pickle(path, b"K\x4d", b"J" + (10**6).to_bytes(4, "little"))


def write_endless_list(path):
    """Write a list that contains itself."""
    endless = []
    endless.append(endless)
    checkpoint.save(path, checkpoint_contents(classes=endless))


def write_many_values(path):
    checkpoint.save(path, checkpoint_contents())
    edit_pickle(path, b"}", b"}" + b"q\xff" * 5_000_000)  # each pair stores the dict under the same number


def write_second_directory(path):
    """Write two directories, each with its end record: Python reads the last one, PyTorch the one at the offset."""
    checkpoint.save(path, checkpoint_contents())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    directory, end64, locator, end = data[start:-98], data[-98:-42], data[-42:-22], data[-22:]
    second = end64[:48] + (len(data) - 42).to_bytes(8, "little")
    path.write_bytes(data[:start] + directory + end64 + directory + second + locator + end)
    with zipfile.ZipFile(path) as archive:
        assert archive.start_dir == len(data) - 42


def write_torchscript(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))


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
        (write_claimed_size, "cannot be read"),
        (write_endless_list, "nested more deeply than in any run"),
        (write_many_values, "more values than any run"),
        (write_second_directory, "packed"),
        (write_torchscript, "packed"),
        (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), "cannot be read"),
        (saves_views(), "stored in a way"),
        (saves_one_tensor_many_times, "stored in a way"),
        (saves_bias(torch.zeros(1).expand(10**9)), "stored in a way"),
        (saves_bias(torch.zeros(6)[::2]), "stored in a way"),
        (saves_bias(torch.zeros(10**6)[:3]), "stored in a way"),
        (saves_bias(torch.full((3,), torch.nan)), "classifier.4.bias is not a tensor of finite numbers"),
        (saves_bias("no tensor"), "classifier.4.bias is not a tensor"),
        (saves_config(model="vit", embed_dim=99_999, num_heads=1), "do not fit"),
        (saves_config(model="vit", embed_dim=10_000_000, num_heads=1), "model_config.embed_dim"),
        (saves_config(model="vit", depth=10**7), "model_config.depth is not a whole number from 1 to 1,000"),
        (saves_config(model="vit", depth=0), "model_config.depth is not a whole number from 1 to 1,000"),
        (saves_config(model="vit", mlp_ratio=0), "model_config.mlp_ratio is not a finite number above 0 to 100"),
        (saves_config(model="vit", mlp_ratio=0.001), "without hidden units"),
        (saves_config(model="vit", num_heads=2.0), "model_config.num_heads"),
        (saves_config(model="vit", class_token=2), "model_config.class_token is not True or False"),
        (saves_config(model="vit", class_token=False), "needs a class token"),
        (saves_config(width=99_999), "do not fit"),
        (saves_config(img_size=[1, 2]), "model_config.img_size"),
        (saves_config(img_size=0), "model_config.img_size"),
        (saves_config(in_chans=1), "model_config.in_chans"),
        (saves_config(surprise=1), "model_config.surprise is not an entry"),
        (saves_config(without=["img_size"]), "model_config.img_size is not in the file"),
        (saves_config(without=["num_classes"]), "model_config.num_classes is not in the file"),
        (saves(std=[0.2, 0.2]), "std is not a list of 3 items"),
        (saves(std=[0.2, 0.2, 0]), r"std\[2\] is not a finite number from 1e-06"),
        (saves(mean=[0.5, 0.5, 10**400]), r"mean\[2\]"),
        (saves(mean=[0.5, 0.5, True]), r"mean\[2\]"),
        (saves(classes=["a", 2, "c"]), r"classes\[1\] is not printable text"),
        (saves(classes=["a", "\x1b[2J", "c"]), r"classes\[1\] is not printable"),
        (saves(classes=["a", "b" * 10**7, "c"]), r"classes\[1\] is not printable text of at most 255"),
        (saves(classes=["a"]), "num_classes is not the number of classes"),
        (saves(classes=[]), "num_classes is not the number of classes"),
        (saves(dataset="../../x"), "dataset is not one of"),
        (saves(metrics={"test_accuracy": "99 %"}), "metrics.epoch is not in the file"),
        (saves(metrics={"val_accuracy": 2.0}), "metrics.epoch is not in the file"),
        (saves(recipe={"num_test_images": "abc"}), "recipe.num_test_images"),
        (saves(recipe={"\x1b": 1}), "a key of recipe"),
        (saves(epoch=10**400), "epoch is not"),
        (lambda path: torch.save(SimpleCNN().state_dict(), path), "not a checkpoint of this project"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of this project"),
        (lambda path: torch.save({**checkpoint_contents(), "format": 9}, path), "unknown format"),
        (saves_config(width=4), "do not fit"),
        (saves(model_config={"model": "resnet"}), "model_config.model is not one of"),
        (saves(model_config=None), "model_config is not a dict"),
    ],
)
def test_invalid_checkpoints_are_refused_with_a_reason(write, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "best.pt")
    with pytest.raises(UserError, match=reason):
        checkpoint.load_network(tmp_path, "cpu")
    assert not (tmp_path / "attacked").exists()


def test_the_largest_values_of_all_flags_are_valid_in_a_checkpoint():
    flags = {action.dest: action for action in train.build_parser()._actions}
    bounds = dict.fromkeys(("batch_size", "num_train_images", "num_test_images"), limits.LARGEST_COUNT)
    bounds |= {"epochs": limits.LARGEST_EPOCHS, "seed": limits.LARGEST_SEED}
    assert {f"{flag}?" for flag in (*bounds, "warmup_epochs", "data_path", "resize")} == set(filter(is_text, FLAGS))
    for flag, largest in bounds.items():
        assert flags[flag].type(str(largest)) == largest
        check(largest, FLAGS[f"{flag}?"])
        with pytest.raises(argparse.ArgumentTypeError):
            flags[flag].type(str(largest + 1))
        with pytest.raises(Invalid):
            check(largest + 1, FLAGS[f"{flag}?"])


def test_the_checkpoint_that_is_loaded_is_the_one_that_was_checked(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "best.pt", checkpoint_contents())
    checkpoint.save(tmp_path / "other.pt", checkpoint_contents(classes=["x", "y", "z"]))
    testzip = zipfile.ZipFile.testzip

    def replace_and_test(archive):
        (tmp_path / "other.pt").replace(tmp_path / "best.pt")
        return testzip(archive)

    monkeypatch.setattr(zipfile.ZipFile, "testzip", replace_and_test)
    assert checkpoint.load(tmp_path / "best.pt")["classes"] == ["a", "b", "c"]


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


def test_a_write_removes_what_killed_processes_have_left_but_not_what_others_are_writing(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = {f".[a].{MACHINE}-{os.getppid()}.partial.gif", f".[a].0-{dead.pid}.partial.gif", f".[a].{dead.pid}.gif"}
    for name in (*kept, f".[a].{MACHINE}-{dead.pid}.partial.gif"):
        (tmp_path / name).write_text("half")
    with atomic_write(tmp_path / "[a].gif") as partial:
        partial.write_text("whole")
    assert {file.name for file in tmp_path.iterdir()} == {"[a].gif", *kept}


def test_several_processes_can_create_one_folder_at_once(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        created = list(threads.map(make_folder, [tmp_path / str(number // 8) / "deep" for number in range(400)]))
    assert sorted(folder for folders in created for folder in folders) == sorted(tmp_path.rglob("*"))


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
