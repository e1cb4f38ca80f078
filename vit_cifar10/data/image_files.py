"""Find image files, without reading them.

    by_class = list_images(folder, root)                        # {"cat": [path, ...], "dog": [path, ...]}
    files, labels = files_and_labels(by_class)

Links that lead out of a folder of images are not followed, because the folder may be untrusted.
"""

import functools
import os
import stat
import sys
from pathlib import Path

from vit_cifar10.data.tables import DATASETS
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.text import one_line, printable


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
    splits = [Path(data_path) / name for name in ("train", "test", "val")]
    return splits if splits[0].is_dir() else [Path(data_path)]


def list_images(folder, root):
    """List the files of each class: {name of a sub-folder of `folder`: sorted paths of the files in it}.

    Folders that cannot be read, broken links, links to folders within a class, and links that lead out of both `folder`
    and `root` are skipped and reported on standard error. Hidden files and folders are skipped silently. A class may
    have no files.

    Raises:
        UserError: there is no such folder, it has fewer than two sub-folders, or the names of two sub-folders look the
            same when they are printed.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; set --data_path to a folder with one sub-folder per class")
    by_class = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not os.path.exists(entry):
            report_skipped(f"{entry} is a broken link")
        elif entry.is_dir() and _may_follow(entry, (root, folder)):
            by_class[entry.name] = _list_files(entry, (root, folder))
    if len(by_class) < 2:
        raise UserError(f"{folder} has {len(by_class)} class folders, but needs at least 2; add a sub-folder per class")
    _check_printed_names(by_class, folder)
    return by_class


def files_and_labels(by_class):
    """The files of all classes in one list, and a list of their labels. Labels number the classes from 0."""
    files = [file for members in by_class.values() for file in members]
    return files, [label for label, members in enumerate(by_class.values()) for _ in members]


@functools.cache  # reports everything once, although training and test images are listed separately
def report_skipped(reason):
    """Report on standard error, in one line, what is skipped and why."""
    print(f"skipped: {one_line(reason)}", file=sys.stderr)


def _list_files(folder, roots):
    """The files in a folder and in all folders below it, sorted. Links may lead to any place inside one of `roots`."""
    files, folders = [], [folder]
    for parent in folders:  # grows in the loop; recursion could become too deep
        try:
            for entry in os.scandir(parent):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    report_skipped(f"{entry.path} is a link to a folder")
                elif _may_follow(entry.path, roots):
                    files.append(entry.path)
        except OSError as error:
            report_skipped(f"{parent} cannot be read ({error.strerror})")
    return sorted(files)


def _may_follow(path, roots):
    """Whether a path is not a link, or is a link that may be followed. Any other link is reported."""
    if not os.path.islink(path):
        return True
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(os.path.realpath(root)) for root in roots):
        report_skipped(f"{path} is a link that leads out of {roots[0]}; replace it with a copy of its target")
        return False
    if Path(os.path.realpath(os.path.dirname(path))).is_relative_to(target):
        report_skipped(f"{path} is a link to a folder that contains the link")
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
