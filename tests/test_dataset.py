"""Tests of the data sets, their splits and batches, of image files, and of folders of images."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import PYTHON_ENVIRONMENT, ROOT, SMALL_VIT, exits_with, folder_flags
from PIL import Image
from torchvision.transforms import v2

import compare
import test as test_command
import train
from vit_cifar10.data import cifar, dataset, images
from vit_cifar10.data.images import open_image
from vit_cifar10.data.shapes import draw_shapes
from vit_cifar10.data.tables import DATASETS, DataSet
from vit_cifar10.runs import checkpoint
from vit_cifar10.utils.errors import UserError

# The images that the first release held out. If one of these values changes, earlier results cannot be compared.
FIRST_HELD_OUT = [0, 8, 11, 36, 40]
HELD_OUT_DIGEST = "91a4f5335832f7d3"
CIFAR10_HELD_OUT_DIGEST = "69e1067d296c3a36"


def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def test_held_out_images_never_change():
    labels = torch.arange(50_000) % 10
    held_out = dataset.stratified_sample(labels, 5000, dataset.VALIDATION_SEED)
    assert labels[held_out].bincount().tolist() == [500] * 10
    assert held_out[:5].tolist() == FIRST_HELD_OUT
    assert digest(held_out.numpy()) == HELD_OUT_DIGEST


def test_samples_keep_proportions_and_a_smaller_one_is_part_of_a_larger_one():
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)
    small, large = (set(dataset.stratified_sample(labels, count, 3).tolist()) for count in (50, 400))
    assert small < large
    assert labels[sorted(small)].bincount().tolist() == [35, 10, 5]
    assert len(dataset.stratified_sample(labels, 1000, 3).unique()) == 1000


def test_cifar10_matches_torchvision_and_its_splits_do_not_overlap(cifar10_root):
    splits = dataset.load("cifar10", cifar10_root)
    assert [len(split) for split in splits] == [45_000, 5_000, 10_000]
    assert digest(splits.val.images.numpy()) == CIFAR10_HELD_OUT_DIGEST
    theirs = torchvision.datasets.CIFAR10(cifar10_root, train=False)
    for index in (0, 5, 9999):
        image, label = theirs[index]
        assert (splits.test.images[index].permute(1, 2, 0).numpy() == np.asarray(image)).all()
        assert (splits.test.labels[index], splits.test.classes[label]) == (label, theirs.classes[label])
    ours = torch.cat([splits.train.images, splits.val.images]).flatten(1).numpy()
    theirs = torchvision.datasets.CIFAR10(cifar10_root, train=True).data.transpose(0, 3, 1, 2).reshape(50_000, -1)
    assert sorted(map(hash, map(bytes, ours))) == sorted(map(hash, map(bytes, theirs)))
    few = dataset.load("cifar10", cifar10_root, num_train_images=100, num_test_images=50, image_size=24)
    assert digest(few.val.labels.numpy()) == digest(splits.val.labels.numpy())
    assert few.train.images.shape == (100, 3, 24, 24)
    assert few.test.labels.bincount().tolist() == [5] * 10
    mean, std = ((pixels := splits.train.images / 255).mean((0, 2, 3)), pixels.std((0, 2, 3)))
    torch.testing.assert_close(mean, splits.train.mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(std, splits.train.std, atol=1e-3, rtol=0)


def torchvision_reader(name):
    return getattr(torchvision.datasets, name.upper())


@pytest.mark.parametrize("name", cifar.SOURCES)
def test_files_and_checksums_are_the_same_as_in_torchvision(name):
    source, reader = cifar.SOURCES[name], torchvision_reader(name)
    assert list(source.train.items()) == [tuple(file) for file in reader.train_list]
    assert list(source.test.items()) == [tuple(file) for file in reader.test_list]
    assert source.names_file == (reader.meta["filename"], reader.meta["md5"])
    assert (source.names_key, source.folder, source.url) == (reader.meta["key"], reader.base_folder, reader.url)


CIFAR100_PIXELS = np.random.RandomState(0).randint(0, 256, (200, 3072), dtype=np.uint8)


def save_cifar100(root, monkeypatch):
    """Write small files in CIFAR-100's format: 200 training images, and the first 100 of them as the test images.

    Their checksums replace those of the published files.
    """
    folder = root / "cifar-100-python"
    folder.mkdir()
    pixels = CIFAR100_PIXELS
    files = {
        "train": {"data": pixels, "fine_labels": [i % 100 for i in range(200)]},
        "test": {"data": pixels[:100], "fine_labels": list(range(100))},
        "meta": {"fine_label_names": [f"class {i}" for i in range(100)]},
    }
    checksums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    source = dataclasses.replace(
        cifar.SOURCES["cifar100"],
        train={"train": checksums["train"]},
        test={"test": checksums["test"]},
        names_file=("meta", checksums["meta"]),
    )
    monkeypatch.setitem(cifar.SOURCES, "cifar100", source)


def test_cifar100_has_its_own_classes(tmp_path, monkeypatch):
    save_cifar100(tmp_path, monkeypatch)
    splits = dataset.load("cifar100", tmp_path, val_images=100)
    assert [len(split) for split in splits] == [100, 100, 100]
    assert sorted(splits.val.labels.tolist()) == list(range(100))
    assert splits.test.classes[7] == "class 7"
    assert (splits.test.images[3].flatten() == torch.from_numpy(CIFAR100_PIXELS[3])).all()
    assert not torch.equal(splits.test.mean, torch.tensor(DATASETS["cifar10"].mean))


def read_stripes(data_path, is_train, image_size, num_workers):
    """A data set of one function: images of 20 x 20 pixels with white rows or columns, and their labels."""
    labels = torch.arange(60 if is_train else 20) % 2
    images = torch.zeros(len(labels), 3, 20, 20, dtype=torch.uint8)
    images[labels == 0, :, ::2] = 255
    images[labels == 1, :, :, ::2] = 255
    return images, labels, ("rows", "columns")


def test_a_new_data_set_is_a_function_and_an_entry(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DATASETS, "stripes", DataSet(f"{__name__}:read_stripes", "rows or columns"))
    flags = ["--dataset", "stripes", "--device", "cpu", "--epochs", "2", *folder_flags(tmp_path)]
    for number in range(2):
        train.main([*flags, "--run_name", f"run{number}", *SMALL_VIT.split()])
    monkeypatch.chdir(tmp_path)
    test_command.main(["--model_path", "run0", "--mode", "cifar", "--device", "cpu"])
    saved = checkpoint.load(tmp_path / "model" / "run0")
    assert (saved["dataset"], saved["classes"]) == ("stripes", ["rows", "columns"])
    assert saved["mean"] == pytest.approx([0.5] * 3)  # measured, because the entry tells none
    compare.main(["run0", "run1", "--device", "cpu"])
    compared = json.loads(Path("output/comparison/comparison.json").read_text())["runs"]
    assert [(run["run"], run["dataset"], run["test_images"]) for run in compared] == [
        ("run0", "stripes", 20),
        ("run1", "stripes", 20),
    ]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "stripes: rows or columns" in " ".join(capsys.readouterr().out.split())


def test_the_same_seed_draws_the_same_shapes():
    images, labels = draw_shapes(40, 32, seed=1)
    again, _ = draw_shapes(40, 32, seed=1)
    other, _ = draw_shapes(40, 32, seed=2)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    assert labels.bincount().tolist() == [4] * 10
    assert images.flatten(1).float().std(1).min() > 10  # no image is blank


def test_normalize_matches_torchvision():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    theirs = v2.functional.normalize(v2.functional.to_dtype(images, scale=True), mean.tolist(), std.tolist())
    torch.testing.assert_close(dataset.normalize(images, mean, std), theirs)


def test_batches_contain_every_image_once_in_the_given_order():
    images, _ = draw_shapes(50, 16, seed=1)
    split = dataset.Split(images, torch.arange(50), (), torch.zeros(3), torch.ones(3))
    in_order = [labels for _, labels in dataset.batches(split, 20)]
    assert torch.equal(torch.cat(in_order), torch.arange(50))
    order = torch.randperm(50)
    shuffled = list(dataset.batches(split, 20, order))
    assert [len(labels) for _, labels in shuffled] == [20, 20, 10]
    assert torch.equal(torch.cat([labels for _, labels in shuffled]), order)
    assert all(torch.equal(images, split.images[labels]) for images, labels in shuffled)


# Image files


ORANGE = Image.new("RGB", (60, 40), (255, 128, 0))

# Each of these functions saves an image file and returns the color that its center should have.


def save_palette(path):
    ORANGE.quantize(4).save(path)
    return (255, 128, 0)


def save_gray(path):
    Image.new("L", (60, 40), 100).save(path)
    return (100, 100, 100)


def save_gray_alpha(path):
    Image.new("LA", (60, 40), (0, 127)).save(path)
    return (128, 128, 128)  # black, half transparent, over white


def save_rgba(path):
    Image.new("RGBA", (60, 40), (255, 0, 0, 0)).save(path)
    return (255, 255, 255)  # fully transparent, over white


def save_palette_transparent(path):
    image = Image.new("P", (60, 40), 0)
    image.putpalette([255, 0, 0])
    image.save(path, transparency=0)
    return (255, 255, 255)


def save_16_bit(path):
    Image.fromarray(np.full((40, 60), 200 * 257, dtype=np.uint16)).save(path)
    return (200, 200, 200)


def save_float(path):
    Image.fromarray(np.full((40, 60), 0.5, dtype=np.float32)).save(path, format="TIFF")
    return (128, 128, 128)


def save_cmyk(path):
    ORANGE.convert("CMYK").save(path, format="JPEG", quality=95)
    return (255, 128, 0)


def save_bilevel(path):
    Image.new("1", (60, 40), 1).save(path)
    return (255, 255, 255)


def save_animation(path):
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "blue")]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])
    return (255, 0, 0)


SAVERS = [
    save_palette,
    save_gray,
    save_gray_alpha,
    save_rgba,
    save_palette_transparent,
    save_16_bit,
    save_float,
    save_cmyk,
    save_bilevel,
    save_animation,
]


@pytest.mark.parametrize("save", SAVERS, ids=[saver.__name__ for saver in SAVERS])
def test_every_kind_of_image_file_can_be_read(save, tmp_path):
    path = tmp_path / "a picture.png"
    color = save(path)
    image = open_image(path, 32)
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
    torch.testing.assert_close(image[:, 16, 16], torch.tensor(color, dtype=torch.uint8), atol=3, rtol=0)


DEEP = np.linspace(40, 200, 40 * 40).reshape(40, 40)  # gray values of an 8-bit image


@pytest.mark.parametrize(
    ("pixels", "suffix", "is_own_range", "note"),
    [
        ((DEEP * 16).astype(np.uint16), "png", False, "gray values of 12 bits are scaled to 8 bits"),
        ((DEEP * 4).astype(np.uint16), "tif", False, "gray values of 10 bits are scaled to 8 bits"),
        ((DEEP * 257).astype(np.uint16), "png", False, None),
        ((DEEP * 2**24).astype(np.uint32), "tif", False, "gray values of 32 bits are scaled to 8 bits"),
        ((DEEP * 8 - 1024).astype(np.int16), "tif", True, "gray values from -704 to 576, their own range, are scaled"),
        ((DEEP * 16).astype(np.float32), "tif", True, "gray values from 640 to 3200, their own range, are scaled"),
        ((DEEP / 128 - 1).astype(np.float32), "tif", True, "gray values from -0.6875 to 0.5625, their own range"),
        ((DEEP / 255).astype(np.float32), "tif", False, None),
    ],
)
def test_gray_values_of_any_depth_are_scaled_and_said(pixels, suffix, is_own_range, note, tmp_path, capsys):
    save_gray_values(pixels, tmp_path / f"deep.{suffix}")
    expected = 255 * (DEEP - 40) / 160 if is_own_range else DEEP
    image = open_image(tmp_path / f"deep.{suffix}", 40)
    assert np.abs(image[0].numpy() - expected).max() < 2
    printed = capsys.readouterr().err
    assert note in printed if note else printed == ""


def save_gray_values(pixels, path):
    """Save a gray image of any type of numbers. Pillow cannot write signed 16-bit and unsigned 32-bit TIFF."""
    if pixels.dtype not in (np.int16, np.uint32):
        Image.fromarray(pixels).save(path)
        return
    sample_format = 2 if pixels.dtype == np.int16 else 1
    bits = 8 * pixels.itemsize
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: pixels.nbytes}
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + pixels.nbytes) + pixels.tobytes() + directory)


def test_deep_images_of_a_folder_are_counted_in_a_line(tmp_path, capsys):
    save_class_folders(tmp_path / "train")
    save_class_folders(tmp_path / "test", count=3)
    for place in range(3):
        Image.fromarray((DEEP * 16).astype(np.uint16)).save(tmp_path / "train" / "cat" / f"deep{place}.png")
    dataset.load("folder", tmp_path, image_size=16)
    line = f"note: 3 images for training in {tmp_path}: gray values of 12 bits are scaled to 8 bits"
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_large_photo_is_read_and_a_larger_one_gets_advice(tmp_path):
    Image.new("RGB", (12_000, 9_000), (90, 120, 60)).save(tmp_path / "phone.jpg", quality=30)
    assert (open_image(tmp_path / "phone.jpg", 16).float().mean((1, 2)) - torch.tensor([90, 120, 60])).abs().max() < 5
    Image.new("1", (12_000, 9_000)).save(tmp_path / "scan.png")
    with pytest.raises(UserError, match=r"it has 12000 x 9000 pixels.*; save it with fewer than 100,000,000 pixels"):
        open_image(tmp_path / "scan.png", 16)


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:20] = 255  # the upper half is white; the EXIF data asks viewers to rotate it clockwise by 90 degrees
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # orientation
    image.save(tmp_path / "phone.jpg", exif=exif)
    gray = open_image(tmp_path / "phone.jpg", 32).float().mean(0)
    assert gray[:, :12].mean() < 10
    assert gray[:, 20:].mean() > 245


def save_with_exif(path, image_format, exif):
    """Save an image of 40 x 40 pixels with and without EXIF data. Return it as read from the file without the data."""
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40, 3), dtype=np.uint8))
    image.save(path.with_name("plain"), image_format)
    image.save(path, image_format, exif=exif)
    return open_image(path.with_name("plain"), 40)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
def test_damaged_exif_data_does_no_harm_to_an_image(image_format, tmp_path):
    path = tmp_path / "image"
    plain = save_with_exif(path, image_format, b"Exif\0\0damaged")
    assert torch.equal(open_image(path, 40), plain)
    orientation, wrong_type = struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHII", 0x0100, 5, 1, 7)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + orientation + wrong_type + bytes(4)
    plain = save_with_exif(path, image_format, exif)
    assert torch.equal(open_image(path, 40), plain.rot90(-1, (1, 2)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_image(path, 40)


def test_a_name_that_is_too_long_for_a_file_is_reported():
    with pytest.raises(UserError, match="there is no image x"):
        open_image("x" * 1000, 32)


def test_images_that_are_not_square_are_cropped_and_not_distorted(tmp_path):
    pixels = np.zeros((50, 100, 3), dtype=np.uint8)
    pixels[:, 25:75] = (0, 255, 0)
    pixels[10:40, 35:65] = (255, 0, 0)  # a red square in a green square
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = open_image(tmp_path / "wide.png", 25)
    assert image[1, 12, 1] > 200  # the green square fills the crop
    assert image[1, 1, 12] > 200
    assert image[0, 12, 12] > 200
    is_red = image[0] > 128
    assert is_red.any(0).sum() == is_red.any(1).sum() == 15


@pytest.mark.parametrize("size", [(4000, 3000), (90, 30), (30, 1)])
def test_the_whole_of_a_long_image_may_be_kept(size, tmp_path, capsys):
    """A photo of a phone is stored on its side, and turned by its EXIF data."""
    width, height = size
    pixels = np.linspace((0, 40, 250), (250, 90, 0), width)[None].repeat(height, axis=0).astype(np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 8  # turn it to the left to view it
    image.save(tmp_path / "photo.jpg", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as stored:
        tall = Image.fromarray(np.rot90(stored).copy())
    expected = {"crop": None, "squash": np.array(tall.resize((24, 24), Image.Resampling.BICUBIC))}
    inner = max(1, round(24 * height / width))
    expected["pad"] = np.zeros((24, 24, 3), dtype=np.uint8)
    left = (24 - inner) // 2
    expected["pad"][:, left : left + inner] = np.array(tall.resize((inner, 24), Image.Resampling.BICUBIC))
    for resize, ours in expected.items():
        got = open_image(tmp_path / "photo.jpg", 24, resize).permute(1, 2, 0).numpy()
        assert ours is None or np.array_equal(got, ours)
    (note,) = capsys.readouterr().err.splitlines()
    assert "photo.jpg: cut to the square at the center; --resize squash or pad keeps the rest" in note


def save_long_images(folder):
    """Images of 90 x 30 pixels whose class is visible only at their ends. A tenth of them are square."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            pixels = np.full((30, 90 if index % 10 else 30, 3), 120, dtype=np.uint8)
            pixels[:, :20] = pixels[:, -20:] = (60 + 90 * label, index, 0)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_a_run_keeps_how_its_images_become_square(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_long_images(tmp_path / "data" / "train")
    save_long_images(tmp_path / "data" / "test")
    train_on(tmp_path, "data", "--resize squash --class_weights balanced")
    assert "cut to the square" not in capsys.readouterr().err
    network = checkpoint.load_network(tmp_path / "model" / "run", torch.device("cpu"))
    flags = ["--model_path=run", "--data_path=data", "--device=cpu"]
    sizes = {"": "squash", "--resize=pad": "pad", "--resize=crop": "crop"}
    for flag, resize in sizes.items():
        test_command.main([*flags, *flag.split()])
        folder = tmp_path / "output" / (f"run-{resize}" if flag else "run")
        results = json.loads((folder / "test_results.json").read_text())
        test = dataset.load_test("folder", tmp_path / "data", image_size=16, resize=resize)
        assert results["test_sha256"] == dataset.hash_images(test)
        assert test.files[:2] == ["test/cat/0.png", "test/cat/1.png"]
        assert results["resize"] == resize
    notes = [line for line in capsys.readouterr().err.splitlines() if "in data: cut" in line]
    line = "note: 72 images for testing in data: cut to the square at the center; --resize squash or pad keeps the rest"
    assert notes == [line]
    file = "data/test/dog/1.png"
    capsys.readouterr()
    test_command.main([*flags, "--mode=custom", f"--image_path={file}", "--no_gif", "--no_image"])
    percent = 100 * network.logits(open_image(file, 16, "squash")[None]).softmax(dim=1).max().item()
    assert f"{percent:6.2f} %" in capsys.readouterr().out
    train.main(["--resume=run", "--epochs=2"])
    assert checkpoint.load(tmp_path / "model" / "run", "last.pt")["recipe"]["resize"] == "squash"
    with exits_with(2):
        train.main(["--resume=run", "--epochs=3", "--resize=crop"])
    capsys.readouterr()
    with exits_with(2):
        test_command.main(["--model_path", str(ROOT / "model" / "cnn-32-cifar10"), "--resize=pad"])
    assert "those of cifar10 are square" in capsys.readouterr().err


def test_resizing_averages_fine_detail(tmp_path):
    checkerboard = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkerboard).save(tmp_path / "checkerboard.png")
    image = open_image(tmp_path / "checkerboard.png", 32).float()
    assert (image - 127.5).abs().max() < 20


