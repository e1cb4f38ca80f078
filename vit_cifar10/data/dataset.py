"""Data sets: load the splits, take batches from them, and normalize the batches.

    splits = load("cifar10", "./data")                     # splits.train, splits.val, splits.test
    train = splits.train.to(device)                        # CIFAR-10 is 184 MB as uint8
    for images, labels in batches(train, 128, order=torch.randperm(len(train))):
        inputs = normalize(images, train.mean, train.std)  # float (B, 3, H, W)

A split is one uint8 tensor of images, on any device. After loading, no code handles images one by one.
"""

import dataclasses
import hashlib
import pkgutil
from typing import NamedTuple

import numpy as np
import torch

from vit_cifar10.data.shapes import SHAPES, draw_shapes
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.utils.device import physical_memory
from vit_cifar10.utils.errors import UserError

# Never change these seeds. They decide which images are held out, selected or drawn, independently of a run's --seed.
VALIDATION_SEED = 20_210_322
SUBSET_SEED = 20_200_622
SHAPES_SEED = 20_090_408


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split and their labels.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        classes: the names of the classes, indexed by label.
        mean, std: float (3,), of the data set's training images scaled to [0, 1].
        hashes: int64 (N,), what identifies the files of a user's own images, whatever their names; None for others.
        files: the paths of these files below the data set's folder, a list of N; None for other images.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple
    mean: torch.Tensor
    std: torch.Tensor
    hashes: torch.Tensor | None = None
    files: list | None = None

    def __len__(self):
        return len(self.labels)

    @property
    def files_hash(self):
        """SHA-256 of the set of files of a user's own images, in any order; None for other images."""
        if self.hashes is None:
            return None
        return hashlib.sha256(self.hashes.cpu().sort().values.numpy()).hexdigest()

    def to(self, device):
        """The same split with its tensors on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **moved)

    def subset(self, indices):
        """The images at `indices` (int64, on the CPU), in that order."""
        files = self.files and [self.files[index] for index in torch.as_tensor(indices).tolist()]
        indices = torch.as_tensor(indices, device=self.labels.device)
        own = {name: getattr(self, name) for name in ("images", "labels", "hashes")}
        chosen = {name: value[indices] for name, value in own.items() if value is not None}
        return dataclasses.replace(self, **chosen, files=files)


class Splits(NamedTuple):
    """The three splits of a data set. `val` is None if no images are held out."""

    train: Split
    val: Split | None
    test: Split

    def with_normalization(self, mean, std):
        """The same splits with another mean and std, three numbers each."""
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        return Splits(*(split and dataclasses.replace(split, mean=mean, std=std) for split in self))


def load(
    name,
    data_path,
    *,
    image_size=32,
    val_images=None,
    num_train_images=None,
    num_test_images=None,
    num_workers=2,
    resize="crop",
):
    """Load a data set as `Splits` of uint8 tensors on the CPU.

    Args:
        name: one of `DATASETS` in data/tables.py.
        data_path: folder of the data set. CIFAR is downloaded to it if it is missing.
        image_size: side of the images in pixels. Images of another size are resized.
        val_images: number of training images to hold out for validation, stratified by class and the same on every
            machine. None holds out a tenth of the training images, which is 5,000 for CIFAR-10. 0 holds out none. A
            `folder` may have validation images of its own, of which None takes all.
        num_train_images, num_test_images: use a subset of this many images, chosen in the same way; None uses all. A
            smaller subset is part of a larger one.
        num_workers: largest number of processes that decode a `folder` data set.
        resize: what is done to its images that are not square; see `fit_square` in data/images.py.

    Raises:
        UserError: the data set is missing, cannot be read, has fewer images than requested or no training image of a
            class, or needs more memory than this machine has.
    """
    train, val, test = _load_whole_splits(name, data_path, image_size, num_workers, resize)
    if val is not None:
        val = _stratified_subset(val, val_images, "--val_images") if val_images != 0 else None
    else:
        train, val = _hold_out(train, val_images)
    train = _stratified_subset(train, num_train_images, "--num_train_images")
    if DATASETS[name].is_own:
        _check_classes(train, data_path)
    test = _stratified_subset(test, num_test_images, "--num_test_images")
    return Splits(*_resize([train, val, test], image_size))


def load_test(name, data_path, *, image_size=32, num_images=None, num_workers=2, resize="crop", seen=None):
    """Load only the test split. It equals the one from `load`, except that a mean and std that `load` would measure on
    training images are 0 and 1.

    `seen` is for a user's own images: the hashes (see `Split`) of the images that a network has learned from. A folder
    that contains none of them and no test images of its own is then tested whole.
    """
    entry = DATASETS[name]
    if seen is None or not entry.test_reader:
        test = _load_split(name, data_path, False, image_size, num_workers, resize)
    else:
        test = _read(entry, entry.test_reader, data_path, image_size, num_workers, seen, resize=resize)
    test = _stratified_subset(test, num_images, "--num_images")
    return _resize([test], image_size)[0]


def stratified_sample(labels, count, seed):
    """Sorted indices, int64 (count,), of a random sample that keeps the proportions of the classes.

    Every image gets a quantile, between 0 and 1, in a random order of its class, and the images with the lowest
    quantiles are taken. With the same seed, a smaller sample is therefore part of a larger one. NumPy guarantees that
    the numbers of `RandomState` never change, so the sample is the same on every machine and with every version.
    """
    labels = np.asarray(labels)
    quantile = np.empty(len(labels))
    order = np.random.RandomState(seed).permutation(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(np.sort(np.argsort(quantile, kind="stable")[:count]))


def batches(split, batch_size, order=None, is_mirrored=None):
    """Yield `(images, labels)` batches on the split's device. The last one may be smaller.

    `order`, int64 (n,), are the indices of the images to use, in order; None uses all images in their order in the
    split. `is_mirrored`, bool (N,) on the split's device, says which images of the split to flip from left to right.
    """
    if order is not None:
        order = order.to(split.labels.device)
    for start in range(0, len(split) if order is None else len(order), batch_size):
        chosen = slice(start, start + batch_size)
        if order is not None:
            chosen = order[chosen]
        images = split.images[chosen]
        if is_mirrored is not None:
            images = torch.where(is_mirrored[chosen, None, None, None], images.flip(-1), images)
        yield images, split.labels[chosen]


def hash_images(*splits, start=""):
    """SHA-256 of a text and of the labels and images of splits."""
    digest = hashlib.sha256(start.encode())
    for split in splits:
        digest.update(split.labels.cpu().numpy())
        digest.update(split.images.cpu().contiguous().numpy())
    return digest.hexdigest()


def normalize(images, mean, std):
    """Scale uint8 (..., 3, H, W) to [0, 1] and normalize it with the data set's `mean` and `std`, (3,), to float32."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def _stratified_subset(split, count, flag):
    """A stratified sample of `count` images; None takes all images.

    Raises:
        UserError: there are fewer images. The message asks the user to lower `flag`.
    """
    if count is None:
        return split
    if count > len(split):
        raise UserError(f"{flag} {count} is more than the {len(split)} images available; lower it")
    return split.subset(stratified_sample(split.labels, count, SUBSET_SEED))


