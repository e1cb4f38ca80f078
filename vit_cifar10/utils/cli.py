"""Command lines: flags, recipes, and one-line error messages."""

import argparse
import codecs
import contextlib
import dataclasses
import errno
import functools
import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path

from vit_cifar10 import end_on_ctrl_c
from vit_cifar10.utils import limits
from vit_cifar10.utils.errors import LocalError, UserError
from vit_cifar10.utils.files import ROOT
from vit_cifar10.utils.text import one_line, shorten

SIZES_OF_JOBS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # set by PyTorch, Slurm's srun, mpirun

SHORT_NAMES = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay"}  # usual elsewhere


def command(main):
    """Decorate a script's `main(argv)` so that it reports errors as a user expects.

    A `UserError`, or a file that the system refuses to open or write, prints one line to standard error and exits
    with status 2. Ctrl-C exits with 130, a closed pipe (`| head`) with 141, and a signal that ends the process with 128
    + its number, after the command has removed what is half-written. Any other exception is a bug and keeps its
    traceback. The line begins with the name of the file that defines `main`.
    """

    @functools.wraps(main)
    def run(argv=None):
        open_closed_streams()
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as the scripts set it while they import
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # names may not fit the terminal's encoding
        try:
            with exit_on_signals():
                result = main(argv)
            sys.stdout.flush()  # here, errors are still reported
            return result
        except BrokenPipeError:
            _drop_unwritable_output()
            sys.exit(141)
        except UserError as error:
            if isinstance(error, LocalError) or is_rank0():
                _print_error(main, error)
            sys.exit(2)
        except OSError as error:
            if error.filename is None and error.errno not in (errno.ENOSPC, errno.EIO):
                raise
            _print_error(main, error)
            _drop_unwritable_output()
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return run


@contextlib.contextmanager
def exit_on_signals():
    """Raise `SystemExit` when a scheduler or a closed terminal ends the process, so that it cleans up."""

    def stop(number, _):
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()  # Python handles signals only there
    numbers = [number for number in numbers if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def check_flags_first(parse):
    """Answer --help, and report mistakes in the flags, before a script imports PyTorch, which takes seconds.

    `parse` reads and checks the flags; `main` does so again. Under torchrun, this is left to `main`: only rank 0 reads
    the flags, and the others must learn how it went.
    """
    if not is_under_torchrun():
        command(parse)()
    end_on_ctrl_c()  # `command` has ended this


def open_closed_streams():
    """Open the null device as standard input, output or error, for each of them that is closed (as by `2>&-`).

    Otherwise the next file that is opened, such as a checkpoint, would get this descriptor, and messages would be
    written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))


def _drop_unwritable_output():
    """Redirect standard output to the null device if it cannot be written to.

    Otherwise Python would fail when it flushes it at exit.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(main, error):
    script = main.__globals__["__file__"].replace("\\", "/").rsplit("/", 1)[-1]
    with contextlib.suppress(OSError):  # nobody reads standard error anymore
        print(f"{script}: error: {shorten(one_line(error), longest=1_000)}", file=sys.stderr)


def is_rank0():
    """Whether this is the only process, or the first of the processes that torchrun started."""
    return not is_under_torchrun() or os.environ["RANK"] == "0"


def is_under_torchrun():
    """`torch.distributed.is_torchelastic_launched`, without PyTorch."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def check_launcher():
    """Raise `UserError` if this is one of several processes that another program than torchrun has started.

    Otherwise each of them would train a network of its own.
    """
    sizes = {name: os.environ.get(name, "1") for name in SIZES_OF_JOBS}
    name = next((name for name, size in sizes.items() if size != "1"), None)
    if name and not is_under_torchrun():
        raise UserError(
            f"{name}={sizes[name]} says that this is one of several processes, but only torchrun starts processes that"
            f" train one network: torchrun --nproc_per_node=N train.py ...; to train in each one alone, set {name}=1"
        )


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in the help, one-line errors, and recipes: `@file` arguments with comments.

    A recipe, given as `@recipes/NAME.txt`, is a text file of flags as typed on the command line, several to a line,
    with `#` comments. Flags that follow it on the command line override it.
    """

    def __init__(self, **options):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def convert_arg_line_to_args(self, line):
        line = line.replace("\t", " ")
        if not line.isprintable():
            raise UserError(f"a recipe is a text file of flags, but this one contains {line[:20]!r}; check the name")
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True)
        lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""  # keep backslashes in Windows paths
        arguments = list(lexer)
        if any(argument.startswith("@") for argument in arguments):
            raise UserError("a recipe cannot include another recipe; give both on the command line")
        return arguments

    def parse_args(self, args=None, namespace=None):
        typed = []
        for argument in command_line() if args is None else args:
            is_recipe = self.fromfile_prefix_chars and argument.startswith("@")
            typed += self.read_recipe(argument[1:]) if is_recipe else [argument]
        if (
            is_under_torchrun()
        ):  # as torch.distributed.launch starts it, too, with a flag for what the environment tells
            typed = [argument for argument in typed if not re.fullmatch(r"--local[-_]rank=\d+", argument)]
        return super().parse_args(typed, namespace)

    def read_recipe(self, name):
        """The flags in a recipe, a file here or in the repository.

        It is in UTF-8, whatever the locale says, or in UTF-16 from a Windows shell.
        """
        path = next(filter(Path.is_file, (Path(os.path.expanduser(name)), ROOT / name)), None)
        if path is None:
            raise UserError(f"there is no recipe {name}; give a text file of flags after the @")
        content = path.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            lines = content.decode("utf-16" if is_utf16 else "utf-8-sig").splitlines()
            return [argument for line in lines for argument in self.convert_arg_line_to_args(line)]
        except ValueError as error:
            advice = "; save it as text in UTF-8" if isinstance(error, UnicodeError) else ""
            raise UserError(f"the recipe cannot be read as flags ({error}){advice}") from error

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (?:[^-]\S* )*--?([\w-]+)", message)
        raise UserError(f"{message}{self.similar_flag(unknown[1]) if unknown else ''} (--help lists the flags)")

    def similar_flag(self, name):
        """The question whether a similar flag was meant; an empty text if there is none."""
        import difflib  # only here because --help and correct flags do not need it

        name = name.lower().replace("-", "_")
        flags = [flag.removeprefix("--") for flag in self._option_string_actions if flag.startswith("--")]
        similar = difflib.get_close_matches(SHORT_NAMES.get(name, name), flags, n=1)
        return f"; did you mean --{similar[0]}?" if similar else ""