# Folders of images


def save_class_folders(folder, classes=("cat", "dog"), count=10, blue=0):
    """Save `count` images per class. The red channel of an image is 60 + 90 * its label, and the blue one is `blue`."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = Image.new("RGB", (30, 30), (90 * label + 60, index % 100, blue))
            image.save(folder / name / f"{index:03}.png")


def content_tests(folder):
    """How many files of each class of a folder have a SHA-256 in the lowest fifth."""
    return [
        sum(int(hashlib.sha256(file.read_bytes()).hexdigest()[:16], 16) < 2**64 // 5 for file in name.iterdir())
        for name in sorted(folder.iterdir())
    ]


def test_a_folder_with_a_broken_file_loads_the_rest_and_reports_the_file(tmp_path, capsys):
    save_class_folders(tmp_path, count=40)
    expected = content_tests(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    splits = dataset.load("folder", tmp_path, image_size=16, val_images=2, num_workers=0)
    assert splits.train.classes == ("cat", "dog")
    assert sum(map(len, splits)) == 80
    assert splits.test.labels.bincount().tolist() == expected
    assert (splits.train.images[:, 0, 8, 8] == 60 + 90 * splits.train.labels).all()
    assert "notes.txt" in capsys.readouterr().err
    assert torch.equal(dataset.load_test("folder", tmp_path, image_size=16).images, splits.test.images)


def test_everything_but_images_inside_the_folder_is_reported_and_skipped(tmp_path, capsys):
    root = tmp_path / "data set\n$x$ \u00e9"
    save_class_folders(root, classes=("cat", "dog", "\x1b[2Jred"))
    save_class_folders(tmp_path / "elsewhere", classes=("secret",))
    save_class_folders(root / "cat", classes=(".hidden",))
    (root / "whole").symlink_to(root)
    (root / "unmounted").symlink_to(tmp_path / "nothing")
    (root / "dog" / "inside.png").symlink_to(root / "cat" / "000.png")  # harmless
    (root / "secret").symlink_to(tmp_path / "elsewhere" / "secret")
    (root / "cat" / "passwords.png").symlink_to(tmp_path / "elsewhere" / "secret" / "000.png")
    (root / "cat" / "dangling.png").symlink_to(root / "nothing.png")
    (root / "cat" / "loop").symlink_to(root)
    os.mkfifo(root / "dog" / "pipe.png")
    (root / "dog" / "notes.txt").write_text("not an image")
    (root / "dog" / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    splits = dataset.load("folder", root, image_size=16, val_images=2, num_workers=0)
    assert splits.train.classes == ("\ufffd[2Jred", "cat", "dog")
    assert sum(split.labels.bincount(minlength=3) for split in splits).tolist() == [10, 10, 11]
    printed = capsys.readouterr().err
    links = ("secret", "passwords.png", "dangling.png", "loop", "whole", "unmounted")
    for name in (*links, "pipe.png", "notes.txt", "program.eps"):
        assert len(re.findall(rf"skipped: .*{name}", printed)) == 1, name
    assert len(printed.splitlines()) == 9
    assert "\x1b" not in printed


def test_many_links_are_reported_in_one_line(tmp_path, capsys):
    save_class_folders(tmp_path / "cache", count=100)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for file in (tmp_path / "cache" / name).iterdir():
            (tmp_path / "data" / name / file.name).symlink_to(file)
    with exits_with(2):
        train_on(tmp_path, tmp_path / "data")
    skipped, error = capsys.readouterr().err.splitlines()
    assert skipped.startswith("skipped: 200 links that lead out of the folder of images, for example: ")
    assert skipped.endswith("replace it with a copy of its target")
    assert error.endswith("cat has no files; add images to it or remove it")


def test_two_images_of_one_name_have_two_gifs(tmp_path, monkeypatch, capsys):
    save_class_folders(tmp_path / "data", count=40)
    train_on(tmp_path, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for folder in ("cat", "dog", "cat"):
        image = f"--image_path=data/{folder}/000.png"
        test_command.main(["--model_path=run", "--mode=custom", image, "--device=cpu", "--no_image"])
    wrote = re.findall(r"wrote attention_map_gif/(\S+) and attention_map_gif/(\S+)", capsys.readouterr().out)
    first, second = ("000.gif", "000.png"), ("000-2.gif", "000-2.png")
    assert wrote == [first, second, first]
    assert sorted(os.listdir("attention_map_gif")) == sorted([*first, *second])
    for folder in ("cat", "dog"):  # the user's own choice is followed
        flags = [f"--image_path=data/{folder}/000.png", "--gif_path=mine.gif", "--device=cpu", "--no_image"]
        test_command.main(["--model_path=run", "--mode=custom", *flags])


def test_a_class_may_be_missing_in_the_test_folder(tmp_path, capsys):
    save_class_folders(tmp_path / "data" / "train", classes=("cat", "cow", "dog"))
    save_class_folders(tmp_path / "data" / "test", classes=("cat", "dog"), blue=3)
    train_on(tmp_path, tmp_path / "data")
    assert "warning: 1 of 3 classes in" in capsys.readouterr().err
    assert run_test_on(tmp_path, tmp_path / "data") == 20
    output = capsys.readouterr()
    assert "have no image for testing that can be read: cow" in output.err
    results = json.loads((tmp_path / "output" / "run" / "test_results.json").read_text())
    recalls = [results["by_class"]["recall"][label] for label in (0, 2)]
    assert results["macro"]["recall"] == pytest.approx(sum(recalls) / 2)
    assert "classes without test images, left out here and in the macro mean: 1" in output.out


def test_cifar10_with_a_flipped_bit_is_reported_as_damaged(cifar10_root, tmp_path):
    for file in Path(cifar10_root, "cifar-10-batches-py").iterdir():
        target = tmp_path / "cifar-10-batches-py" / file.name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(file.resolve())
    data = bytearray(target.parent.joinpath("test_batch").read_bytes())
    data[1_000_000] ^= 1
    target.parent.joinpath("test_batch").unlink()
    target.parent.joinpath("test_batch").write_bytes(data)
    with pytest.raises(UserError, match="cifar10 is damaged in"):
        dataset.load("cifar10", tmp_path)


def test_the_folder_of_cifar10_itself_and_a_home_are_found(cifar10_root, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "download", lambda *_: pytest.fail("it is downloaded again"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").symlink_to(Path(cifar10_root).resolve())
    for typed in ("~/mine", "~/mine/cifar-10-batches-py", "~/mine/cifar-10-batches-py/"):
        args = train.parse([f"--data_path={typed}", "--num_train_images=100"])
        assert len(train.load_splits(args).test) == 10_000
    assert test_command.parse(["--output_path=~/results"]).output_path == f"{tmp_path}/results"


def make_locale(folder, name):
    """The environment of a locale in ISO-8859-1, which stands for Windows' code page, or of plain C."""
    environment = {**PYTHON_ENVIRONMENT, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": name}
    if name != "C":
        command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)]
        if not shutil.which("localedef") or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this system cannot make a locale")
        environment["LOCPATH"] = str(folder)
    return environment


