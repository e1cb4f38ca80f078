"""The machine: device, precision, seeds, command lines, files written whole, and errors that a user can act on."""

import argparse
import contextlib
import errno
import functools
import importlib.util
import math
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong and what to do."""


class LocalError(UserError):
    """One that befalls one process of several, which says so itself; others befall all, and the first speaks."""


def command(main):
    """Decorate a script's `main(argv)`: a `UserError` ends it with one line on standard error and exit status 2.

    So does a file that the system refuses. Ctrl-C ends it with status 130, a reader that is gone (`| head`) with 141.
    Everything else is a bug and keeps its traceback.
    """

    @functools.wraps(main)
    def run(argv=None):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # of names that the terminal's encoding does not know
        try:
            return main(argv)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more can be said there
            sys.exit(141)
        except (UserError, OSError) as error:
            is_own = not isinstance(error, UserError)
            if is_own and error.filename is None and error.errno not in (errno.ENOSPC, errno.EIO):
                raise
            if is_own or isinstance(error, LocalError) or not is_later_process():
                script = main.__globals__["__file__"].replace("\\", "/").rsplit("/", 1)[-1]
                line = " ".join(str(error).split())
                print(f"{script}: error: {line}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return run


def printable(text):
    """A name that may come from anywhere, fit for a terminal and a picture: nothing in it but printable characters."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def is_later_process():
    """Whether torchrun has started this process, and it is not the job's first."""
    return torch.distributed.is_torchelastic_launched() and os.environ["RANK"] != "0"


@contextlib.contextmanager
def explaining_memory(advice):
    """Turns running out of memory, on whatever device, into a `LocalError` that ends in `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch's OutOfMemoryError is a RuntimeError
        if not (isinstance(error, MemoryError) or re.search(r"out of memory|allocate memory", str(error), re.I)):
            raise
        raise LocalError(f"out of memory; {advice}") from error


def physical_memory():
    """Bytes of memory this machine has; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf


def pick_device(name):
    """The torch.device for `auto`, `cpu`, `cuda` or `mps`; auto is the first there is of cuda, mps and cpu.

    Raises:
        UserError: this machine, or this build of PyTorch, has no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = " or ".join(device for device, is_there in available.items() if is_there)
        raise UserError(f"--device {name} is not available here; use --device {there} (or auto)")
    return torch.device(name)


def has_fast_bf16(device):
    """Whether matrix products are faster in bf16: CUDA cards from Ampere on, processors with AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def pick_precision(name, device):
    """The precision that `auto` means on a device: bf16 where it is fast, fp16 on older CUDA cards, else fp32."""
    if name != "auto":
        return name
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def autocast(device, precision):
    """The context in which a forward pass runs in `fp32`, `bf16` or `fp16`."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def pick_compile(name, device):
    """Whether to compile the network: `on`, `off`, or `auto`, which is on for CUDA cards where it can work."""
    if name != "auto":
        return name == "on"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return importlib.util.find_spec("triton") is not None and compiler is not None


def seed_everything(seed):
    """Seed every random generator in use: Python's, NumPy's and PyTorch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed, device):
    """Seed the generators that a training step draws from: PyTorch's of the CPU and of a device, and NumPy's.

    `torch.manual_seed` seeds those of all devices, which takes longer than the draws of a step.
    """
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def synchronize(device):
    """Wait for the device to finish, so that a clock read next counts work that is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_label(device):
    """The device's name as a person would say it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextlib.contextmanager
def replacing(path, previous=None):
    """Yield a path to write instead of `path`; the file takes its place only when it is written whole.

    At every moment, also of a crash or a power cut, `path` is the old file or the new one. The old one stays under the
    name `previous`, if one is given.

    Raises:
        UserError: it cannot be written there. What was there before is kept, and nothing else is left behind.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # the suffix stays: writers go by it
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            if previous and path.exists():
                also_as(path, path.with_name(previous))
            os.replace(partial, path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); choose a folder you may write to") from error


def also_as(path, other):
    """Make `other` another name of a file, or a copy where there are no second names, whole at every moment."""
    with replacing(other) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)


def _sync_folder(folder):
    """Have a folder's new names on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partial(folder, names):
    """Remove what writing files of these names has left in a folder when it was killed."""
    for name in map(Path, names):
        for file in folder.glob(f".{name.stem}.*{name.suffix}"):
            file.unlink(missing_ok=True)


def lock_folder(folder):
    """Keep others from locking a folder until this process ends or closes the descriptor that is returned.

    None where the system or the file system knows no such locks.

    Raises:
        UserError: another process has locked it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"another training is at work in {folder}; wait for its end or choose another name") from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def save_tensors(path, value, previous=None):
    """`torch.save`, whole or not at all, as `replacing` does it. Raises `UserError` if it cannot be written."""
    try:
        with replacing(path, previous) as partial:
            torch.save(value, partial)
    except RuntimeError as error:  # how PyTorch's writer says that the disk is full
        raise UserError(f"cannot write {path}; is the disk full?") from error


def make_folder(path, new=False):
    """Make a folder, which must not exist if it is to be `new`, and try it out by writing to it.

    Raises:
        UserError: that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=not new)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError as error:
        advice = "exists already; choose another --run_name" if new else "is a file; choose a folder"
        raise UserError(f"{path} {advice}") from error
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); choose a folder you may write to") from error


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in the help, one-line errors, and recipes: `@file` arguments that take comments.

    A file named as `@recipes/NAME.txt` holds flags as one would type them, several a line, with `#` comments; flags
    after it on the command line win.
    """

    def __init__(self, **options):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def convert_arg_line_to_args(self, line):
        line = line.removeprefix("\ufeff").replace("\t", " ")  # editors on Windows begin a text with that mark
        if not line.isprintable():
            raise UserError(
                f"a recipe is a text file of flags, but here is {line[:20]!r}; name another file after the @"
            )
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True)
        lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""  # a backslash is a Windows path's
        arguments = list(lexer)
        if any(argument.startswith("@") for argument in arguments):
            raise UserError("a recipe cannot include another; name both on the command line")
        return arguments

    def parse_args(self, args=None, namespace=None):
        for argument in sys.argv[1:] if args is None else args:
            if self.fromfile_prefix_chars and argument.startswith("@") and not Path(argument[1:]).is_file():
                raise UserError(f"there is no recipe {argument[1:]}; name a text file of flags after the @")
        try:
            return super().parse_args(args, namespace)
        except ValueError as error:
            raise UserError(f"a recipe cannot be read as flags ({error})") from error

    def error(self, message):
        raise UserError(f"{message} (--help lists the flags)")


class _HelpFormatter(argparse.HelpFormatter):
    """Says a flag's default, unless its help line does so itself or it is a mere switch."""

    def _get_help_string(self, action):
        silent = any(action.default is value for value in (None, False, argparse.SUPPRESS)) or "default" in action.help
        return action.help if silent else f"{action.help} (default: %(default)s)"


def number(kind, at_least=None, above=None, below=None, at_most=None):
    """An argparse type: an int or a float within bounds."""

    def parse(text):
        value = kind(text)
        for wrong, bound in (
            (at_least is not None and not value >= at_least, f"at least {at_least}"),
            (above is not None and not value > above, f"above {above}"),
            (at_most is not None and not value <= at_most, f"at most {at_most}"),
            (below is not None and not value < below, f"below {below}"),
            (value in (math.inf, -math.inf), "finite"),
        ):
            if wrong:
                raise argparse.ArgumentTypeError(f"{text} is not possible, it must be {bound}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse
