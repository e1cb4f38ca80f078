"""What a network sees: images as one uint8 tensor per split, on any device, and batches of them.

    splits = load("cifar10", "./data")                     # splits.train, splits.val, splits.test
    train = splits.train.to(device)                        # CIFAR-10 is 184 MB as uint8
    for images, labels in batches(train, 128, order=torch.randperm(len(train))):
        x = normalize(images, train.mean, train.std)       # float (B, 3, H, W)

An image file given by a user takes the same way: `open_image(path, 32)` is uint8 (3, 32, 32), like a test image.
"""

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torchvision.transforms.v2 import functional as tvf

from vit_cifar10.data.images import decode_images, flatten, list_images, report_skipped
from vit_cifar10.data.shapes import SHAPES, draw_shapes
from vit_cifar10.utils.cli import printable
from vit_cifar10.utils.errors import UserError

# Fixed for good: they decide which images are held out, whatever the seed of a run.
VALIDATION_SEED = 20_210_322
SUBSET_SEED = 20_200_622
SHAPES_SEED = 20_090_408

CIFAR = {  # torchvision's class, the folder in the archive, and mean and deviation of the training images
    "cifar10": (
        torchvision.datasets.CIFAR10,
        "cifar-10-batches-py",
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": (
        torchvision.datasets.CIFAR100,
        "cifar-100-python",
        ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
}
DATASETS = (*CIFAR, "folder", "shapes")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split: uint8 (N, 3, H, W) and labels int64 (N,), with what belongs to the data set.

    `classes` names the labels; `mean` and `std`, float (3,), are those of the training images scaled to [0, 1].
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple
    mean: torch.Tensor
    std: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        """The same split with its tensors on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **moved)

    def subset(self, indices):
        """The images at `indices` (int64, on the CPU), in that order."""
        indices = torch.as_tensor(indices, device=self.labels.device)
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])


class Splits(NamedTuple):
    """The three splits of a data set; `val` is None where no images are held out."""

    train: Split
    val: Split | None
    test: Split


def load(
    name,
    data_path,
    *,
    image_size=32,
    val_images=None,
    num_train_images=None,
    num_test_images=None,
    num_workers=2,
):
    """Load a data set as `Splits` of uint8 tensors on the CPU.

    Args:
        name: one of `DATASETS`.
        data_path: folder that holds the data set; CIFAR is downloaded into it when it is not there.
        image_size: side of the images in pixels; others are resized.
        val_images: training images held out for validation, class by class in proportion and the same ones on every
            machine; None is a tenth of the training images, 5,000 of CIFAR-10's. 0 holds out none.
        num_train_images, num_test_images: use only so many, chosen in the same way; None is all. A smaller choice is
            part of a larger one.
        num_workers: processes that decode a `folder` data set.

    Raises:
        UserError: the data set is not there, cannot be read, or is smaller than what was asked for.
    """
    train, test = _load_both(name, data_path, image_size, num_workers)
    if val_images is None:
        val_images = len(train) // 10
    if val_images >= len(train):
        raise UserError(f"--val_images {val_images} leaves nothing of {len(train)} training images; lower it")
    val = None
    if val_images:
        held_out = stratified_sample(train.labels, val_images, VALIDATION_SEED)
        is_train = torch.ones(len(train), dtype=torch.bool)
        is_train[held_out] = False
        train, val = train.subset(is_train.nonzero().flatten()), train.subset(held_out)
    train = _limit(train, num_train_images, "--num_train_images")
    test = _limit(test, num_test_images, "--num_test_images")
    return Splits(train, val, test)


def load_test(name, data_path, *, image_size=32, num_images=None, num_workers=2):
    """The test split alone, as `load` gives it; that of a `folder` comes with mean 0 and std 1."""
    test = _load_one(name, data_path, False, image_size, num_workers)
    return _limit(test, num_images, "--num_images")


def stratified_sample(labels, count, seed):
    """Indices (count,), sorted, of a sample that keeps the classes' proportions; smaller samples are part of larger.

    Every image gets its place, between 0 and 1, in a random order of its class; the lowest places are taken. NumPy
    promises never to change `RandomState`'s numbers, so the sample is the same on every machine and release.
    """
    labels = np.asarray(labels)
    place = np.empty(len(labels))
    order = np.random.RandomState(seed).permutation(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(np.sort(np.argsort(place, kind="stable")[:count]))


def batches(split, batch_size, order=None):
    """Yield `(images, labels)` batches that lie on the split's device.

    `order`, int64 (n,), says which images come in which order; None is all of them as they lie.
    """
    if order is not None:
        order = order.to(split.labels.device)
    for start in range(0, len(split) if order is None else len(order), batch_size):
        chosen = slice(start, start + batch_size)
        if order is not None:
            chosen = order[chosen]
        yield split.images[chosen], split.labels[chosen]


def normalize(images, mean, std):
    """uint8 (..., 3, H, W) in 0..255 -> float32 of mean 0 and deviation 1, given those of the data set, (3,) each."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def _limit(split, count, flag):
    if count is None:
        return split
    if count > len(split):
        raise UserError(f"{flag} {count} asks for more than the {len(split)} images there are; lower it")
    return split.subset(stratified_sample(split.labels, count, SUBSET_SEED))


def _load_both(name, data_path, image_size, num_workers):
    train, test = (_load_one(name, data_path, is_train, image_size, num_workers) for is_train in (True, False))
    if name == "folder":
        mean, std = _mean_and_std(train.images)
        train, test = (dataclasses.replace(split, mean=mean, std=std) for split in (train, test))
    return train, test


def _mean_and_std(images):
    """Mean and deviation, float (3,) each, of the channels of uint8 images scaled to [0, 1], a thousand at a time."""
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for part in images.split(1000):
        pixels = part.double() / 255
        sums += torch.stack([pixels.sum(dim=(0, 2, 3)), pixels.square().sum(dim=(0, 2, 3))])
    mean, mean_square = sums / (images.numel() / 3)
    return mean.float(), (mean_square - mean.square()).clamp(min=1e-6).sqrt().float()


def _load_one(name, data_path, is_train, image_size, num_workers):
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if name in CIFAR:
        images, labels, classes = _read_cifar(name, data_path, is_train, image_size)
        mean, std = CIFAR[name][2]
    elif name == "folder":
        images, labels, classes = _read_folder(data_path, is_train, image_size, num_workers)
    else:
        images, labels = draw_shapes(5_000 if is_train else 1_000, image_size, SHAPES_SEED + is_train)
        classes, mean, std = SHAPES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Split(images, labels, tuple(classes), torch.tensor(mean), torch.tensor(std))


def _read_cifar(name, data_path, is_train, image_size):
    reader, folder, _ = CIFAR[name]
    existed = Path(data_path).exists()
    try:
        try:
            data = reader(data_path, train=is_train, download=False)
        except RuntimeError:  # not there, or not with the right checksums
            print(f"{name} is not, or not whole, in {data_path}; downloading it", file=sys.stderr)
            data = reader(data_path, train=is_train, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        if not existed and Path(data_path).is_dir() and not any(Path(data_path).iterdir()):
            Path(data_path).rmdir()  # torchvision has made it
        is_there = (Path(data_path) / folder).exists()
        found = f"is damaged in {data_path} and could not" if is_there else f"is neither in {data_path} nor could it"
        raise UserError(
            f"{name} {found} be downloaded ({error}). Fetch {reader.url} on a machine"
            f" with a network and unpack it so that {Path(data_path) / folder} exists, point --data_path at the folder"
            f" that holds {folder}, or begin with train.py --dataset shapes, which needs no download"
        ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    if image_size != images.shape[-1]:
        size = [image_size, image_size]
        bicubic = torchvision.transforms.InterpolationMode.BICUBIC
        images = torch.cat([tvf.resize(part, size, bicubic, antialias=True) for part in images.split(1000)])
    return images, torch.tensor(data.targets), data.classes


def _read_folder(data_path, is_train, image_size, num_workers):
    """Images under `train/CLASS/` and `test/CLASS/` or `val/CLASS/`; of plain `CLASS/` folders a fifth is for tests."""
    root = Path(data_path)
    test_folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    train_folder = root / "train" if (root / "train").is_dir() else root
    by_class = list_images(train_folder, root)
    if train_folder != root and test_folder:
        if not is_train:
            of_train, by_class = by_class, list_images(test_folder, root)
            if by_class.keys() != of_train.keys():
                raise UserError(f"{train_folder} and {test_folder} do not have the same class folders; rename them")
        files, labels = flatten(by_class)
    else:
        files, labels = flatten(by_class)
        test = set(stratified_sample(labels, len(labels) // 5, SUBSET_SEED).tolist())
        chosen = [i for i in range(len(files)) if (i in test) != is_train]
        files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
    images = torch.empty((len(files), 3, image_size, image_size), dtype=torch.uint8)
    kept = []
    for image, label in zip(decode_images(files, image_size, num_workers), labels, strict=True):
        if isinstance(image, str):
            report_skipped(image)
        else:
            images[len(kept)] = torch.from_numpy(image)
            kept.append(label)
    if not kept:
        raise UserError(f"none of the {len(files)} files under {root} is an image that can be read; check --data_path")
    return images[: len(kept)], torch.tensor(kept), tuple(map(printable, by_class))