@pytest.mark.parametrize("name", ["C", "en_US.ISO-8859-1"])
def test_files_are_in_utf8_in_every_locale(name, tmp_path):
    environment = make_locale(tmp_path, name)
    save_class_folders(tmp_path / "Fotos" / "train", classes=("B\u00e4r", "L\u00f6we"))
    save_class_folders(tmp_path / "Fotos" / "test", classes=("B\u00e4r", "L\u00f6we"), blue=5)
    recipe = f"# f\u00fcr L\u00f6wen\n--dataset folder --data_path Fotos --run_name run {SMALL_CNN}\n"
    (tmp_path / "recipe.txt").write_text(recipe, "utf-8")
    code = "import train, test; train.main(['@recipe.txt']); test.main(['--data_path=Fotos', '--device=cpu'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert checkpoint.load(tmp_path / "model" / "run")["classes"] == ["B\u00e4r", "L\u00f6we"]
    results = json.loads((tmp_path / "output" / "run" / "test_results.json").read_text("utf-8"))
    assert results["classes"] == ["B\u00e4r", "L\u00f6we"]


def test_a_recipe_from_a_windows_shell_is_read(tmp_path, monkeypatch):
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "recipe.txt").write_text("--epochs 7  # L\u00f6we", encoding)
        assert train.parse([f"@{tmp_path / 'recipe.txt'}"]).epochs == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train.parse(["@~/recipe.txt"]).epochs == 7