def _check_classes(train, data_path):
    """Raise `UserError` if a class has no training image."""
    counts = train.labels.bincount(minlength=len(train.classes))
    if not counts.all():
        name = train.classes[int(counts.argmin())]
        raise UserError(
            f"the class {name} in {data_path} has no image left to train on; add images that can be read to its folder,"
            " lower --val_images, raise --num_train_images, or remove the folder"
        )


def check_memory(count, image_size):
    """Raise `UserError` if uint8 images (count, 3, image_size, image_size) are larger than this machine's memory."""
    needed, available = count * 3 * image_size**2, physical_memory()
    if needed > available:
        raise UserError(
            f"{count:,} images of {image_size} x {image_size} pixels need {needed / 1e9:,.1f} GB, but this machine has"
            f" {available / 1e9:,.1f} GB; use smaller images (--image_size)"
        )


def _resize(splits, image_size):
    """The same splits with images (N, 3, image_size, image_size), as a list. A split may be None.

    Raises:
        UserError: the images do not fit in this machine's memory.
    """
    check_memory(sum(len(split) for split in splits if split), image_size)
    return [split and dataclasses.replace(split, images=_resize_images(split.images, image_size)) for split in splits]


def _resize_images(images, image_size):
    """Resize uint8 (N, 3, H, W) to (N, 3, image_size, image_size), a few images at a time to limit memory."""
    if images.shape[-1] == image_size:
        return images
    from torchvision.transforms.v2 import InterpolationMode, functional  # only here because the import takes seconds

    resized = torch.empty((len(images), 3, image_size, image_size), dtype=torch.uint8)
    size = [image_size, image_size]
    for chunk, target in zip(images.split(100), resized.split(100), strict=True):
        target.copy_(functional.resize(chunk, size, InterpolationMode.BICUBIC, antialias=True))
    return resized


