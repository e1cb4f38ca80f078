"""Files and folders that are written atomically, and folders that one process holds at a time."""

import contextlib
import errno
import os
import platform
import re
import shutil
import tempfile
import zlib
from pathlib import Path

from vit_cifar10.utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).parents[2]  # of the repository, with its recipes and trained networks
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # part of the names of temporary files, as are process numbers
GIT_LFS = b"version https://git-lfs"  # the start of the placeholders of Git LFS


def check_is_downloaded(file):
    """Raise `UserError` if an open file is the placeholder that Git LFS leaves before it downloads the file itself."""
    if file.read(len(GIT_LFS)) == GIT_LFS:
        raise UserError(f"{file.name} is a placeholder of Git LFS, not the weights; get them with: git lfs pull")
    file.seek(0)


@contextlib.contextmanager
def atomic_write(path, previous=None):
    """Yield a temporary path to write to; it replaces `path` once it is complete.

    At any moment, even in a crash or a power cut, `path` is either the old file or the new one. With `previous`, the
    old file is kept under that name.

    Raises:
        UserError: the file cannot be written. The old file is kept and nothing else is left behind.
    """
    path = Path(path)
    partial, created = partial_path(path), [parent for parent in path.parents if not parent.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path)
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            if previous and path.exists():
                link_or_copy(path, path.with_name(previous))
            os.replace(partial, path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            remove_empty(created)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); choose a folder you may write to") from error


@contextlib.contextmanager
def atomic_folder(path):
    """Yield a temporary folder to fill; it becomes `path` once it is complete, or its files move there if that exists.

    Raises:
        UserError: the folder cannot be written. Nothing is left behind, also if the process is told to stop.
    """
    path = Path(path)
    partial, created = partial_path(path), []
    try:
        try:
            created += make_folder(path.parent)
            remove_abandoned(path)
            partial.mkdir()
            yield partial
            if path.exists():
                for file in partial.iterdir():
                    os.replace(file, path / file.name)
            else:
                os.rename(partial, path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            remove_empty(created)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); choose a folder you may write to") from error


def partial_path(path):
    """The temporary path at which this process writes what will be `path`. Writers look at the suffix."""
    return path.with_name(f".{path.stem}.{MACHINE}-{os.getpid()}.partial{path.suffix}")


def remove_abandoned(path):
    """Remove the temporary files that killed processes of this machine left while they wrote `path`, if possible."""
    pattern = re.compile(rf"\.{re.escape(path.stem)}\.{MACHINE}-(\d+)\.partial{re.escape(path.suffix)}")
    with contextlib.suppress(OSError):
        matches = list(filter(None, map(pattern.fullmatch, os.listdir(path.parent))))
        for match in matches:
            if int(match[1]) == os.getpid() or not is_running(int(match[1])):
                abandoned = path.with_name(match[0])
                shutil.rmtree(abandoned) if abandoned.is_dir() else abandoned.unlink(missing_ok=True)


def is_running(process):
    """Whether a process with this number exists; True on Windows, where this is not checked."""
    if os.name != "posix":  # on Windows, os.kill ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        pass
    return True


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
    """Remove all temporary files of files with these names. Only the process that holds the folder may do this."""
    for name in names:
        for file in folder.glob(f".{Path(name).stem}.*{Path(name).suffix}"):
            if file.is_file():
                file.unlink(missing_ok=True)


def check_outputs(outputs, inputs, image_folders=()):
    """Check that no output is one of the files `inputs`, or lies in a folder of images, which it would change.

    A file is recognized under all its names: through links, and in any letter case that the file system accepts.

    Raises:
        UserError: an output would overwrite an input, or become a part of a data set.
    """
    for output in outputs:
        if any(is_same_path(output, path) for path in inputs):
            raise UserError(f"{output} would be overwritten, but the command reads it; choose another output file")
        for folder in image_folders:
            if is_inside(output, folder):
                raise UserError(f"{output} would be written among the images in {folder}; choose another folder")


def is_same_path(one, other):
    """Whether two paths lead to the same file or folder, which need not exist."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def is_inside(path, folder):
    """Whether a path leads to a folder or to a place below it."""
    real = Path(os.path.realpath(path))
    return any(is_same_path(place, folder) for place in (real, *real.parents))


def read_text(path, longest):
    """The text in a file of at most `longest` bytes.

    Raises:
        OSError: there is no such file, it is too long, or it is not a regular file. Reading from a pipe could wait
            forever.
        ValueError: it is not text.
    """
    if path.exists() and not (path.is_file() and path.stat().st_size <= longest):
        raise OSError(errno.EINVAL, "not a regular file, or too long", str(path))
    return path.read_text("utf-8-sig")  # Windows editors start a file with a byte-order mark


def make_folder(path, new=False):
    """Create a folder and check that it can be written to. With `new`, it must not exist yet.

    Returns:
        The folders that did not exist and were created by this process: this one and those that contain it.

    Raises:
        UserError: it cannot be created or written to. No new folder is left behind.
    """
    created = []
    try:
        for parent in reversed(path.parents):
            if not parent.is_dir():
                with contextlib.suppress(FileExistsError):  # another process was faster
                    parent.mkdir()
                    created.append(parent)
        try:
            path.mkdir()
            created.append(path)
        except FileExistsError:
            if new or not path.is_dir():
                raise
        with tempfile.TemporaryFile(dir=path):
            pass
    except BaseException as error:  # also a signal
        remove_empty(created)
        if not isinstance(error, OSError):
            raise
        if isinstance(error, FileExistsError):
            advice = "already exists; choose another --run_name" if new else "is a file; choose a folder"
            raise UserError(f"{path} {advice}") from error
        raise UserError(f"cannot write to {path} ({error.strerror}); choose a folder you may write to") from error
    return created


@contextlib.contextmanager
def output_folder(path):
    """`make_folder`, and remove it in the end if nothing was written to it."""
    created = make_folder(path)
    try:
        yield
    finally:
        remove_empty(created)


def remove_empty(folders):
    """Remove the folders that are empty, deepest first."""
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with contextlib.suppress(OSError):  # it is not empty
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
        raise UserError(f"{folder} is in use by another training; wait until it ends or choose another name") from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked_folder(lock, folder):
    """Whether the folder at a path is the one that `lock_folder` has locked, not one that has replaced it."""
    if lock is None:  # the system cannot tell
        return True
    try:
        return os.path.samestat(os.fstat(lock), os.stat(folder))
    except OSError:
        return False