class Attack:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", cifar.SOURCES)
def test_files_with_wrong_checksums_are_neither_unpickled_nor_unpacked(name, tmp_path):
    reader, folder = torchvision_reader(name), cifar.SOURCES[name].folder
    (tmp_path / "data" / folder).mkdir(parents=True)
    for file in (*(file for file, _ in reader.train_list + reader.test_list), reader.meta["filename"]):
        (tmp_path / "data" / folder / file).write_bytes(pickle.dumps(Attack(tmp_path / "attacked")))
    with tarfile.open(tmp_path / "data" / reader.filename, "w:gz") as archive:
        archive.add(__file__, "../attacked")
    with pytest.raises(UserError, match=f"{name} is damaged in"):
        dataset.load(name, tmp_path / "data")
    assert os.listdir(tmp_path) == ["data"]


def test_class_names_with_a_wrong_checksum_are_not_unpickled(tmp_path, monkeypatch):
    save_cifar100(tmp_path, monkeypatch)
    (tmp_path / "cifar-100-python" / "meta").write_bytes(pickle.dumps(Attack(tmp_path / "attacked")))
    with pytest.raises(UserError, match="cifar100 is damaged in"):
        dataset.load("cifar100", tmp_path)
    assert not (tmp_path / "attacked").exists()


