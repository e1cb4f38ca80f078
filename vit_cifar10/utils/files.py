"""Files that are written completely or not at all, and folders that one process holds at a time."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import torch

from vit_cifar10.utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def atomic_write(path, previous=None):
    """Yield a temporary path to write to; it replaces `path` once it is complete.

    At any moment, even in a crash or a power cut, `path` is either the old file or the new one. With `previous`, the
    old file is kept under that name.

    Raises:
        UserError: the file cannot be written. The old file is kept and nothing else is left behind.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # writers look at the suffix
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            if previous and path.exists():
                link_or_copy(path, path.with_name(previous))
            os.replace(partial, path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); choose a folder you may write to") from error


def link_or_copy(path, other):
    """Make `other` a hard link to a file, or a copy where the file system has no hard links, in one step."""
    with atomic_write(other) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)


def _sync_folder(folder):
    """Flush a folder's entries to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partial(folder, names):
    """Remove temporary files that a killed process left while it wrote files with these names."""
    for name in map(Path, names):
        for file in folder.glob(f".{name.stem}.*{name.suffix}"):
            file.unlink(missing_ok=True)


def save_tensors(path, value, previous=None):
    """`torch.save`, completely or not at all; see `atomic_write`. Raises `UserError` if it cannot be written."""
    try:
        with atomic_write(path, previous) as partial:
            torch.save(value, partial)
    except RuntimeError as error:  # PyTorch's writer reports a full disk this way
        raise UserError(f"cannot write {path}; is the disk full?") from error


def make_folder(path, new=False):
    """Create a folder and check that it can be written to. With `new`, it must not exist yet.

    Raises:
        UserError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=not new)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError as error:
        advice = "already exists; choose another --run_name" if new else "is a file; choose a folder"
        raise UserError(f"{path} {advice}") from error
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); choose a folder you may write to") from error


def remove_empty(folders):
    """Remove the folders that are empty, deepest first."""
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def lock_folder(folder):
    """Lock a folder until this process ends or closes the returned descriptor.

    Returns None where the system or the file system has no such locks.

    Raises:
        UserError: another process holds the lock.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(
            f"another training is running in {folder}; wait until it ends or choose another name"
        ) from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