def command_line():
    """The arguments of this process, without those of the kernel of a notebook (`-f kernel.json`)."""
    return [] if sys.argv[0].endswith("kernel_launcher.py") else sys.argv[1:]


class _HelpFormatter(argparse.HelpFormatter):
    """Adds each flag's default to its help, unless the help mentions it or the flag is a switch."""

    def _get_help_string(self, action):
        is_silent = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        if is_silent or "default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


@dataclasses.dataclass(frozen=True)
class Number:
    """Whole or finite numbers within bounds, and not between 0 and `smallest`.

    It is an argparse type, and describes entries of a file in runs/schema.py.
    """

    kind: type  # int or float
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    at_most: float | None = None
    smallest: float | None = None

    @property
    def __name__(self):
        return "whole number" if self.kind is int else "number"

    @property
    def name(self):
        """The numbers in words, such as "a whole number from 1 to 9"."""
        words = {"from": self.at_least, "above": self.above, "to": self.at_most, "to below": self.below}
        bounds = [f"{word} {value:,.15g}" for word, value in words.items() if value is not None]
        return " ".join([f"a {'whole' if self.kind is int else 'finite'} number", *bounds])

    def holds(self, value):
        """Whether a value of any type is such a number."""
        is_number = isinstance(value, int if self.kind is int else int | float) and not isinstance(value, bool)
        return is_number and self.broken_bound(value) is None

    def broken_bound(self, value):
        """What a number outside the bounds should be, such as "at least 1"; None for others."""
        bounds = {
            f"at least {self.at_least}": self.at_least is None or value >= self.at_least,
            f"above {self.above}": self.above is None or value > self.above,
            f"at most {self.at_most}": self.at_most is None or value <= self.at_most,
            f"below {self.below}": self.below is None or value < self.below,
            f"0 or at least {self.smallest}": self.smallest is None or not 0 < value < self.smallest,
            "finite": abs(value) <= sys.float_info.max,
        }
        return next((bound for bound, is_kept in bounds.items() if not is_kept), None)

    def __call__(self, text):
        value = self.kind(text)
        bound = self.broken_bound(value)
        if bound:
            raise argparse.ArgumentTypeError(f"{text} is out of range; it must be {bound}")
        return value


def not_empty(text):
    """An argparse type: text, such as the name of a file, that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("its value is empty; give one, or leave out the flag")
    return text


def path(text):
    """An argparse type: a path, or the name of a run. `~` is the user's home, even if the shell has left it."""
    return os.path.expanduser(not_empty(text))


POSITIVE_INT = Number(int, at_least=1, at_most=limits.LARGEST_COUNT)
NON_NEGATIVE_INT = Number(int, at_least=0, at_most=limits.LARGEST_COUNT)
SIZE = Number(int, at_least=1, at_most=limits.LARGEST_SIZE)
WORKERS = Number(int, at_least=0, at_most=limits.LARGEST_WORKERS)
POSITIVE = Number(float, above=0, at_most=limits.LARGEST_RATE)
NON_NEGATIVE = Number(float, at_least=0, at_most=limits.LARGEST_RATE)
ALPHA = Number(float, at_least=0, at_most=limits.LARGEST_RATE, smallest=limits.SMALLEST_ALPHA)
FRACTION = Number(float, at_least=0, below=1)
PROBABILITY = Number(float, at_least=0, at_most=1)