def test_a_data_set_without_its_training_files_is_incomplete_even_for_a_test(tmp_path, monkeypatch, capsys):
    save_cifar100(tmp_path, monkeypatch)
    assert len(dataset.load_test("cifar100", tmp_path)) == 100
    (tmp_path / "cifar-100-python" / "train").unlink()
    with pytest.raises(UserError, match="cifar100 is damaged in"):
        dataset.load_test("cifar100", tmp_path)
    assert "cifar100 is missing or incomplete in" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["", "/test_batch"])
def test_an_archive_is_not_unpacked_through_a_link(link, tmp_path, monkeypatch):
    reader, folder = torchvision_reader("cifar10"), cifar.SOURCES["cifar10"].folder
    (tmp_path / "data" / (folder if link else "")).mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious") if link else elsewhere.mkdir()
    (tmp_path / "data" / f"{folder}{link}").symlink_to(elsewhere)
    with tarfile.open(tmp_path / "data" / reader.filename, "w:gz") as archive:
        archive.add(__file__, f"{folder}/test_batch")
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5((tmp_path / "data" / reader.filename).read_bytes()).hexdigest())
    with pytest.raises(UserError, match=r"cifar10 is damaged in .* is a link"):
        dataset.load("cifar10", tmp_path / "data")
    assert elsewhere.read_text() == "precious" if link else os.listdir(elsewhere) == []


