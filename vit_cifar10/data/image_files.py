"""Find image files, without decoding them.

    splits = find_splits(root, skipped)                         # {"train": folder, "test": folder}, or {}
    by_class = list_images(folder, root, skipped)               # {"cat": [path, ...], "dog": [path, ...]}
    files, labels = files_and_labels(by_class)

Links that lead out of a folder of images are not followed, because the folder may be untrusted. `skipped`, from
`reporting`, collects what is left out.
"""

import contextlib
import os
import stat
import sys
from pathlib import Path

from vit_cifar10.data.tables import DATASETS
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.text import one_line, printable

SPLITS = {  # the usual names of the folders of each split, in any letter case
    "train": {"train", "training", "train_set", "training_set", "train_images", "seg_train"},
    "val": {"val", "valid", "validation", "val_set", "validation_set", "val_images", "dev"},
    "test": {"test", "testing", "test_set", "testing_set", "test_images", "seg_test", "evaluation"},
}
SYSTEM_NAMES = {  # files and folders that systems and cloud drives add; hidden ones begin with a dot
    *("__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "icon_", "@eadir"),
    *("$recycle.bin", "system volume information", "lost+found", "__pycache__", "#recycle"),
}
FEW = 5  # of one kind, which are reported one by one


def check_image_file(path):
    """Raise `UserError` unless `path` leads to a file. It may still not be an image."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"there is no image {path} ({getattr(error, 'strerror', error)}); check the path") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder, not an image; give the path of an image file")
    if not stat.S_ISREG(mode):  # reading from a pipe could wait forever
        raise UserError(f"{path} is not a regular file; give the path of an image file")


def image_folders(dataset, data_path):
    """The folders with the images of a user's own data set; none for other data sets."""
    if not DATASETS[dataset].is_own:
        return []
    root = Path(data_path)
    splits = find_splits(root, {}) if root.is_dir() else {}
    return [*splits.values()] or [root]


def find_splits(root, skipped):
    """The folders of the splits of a folder of images, {"train", "val" or "test": folder}.

    It is empty if the class folders are at the top. A folder with the name of a split is one if it contains class
    folders; a test or validation folder without any, such as a competition's, is left out.

    Raises:
        UserError: there is no such folder, or two folders are the same split.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; unpack it, and set --data_path to a folder with one sub-folder per class")
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; set --data_path to a folder with one sub-folder per class")
    named = [entry for entry in sorted(root.iterdir()) if split_named(entry.name) and entry.is_dir()]
    splits = {}
    for entry in named:  # such as train/, seg_train/seg_train/, or a link to another disk
        split, folder = split_named(entry.name), _inner_split(entry)
        if _folders_in(folder, root, {}):
            if split in splits:
                raise UserError(f"{splits[split]} and {folder} both hold {split} images by their names; rename one")
            splits[split] = folder
    for split in {"val", "test"} & splits.keys() if "train" in splits else ():
        classes, others = (_class_names(splits[name], root) for name in ("train", split))
        if len(others) == 1 and not others & classes:  # such as test/images/
            del splits[split]
    kept = [folder.relative_to(root).parts[0] for folder in splits.values()]
    for entry in (entry for entry in _folders_in(root, root, {}) if splits and entry.name not in kept):
        text = "has no class folders" if entry in named else f"is none of the splits ({', '.join(kept)})"
        _skip(skipped, "folders besides the splits", f"{entry} {text}, so its images are left out")
    return splits


def list_images(folder, root, skipped, at_least=2):
    """List the files of each class: {name of a sub-folder of `folder`: sorted paths of the files in it}.

    Folders that cannot be read, broken links, links to folders within a class, and links that lead out of both `folder`
    and `root` are skipped, and so are, silently, hidden and systems' files and folders. A class may have no files.

    Raises:
        UserError: there is no such folder, it has fewer than `at_least` sub-folders, or the names of two sub-folders
            look the same when they are printed.
    """
    folders = _folders_in(folder, root, skipped)
    unlabelled = [entry for entry in folders if folder == root and split_named(entry.name) in ("val", "test")]
    if len(folders) - len(unlabelled) >= max(2, at_least):  # otherwise, they are classes with unusual names
        folders = [entry for entry in folders if entry not in unlabelled]
        for entry in unlabelled:
            _skip(skipped, "unlabelled folders", f"{entry} has no class folders, so its images are left out")
    if folder == root and folders and all(split_named(entry.name) for entry in folders):
        names = " and ".join(entry.name for entry in folders)
        raise UserError(f"{names} in {folder} need a sub-folder per class; sort the images into class folders")
    inner = [entry for entry in folders if len(_folders_in(entry, root, {})) > 1] if len(folders) < 2 else []
    if len(folders) < at_least or (inner and folder == root):
        advice = f"set --data_path to {inner[0]}" if inner else "add a sub-folder per class"
        raise UserError(f"{folder} has {len(folders)} class folders, but needs at least {max(2, at_least)}; {advice}")
    _check_printed_names([class_name(entry.name) for entry in folders], folder)
    return {class_name(entry.name): list_files(entry, (root, folder), skipped) for entry in folders}


def files_and_labels(by_class):
    """The files of all classes in one list, and a list of their labels. Labels number the classes from 0."""
    files = [file for members in by_class.values() for file in members]
    return files, [label for label, members in enumerate(by_class.values()) for _ in members]


def class_name(name):
    """The name of a class from the name of its folder, which systems store as UTF-8 whatever the locale says."""
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return name


_reported = set()  # everything is reported once, although training and test images are listed separately


@contextlib.contextmanager
def reporting():
    """A dict {kind: [text]} that collects what is skipped. At the end, it is reported on standard error.

    A few files of a kind take a line each, more of them one line together.
    """
    skipped = {}
    try:
        yield skipped
    finally:
        for kind, texts in skipped.items():
            new = [text for text in dict.fromkeys(texts) if text not in _reported]
            _reported.update(new)
            if len(new) > FEW:
                new = [f"{len(new)} {kind}, for example: {new[0]}"]
            for text in new:
                print(f"skipped: {one_line(text)}", file=sys.stderr)


def _skip(skipped, kind, text):
    skipped.setdefault(kind, []).append(text)


def split_named(name):
    """The split that usually has this name, or None."""
    plain = name.lower().replace(" ", "_").replace("-", "_")
    return next((split for split, names in SPLITS.items() if plain in names), None)


def _inner_split(folder):
    """The folder of a split, which some archives contain twice, as in seg_train/seg_train/."""
    split = split_named(folder.name)
    while len(inner := _folders_in(folder, folder, {})) == 1 and split_named(inner[0].name) == split:
        folder = inner[0]
    return folder


def _class_names(folder, root):
    return {class_name(entry.name) for entry in _folders_in(folder, root, {})}


def is_systems(name):
    """Whether a file or folder is hidden, or one that a system has added, and so belongs to no data set."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _folders_in(folder, root, skipped):
    """The sub-folders of a folder that may be read, sorted by name. Raises `UserError` if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; set --data_path to a folder with one sub-folder per class")
    folders = []
    for entry in sorted(folder.iterdir()):
        if is_systems(entry.name):
            continue
        if entry.is_symlink() and not os.path.exists(entry):
            _skip(skipped, "broken links", f"{entry} is a broken link")
        elif entry.is_dir() and _may_follow(entry, (root, folder), skipped):
            folders.append(entry)
    return folders


def list_files(folder, roots, skipped):
    """The files in a folder and in all folders below it, sorted. Links may lead to any place inside one of `roots`."""
    files, folders = [], [folder]
    for parent in folders:  # grows in the loop; recursion could become too deep
        try:
            for entry in os.scandir(parent):
                if is_systems(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    _skip(skipped, "links to folders", f"{entry.path} is a link to a folder")
                elif _may_follow(entry.path, roots, skipped):
                    files.append(entry.path)
        except OSError as error:
            _skip(skipped, "folders that cannot be read", f"{parent} cannot be read ({error.strerror})")
    return sorted(files)


def _may_follow(path, roots, skipped):
    """Whether a path is not a link, or is a link that may be followed. Any other link is reported."""
    if not os.path.islink(path):
        return True
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(os.path.realpath(root)) for root in roots):
        text = f"{path} is a link that leads out of {roots[0]}; replace it with a copy of its target"
        _skip(skipped, "links that lead out of the folder of images", text)
        return False
    if Path(os.path.realpath(os.path.dirname(path))).is_relative_to(target):
        _skip(skipped, "links to folders", f"{path} is a link to a folder that contains the link")
        return False
    return True


def _check_printed_names(names, folder):
    """Raise `UserError` if two class names become the same text when characters that cannot be printed are replaced."""
    printed = {}
    for name in names:
        other = printed.setdefault(printable(name), name)
        if other != name:
            raise UserError(
                f"the class folders {other!r} and {name!r} in {folder} look the same when printed; rename one"
            )
