"""A user's own images: which files of a folder belong to which split, and reading them.

    FOLDER/train/CLASS/  FOLDER/val/CLASS/  FOLDER/test/CLASS/      the user's splits, under any of their usual names
    FOLDER/CLASS/                                                   a fifth of the files, by their content, is for tests

Without splits of the user's, the bytes of a file alone decide about its split. So no image moves to another split when
others come or go, or when it is renamed, and copies of an image are in the same split.
"""

import collections
import functools
import hashlib
import os
import stat
import sys
from pathlib import Path

import torch

from vit_cifar10.data.dataset import check_memory
from vit_cifar10.data.image_files import class_name, files_and_labels, find_splits, list_files, list_images, reporting
from vit_cifar10.data.images import decode_images
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.text import folded, listed, one_line, printable

TEST_HASHES = range(2**64 // 5)  # the lowest fifth of all unsigned ones
FEWEST_FILES = 5  # of which a fifth can be held out


def read_folder(data_path, is_train, image_size, num_workers, resize="crop"):
    """One split: images, uint8 (N, 3, image_size, image_size), labels (N,), classes, the files' hashes (N,), and paths.

    `resize` is for images that are not square; see `fit_square`. The paths, a list of N, begin below `data_path`.

    Files that cannot be read as images, and classes without readable test images, are reported on standard error.

    Raises:
        UserError: the folder is not a data set, no file of the split can be read as an image, or the images do not fit
            in this machine's memory.
    """
    root, purpose = Path(data_path), "training" if is_train else "testing"
    with reporting() as skipped:
        splits = find_splits(root, skipped)
        test_folder = splits.get("test") or splits.get("val")
        if test_folder and "train" not in splits:
            raise UserError(f"{root} has {test_folder.name}, but no folder to train on; add {root / 'train'}")
        train_folder = splits.get("train", root)
        by_class = list_images(train_folder, root, skipped)
        empty = next((name for name, files in by_class.items() if not files), None)
        if is_train and empty is not None:
            raise UserError(f"the class folder {train_folder / empty} has no files; add images to it or remove it")
        if test_folder and is_train:
            listed = by_class
        elif test_folder:
            listed = list_like(by_class, train_folder, test_folder, root, skipped)
        else:
            listed = fifth(by_class, root, is_train)
        return read_files(listed, root, purpose, image_size, num_workers, resize, skipped)


def read_validation(data_path, image_size, num_workers, resize="crop"):
    """The images of a validation folder, as from `read_folder`; None if there is none, or it is what is tested."""
    root = Path(data_path)
    with reporting() as skipped:
        splits = find_splits(root, skipped)
        if splits.keys() < {"train", "val", "test"}:
            return None
        by_class = list_images(splits["train"], root, skipped)
        listed = list_like(by_class, splits["train"], splits["val"], root, skipped)
        return read_files(listed, root, "validation", image_size, num_workers, resize, skipped)


def read_test(data_path, image_size, num_workers, seen, resize="crop"):
    """The images to test a network on, as from `read_folder`, given the hashes of those that it has learned from.

    They are those of the test folder. Without one, they are the fifth that was held out for tests if the network has
    learned from the others, or else all images. Images that it has learned from are counted in a warning.

    Raises:
        UserError: `read_folder` fails.
    """
    root = Path(data_path)
    with reporting() as skipped:
        splits = find_splits(root, skipped)
        chosen, train_folder = splits.get("test") or splits.get("val"), splits.get("train", root)
        by_class = list_images(train_folder if "train" in splits else chosen or root, root, skipped, at_least=1)
        if chosen:
            by_class = list_like(by_class, train_folder, chosen, root, skipped)
        elif not seen.isdisjoint(hashes_of(by_class)):
            held_out = fifth(by_class, root, is_train=False)
            by_class = held_out if seen.isdisjoint(hashes_of(held_out)) else by_class
        read = read_files(by_class, root, "testing", image_size, num_workers, resize, skipped)
    *_, hashes, _ = read
    warn_of_copies(hashes.tolist(), seen, root)
    return read


def hashes_of(by_class):
    return [hash_file(file) for files in by_class.values() for file in files]


def warn_of_copies(tested, seen, root):
    """Report test images that the network was also trained on, given the hashes of both."""
    known = sum(image in seen for image in tested)
    if known:
        warning = f"{known} of the {len(tested)} test images in {root} were also used in the training"
        print(one_line(f"warning: {warning}"), file=sys.stderr)


def has_test_folder(data_path):
    """Whether the user has chosen the test images of a folder."""
    splits = find_splits(Path(data_path), {})
    return bool(splits.keys() & {"test", "val"})


def list_like(by_class, train_folder, folder, root, skipped):
    """The files of the test or validation folder by the classes of the training folder, {class: files}.

    Raises:
        UserError: it has other classes.
    """
    found = list_images(folder, root, skipped, at_least=1)
    other = [name for name in found if name not in by_class]
    if other:
        lacking = [name for name in by_class if name not in found]
        without = f"; {folder} lacks {listed(lacking, 8)}" if lacking else ""
        raise UserError(
            f"{train_folder} and {folder} do not have the same class folders: {train_folder} lacks {listed(other, 8)}"
            f"{without}; rename them"
        )
    return {name: found.get(name, []) for name in by_class}


def fifth(by_class, root, is_train):
    """The files by class that are for tests by their content, or the others for training.

    Raises:
        UserError: there are too few files.
    """
    count = sum(map(len, by_class.values()))
    if count < FEWEST_FILES:
        raise UserError(f"{root} has only {count} images, too few to hold out a fifth for testing; add images")
    chosen = {
        name: [file for file in files if (hash_file(file) % 2**64 in TEST_HASHES) != is_train]
        for name, files in by_class.items()
    }
    if not any(chosen.values()):
        purpose = "training" if is_train else "testing"
        raise UserError(
            f"the contents of the {count} images in {root} choose none of them for {purpose}; add images, or sort them"
            " into train/CLASS/ and test/CLASS/"
        )
    return chosen


def hash_file(path):
    """The first 64 bits of a file's SHA-256 as a signed number; -1, which is not tested, if it cannot be read."""
    try:
        state = os.stat(path)
        return _hash_file(path, state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else -1
    except OSError:
        return -1


@functools.cache  # a file is read once, although it is asked for by several splits
def _hash_file(path, size, modified):
    return int.from_bytes(hashlib.sha256(Path(path).read_bytes()).digest()[:8], "big", signed=True)


def read_files(by_class, root, purpose, image_size, num_workers, resize, skipped):
    """What `read_folder` returns, of listed files, with printable names of the classes."""
    files, labels = files_and_labels(by_class)
    classes = tuple(map(printable, by_class))
    images, places, errors, notes = decode(files, image_size, num_workers, resize)
    skipped.setdefault("files that cannot be read as an image", []).extend(errors)
    print_notes(notes, f"for {purpose} in {root}")
    if not places:
        raise UserError(f"none of the {len(files)} files for {purpose} in {root} can be read as an image; add images")
    labels = torch.tensor([labels[place] for place in places])
    files = [files[place] for place in places]
    missing = [name for label, name in enumerate(classes) if not (labels == label).any()]
    if missing and purpose != "training":
        warning = f"{len(missing)} of {len(classes)} classes in {root} have no image for {purpose} that can be read"
        print(one_line(f"warning: {warning}: {listed(missing, 8)}"), file=sys.stderr)
    return images, labels, classes, torch.tensor(list(map(hash_file, files))), names_below(root, files)


def decode(files, image_size, num_workers, resize):
    """Read image files, with a progress bar in a terminal.

    Returns:
        The images, uint8 (N, 3, image_size, image_size); the places of their files in `files`; what is wrong with the
        others, a list of texts; how many images each note is about, a dict.

    Raises:
        UserError: the images do not fit in this machine's memory.
    """
    from tqdm import tqdm  # a single image does without it, and starts sooner

    check_memory(len(files), image_size)
    images = torch.empty((len(files), 3, image_size, image_size), dtype=torch.uint8)
    places, errors, notes = [], [], collections.Counter()
    decoded = decode_images(files, image_size, num_workers, resize)
    bar = {"desc": "reading images", "unit": "image", "leave": False, "disable": None}
    for place, (image, texts) in enumerate(tqdm(decoded, total=len(files), **bar)):
        if image is None:
            errors.append(texts)
            continue
        images[len(places)] = torch.from_numpy(image)
        places.append(place)
        notes.update(texts)
    return images[: len(places)], places, errors, notes


def print_notes(notes, which):
    """Print how many of the images, which the text `which` describes, each note is about."""
    for note, count in notes.items():
        print(one_line(f"note: {count} images {which}: {note}"), file=sys.stderr)


def names_below(root, files):
    """The paths of files from a folder on, as text with slashes, whatever the system's locale and separator."""
    names = (class_name(Path(os.path.relpath(file, root)).as_posix()) for file in files)
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]


def read_all(folder, image_size, num_workers, resize="crop"):
    """All images below a folder: uint8 (N, 3, image_size, image_size), and the files' paths from the folder on, a list.

    One line on standard error counts the files that cannot be read as images.

    Raises:
        UserError: there is no image, or the images do not fit in this machine's memory.
    """
    root = Path(folder)
    with reporting() as skipped:
        files = list_files(root, (root,), skipped)
    names = names_below(root, files)
    images, places, errors, notes = decode(files, image_size, num_workers, resize)
    print_notes(notes, f"in {root}")
    if not places:
        raise UserError(f"none of the {len(files)} files in {root} can be read as an image; check --image_path")
    if errors:
        unread = [names[place] for place in sorted(set(range(len(files))) - set(places))]
        text = f"{len(errors)} of the {len(files)} files in {root} cannot be read as an image"
        print(one_line(f"skipped: {text}: {listed(unread)}"), file=sys.stderr)
    return images, [names[place] for place in places]


def print_splits(data_path, splits):
    """Print the classes of a folder of images and where each split, a `Splits`, is from. Report copies between them."""
    root, (train, val, test) = Path(data_path), splits
    folders = {split: str(folder.relative_to(root)) for split, folder in find_splits(root, {}).items()}
    source = folders.get("train", "the class folders")
    texts = [f"{len(train)} training images from {source}"]
    if val is not None:
        is_given = folders.keys() >= {"val", "test"}
        texts.append(f"{len(val)} validation images " + (f"from {folders['val']}" if is_given else "held out of them"))
    chosen = folders.get("test") or folders.get("val")
    texts.append(f"{len(test)} test images {f'from {chosen}' if chosen else 'chosen by the content of the files'}")
    classes = f"{len(train.classes)} classes ({listed(train.classes, 20)})"
    print(folded(printable(f"{root}: {classes}; {', '.join(texts)}")), flush=True)
    seen = {image for split in (train, val) if split is not None for image in split.hashes.tolist()}
    warn_of_copies(test.hashes.tolist(), seen, root)