def _hold_out(train, count):
    """Split the training images into those to train on and a stratified sample of `count`, or a tenth, or None."""
    count = len(train) // 10 if count is None else count
    if count >= len(train):
        raise UserError(f"--val_images {count} leaves nothing to train on of {len(train)} images; lower it")
    if not count:
        return train, None
    held_out = stratified_sample(train.labels, count, VALIDATION_SEED)
    is_train = torch.ones(len(train), dtype=torch.bool)
    is_train[held_out] = False
    return train.subset(is_train.nonzero().flatten()), train.subset(held_out)


def _load_whole_splits(name, data_path, image_size, num_workers, resize):
    """The given splits, before any images are held out, with the mean and std of the training images."""
    entry = DATASETS[name]
    train, test = (
        _load_split(name, data_path, is_train, image_size, num_workers, resize) for is_train in (True, False)
    )
    val = entry.val_reader and _read(entry, entry.val_reader, data_path, image_size, num_workers, resize=resize)
    splits = Splits(train, val, test)
    return splits if entry.mean else splits.with_normalization(*_mean_and_std(train.images))


def _load_split(name, data_path, is_train, image_size, num_workers, resize):
    """The training or test split, before any images are held out or resized."""
    entry = DATASETS[name]
    return _read(entry, entry.reader, data_path, is_train, image_size, num_workers, resize=resize)


def _read(entry, reader, *arguments, resize):
    """The split that a reader in the table of data sets returns, or None. An unknown mean is 0, a std 1."""
    options = {"resize": resize} if entry.is_own else {}
    read = pkgutil.resolve_name(reader)(*arguments, **options)
    if read is None:
        return None
    images, labels, classes, *files = read
    mean, std = torch.tensor(entry.mean or (0.0,) * 3), torch.tensor(entry.std or (1.0,) * 3)
    return Split(images, labels, tuple(classes), mean, std, *files)


def read_shapes(data_path, is_train, image_size, num_workers):
    """One split of drawn shapes: uint8 (N, 3, image_size, image_size), labels and classes. Two arguments are unused.

    Raises:
        UserError: the images do not fit in this machine's memory.
    """
    count = 5_000 if is_train else 1_000
    check_memory(count, image_size)
    return *draw_shapes(count, image_size, SHAPES_SEED + is_train), SHAPES


def _mean_and_std(images):
    """Mean and standard deviation of each channel, float (3,), of uint8 images scaled to [0, 1].

    The images are processed in chunks, to limit memory.
    """
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for chunk in images.split(1000):
        pixels = chunk.double() / 255
        sums += torch.stack([pixels.sum(dim=(0, 2, 3)), pixels.square().sum(dim=(0, 2, 3))])
    mean, mean_square = sums / (images.numel() / 3)
    return mean.float(), (mean_square - mean.square()).clamp(min=1e-6).sqrt().float()