@pytest.mark.parametrize("name", ["cifar100", "folder", "shapes"])
def test_images_that_need_more_memory_than_the_machine_has_are_refused(name, tmp_path, monkeypatch):
    save_cifar100(tmp_path, monkeypatch)
    save_class_folders(tmp_path)
    monkeypatch.setattr(dataset, "physical_memory", lambda: 10**9)
    with pytest.raises(UserError, match=r"but this machine has 1\.0 GB; use smaller images"):
        dataset.load(name, tmp_path, image_size=10_000)


def test_images_that_just_fit_in_memory_are_loaded(tmp_path, monkeypatch):
    save_class_folders(tmp_path)
    monkeypatch.setattr(dataset, "physical_memory", lambda: 20 * 3 * 16 * 16)
    assert sum(map(len, dataset.load("folder", tmp_path, image_size=16, val_images=2))) == 20
    with pytest.raises(UserError, match="use smaller images"):
        dataset.load("folder", tmp_path, image_size=17)


@pytest.mark.parametrize(("num_files", "started"), [(199, []), (450, [4]), (2_000, [8])])
def test_no_more_processes_are_started_than_there_is_work_for(num_files, started, monkeypatch):
    pools = []

    def pool(processes, *_):
        pools.append(processes)
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(images, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(images.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(images, "_decode_or_explain", lambda file, image_size, resize: file)
    assert list(images.decode_images(range(num_files), 16, num_workers=1_000_000)) == list(range(num_files))
    assert pools == started


def test_a_process_that_dies_while_it_decodes_ends_the_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_decode_or_explain", DiesWhenUnpickled())
    monkeypatch.setattr(images.os, "cpu_count", lambda: 2)
    with pytest.raises(UserError, match="a process that decodes images has died"):
        list(images.decode_images(["image.png"] * 200, 16, num_workers=2))


class DiesWhenUnpickled:
    """A function that ends the process which unpickles it."""

    def __call__(self):
        pass

    def __reduce__(self):
        return os._exit, (1,)


def test_a_large_folder_needs_no_more_open_files_than_a_small_one(tmp_path):
    resource = pytest.importorskip("resource")
    save_class_folders(tmp_path, count=300)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        splits = dataset.load("folder", tmp_path, image_size=16, val_images=0, num_workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    tested = sum(content_tests(tmp_path))
    assert (len(splits.train), len(splits.test)) == (600 - tested, tested)
    assert (splits.train.images[:, 0, 8, 8] == 60 + 90 * splits.train.labels).all()


SMALL_CNN = "--model cnn --width 8 --image_size 16 --epochs 1 --val_images 2 --device cpu --precision fp32"


def train_on(folder, data, flags=""):
    """Run train.py on a folder of images; the run is `folder`/model/run."""
    places = [f"--{name}_path={folder / name}" for name in ("model", "output")]
    train.main(["--dataset=folder", f"--data_path={data}", "--run_name=run", *places, *f"{SMALL_CNN} {flags}".split()])


def run_test_on(folder, data):
    """Run test.py with the run of `train_on` on a folder of images. Returns the number of images that were tested."""
    flags = [f"--model_path={folder / 'model' / 'run'}", f"--output_path={folder / 'output'}", f"--data_path={data}"]
    test_command.main([*flags, "--device=cpu"])
    return json.loads((folder / "output" / "run" / "test_results.json").read_text())["images"]


def test_no_image_moves_to_another_split_when_others_come(tmp_path, capsys):
    save_class_folders(tmp_path / "data", count=40)
    train_on(tmp_path, tmp_path / "data")
    tested = content_tests(tmp_path / "data")
    for name in ("Thumbs.db", "desktop.ini", "._000.png"):
        (tmp_path / "data" / "cat" / name).write_bytes(b"of the system")
    (tmp_path / "data" / "__MACOSX" / "cat").mkdir(parents=True)
    capsys.readouterr()
    assert run_test_on(tmp_path, tmp_path / "data") == sum(tested)
    assert capsys.readouterr().err == ""
    (tmp_path / "data" / "cat" / "039.png").rename(tmp_path / "data" / "cat" / "a.png")
    train.main([f"--resume={tmp_path / 'model' / 'run'}", "--epochs=2", f"--output_path={tmp_path / 'output'}"])
    for number in range(20):
        Image.new("RGB", (20, 20), (60, 10, 100 + number)).save(tmp_path / "data" / "cat" / f"00{number}new.png")
    now = content_tests_png(tmp_path / "data")
    assert now > sum(tested)
    assert run_test_on(tmp_path, tmp_path / "data") == now
    assert "others than those of the training of run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main([f"--resume={tmp_path / 'model' / 'run'}", "--epochs=3", f"--output_path={tmp_path / 'output'}"])


def content_tests_png(folder):
    return sum(
        int(hashlib.sha256(file.read_bytes()).hexdigest()[:16], 16) < 2**64 // 5
        for file in folder.glob("*/*.png")
        if not file.name.startswith(".")
    )


def test_a_new_folder_is_tested_whole_and_images_of_the_training_are_counted(tmp_path, capsys):
    save_class_folders(tmp_path / "data" / "Train", count=40)
    save_class_folders(tmp_path / "data" / "Test", count=12, blue=7)
    train_on(tmp_path, tmp_path / "data")
    save_class_folders(tmp_path / "new", count=9, blue=9)
    assert run_test_on(tmp_path, tmp_path / "new") == 18
    save_class_folders(tmp_path / "only" / "test", count=7, blue=8)
    assert run_test_on(tmp_path, tmp_path / "only") == 14
    assert "warning" not in capsys.readouterr().err
    assert run_test_on(tmp_path, tmp_path / "data" / "Train") == 80
    assert "warning: 80 of the 80 test images in" in capsys.readouterr().err


def test_a_run_of_before_tests_only_images_that_were_chosen_for_tests(tmp_path, capsys):
    save_class_folders(tmp_path / "data", count=40)
    train_on(tmp_path, tmp_path / "data")
    for name in ("best.pt", "last.pt"):
        saved = torch.load(tmp_path / "model" / "run" / name, weights_only=True)
        del saved["images"]
        if "training" in saved:
            saved["training"]["data"] = "0" * 64
        torch.save(saved, tmp_path / "model" / "run" / name)
    with pytest.raises(SystemExit):
        run_test_on(tmp_path, tmp_path / "data")
    assert "is from an earlier version, which did not record its training images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main([f"--resume={tmp_path / 'model' / 'run'}", "--epochs=2", f"--output_path={tmp_path / 'output'}"])
    assert "a run of an earlier version divides some folders in another way" in capsys.readouterr().err
    save_class_folders(tmp_path / "new" / "test", count=7, blue=8)
    assert run_test_on(tmp_path, tmp_path / "new") == 14


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ("Training Testing", (18, 2, 20)),
        ("Train Test", (18, 2, 20)),
        ("seg_train/seg_train seg_test/seg_test", (18, 2, 20)),
        ("train validation", (18, 2, 20)),
        ("TRAIN valid", (18, 2, 20)),
        ("train val test", (20, 2, 20)),
    ],
)
def test_the_usual_names_of_splits_are_known_and_printed(folders, sizes, tmp_path, capsys):
    for number, name in enumerate(folders.split()):
        save_class_folders(tmp_path / "data" / name, blue=number)
    train_on(tmp_path, tmp_path / "data")
    first, *others = capsys.readouterr().out.replace("\n  ", " ").splitlines()[0].split("; ")
    assert first.endswith(": 2 classes (cat, dog)")
    printed = re.findall(r"(\d+) (\w+) images (?:from|held out)(?: ([\w/]+)|)", others[0])
    assert tuple(int(count) for count, _, _ in printed) == sizes
    given = [name for name in folders.split() if f"images from {name}" in others[0]]
    assert given == folders.split()
    assert checkpoint.load(tmp_path / "model" / "run")["classes"] == ["cat", "dog"]


def test_unlabelled_and_other_folders_are_left_out(tmp_path, capsys):
    save_class_folders(tmp_path / "data" / "train", count=40)
    save_class_folders(tmp_path / "data" / "test", classes=("images",))
    (tmp_path / "data" / "annotations").mkdir()
    splits = dataset.load("folder", tmp_path / "data", image_size=16)
    assert splits.test.labels.bincount().tolist() == content_tests(tmp_path / "data" / "train")
    printed = capsys.readouterr().err
    assert "test has no class folders, so its images are left out" in printed
    assert "annotations is none of the splits (train), so its images are left out" in printed
    save_class_folders(tmp_path / "top", count=40)
    (tmp_path / "data" / "test" / "images").rename(tmp_path / "top" / "test")
    assert dataset.load("folder", tmp_path / "top", image_size=16).train.classes == ("cat", "dog")
    assert "test has no class folders" in capsys.readouterr().err


def test_a_folder_may_choose_its_test_images(tmp_path):
    save_class_folders(tmp_path / "train")
    save_class_folders(tmp_path / "test", count=3)
    splits = dataset.load("folder", tmp_path, image_size=16, val_images=0)
    assert (len(splits.train), splits.val, len(splits.test)) == (20, None, 6)
    pixels = splits.train.images / 255
    torch.testing.assert_close(splits.train.mean, pixels.mean((0, 2, 3)))
    torch.testing.assert_close(splits.train.std, pixels.std((0, 2, 3)), atol=2e-3, rtol=1e-3)


def test_a_class_without_readable_test_images_is_reported(tmp_path, capsys):
    save_class_folders(tmp_path / "train")
    save_class_folders(tmp_path / "test", count=3)
    for file in (tmp_path / "test" / "dog").iterdir():
        file.write_text("not an image")
    splits = dataset.load("folder", tmp_path, image_size=16)
    assert splits.test.labels.tolist() == [0, 0, 0]
    assert "warning: 1 of 2 classes in" in capsys.readouterr().err


def test_the_images_of_a_split_may_be_on_another_disk(tmp_path):
    save_class_folders(tmp_path / "disk")
    save_class_folders(tmp_path / "data" / "test", count=3)
    (tmp_path / "data" / "train").symlink_to(tmp_path / "disk")
    splits = dataset.load("folder", tmp_path / "data", image_size=16, val_images=0)
    assert (len(splits.train), len(splits.test)) == (20, 6)


def save_one_empty_class(root):
    save_class_folders(root)
    (root / "cow").mkdir()


def save_one_class_without_images(root):
    save_one_empty_class(root)
    (root / "cow" / "notes.txt").write_text("not an image")


def save_one_image_per_class(root):
    """With ten training images, the default holds out one for validation, so a class has none left."""
    for split in ("train", "test"):
        save_class_folders(root / split, classes="abcdefghij", count=1)


def save_no_tested_image(root):
    """Six images, none of which is in the fifth for tests."""
    save_class_folders(root, count=40)
    for name in ("cat", "dog"):
        files = sorted((root / name).iterdir(), key=lambda file: hashlib.sha256(file.read_bytes()).digest())
        for file in files[:-3]:
            file.unlink()


def save_different_classes(root):
    save_class_folders(root / "train")
    save_class_folders(root / "test", classes=("cat", "cow"))


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda root: None, "0 class folders"),
        (lambda root: save_class_folders(root, classes=("cat",)), "1 class folders"),
        (save_one_empty_class, "class folder .*images.cow has no files; add images to it or remove it"),
        (save_one_class_without_images, "class cow in .*images has no image left to train on"),
        (save_one_image_per_class, "class a in .*images has no image left to train on"),
        (lambda root: save_class_folders(root, count=2), "only 4 images"),
        (lambda root: save_class_folders(root, classes=("a\x07", "a\x1b")), r"'a\\x07' and 'a\\x1b' .* look the same"),
        (
            lambda root: save_class_folders(root, classes=("train", "test")),
            "test and train in .* need a sub-folder per",
        ),
        (lambda root: save_class_folders(root / "Test"), "images has Test, but no folder to train on; add .*train"),
        (lambda root: save_class_folders(root / "archive"), "1 class folders.*; set --data_path to .*images.archive"),
        (lambda root: [save_class_folders(root / name) for name in ("Train", "train")], "both hold train images"),
        (save_no_tested_image, "contents of the 6 images in .* choose none of them for testing; add images, or sort"),
        (save_different_classes, "same class folders: .*train lacks cow; .*test lacks dog; rename them"),
        (lambda root: root.rmdir(), "no folder"),
        (lambda root: (root.rmdir(), root.touch()), "images is a file; unpack it"),
    ],
)
def test_folders_that_are_not_a_data_set_are_refused(prepare, reason, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    prepare(root)
    with pytest.raises(UserError, match=reason):
        dataset.load("folder", root)


def test_a_subset_without_images_of_a_class_is_refused(tmp_path):
    for split in ("train", "test"):
        save_class_folders(tmp_path / split)
    with pytest.raises(UserError, match=r"class dog .* has no image left to train on.*raise --num_train_images"):
        dataset.load("folder", tmp_path, num_train_images=1)


def test_a_schedule_that_needs_validation_images_is_refused_without_them(tmp_path):
    save_class_folders(tmp_path, count=4)
    args = train.parse(["--dataset", "folder", "--data_path", str(tmp_path), "--schedule", "plateau"])
    with pytest.raises(UserError, match="plateau watches the validation loss; add --val_images"):
        train.load_splits(args)


def save_bomb(path):
    """Save a PNG of a few hundred bytes whose header claims 60,000 x 60,000 pixels."""
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    save_bomb(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png", 32)


def test_only_the_first_frame_of_an_animation_is_decoded(tmp_path):
    frames = [Image.new("P", (64, 64), color % 256) for color in range(3000)]
    frames[0].save(tmp_path / "animation.gif", save_all=True, append_images=frames[1:], loop=0)
    start = time.perf_counter()
    open_image(tmp_path / "animation.gif", 32)
    assert time.perf_counter() - start < 1


def test_200_damaged_images_are_decoded_or_reported(tmp_path):
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (40, 50, 3), dtype=np.uint8)
    reported = 0
    for number in range(200):
        path = tmp_path / f"image{number}.{('png', 'jpg', 'gif', 'webp', 'bmp')[number % 5]}"
        Image.fromarray(pixels).save(path)
        data = bytearray(path.read_bytes())
        if number % 2:
            data = data[: random.randint(len(data))]
        else:
            for _ in range(20):
                data[random.randint(len(data))] = random.randint(256)
        path.write_bytes(data)
        try:
            assert open_image(path, 32).shape == (3, 32, 32)
        except UserError as error:
            reported += path.name in str(error)
    assert reported > 50
