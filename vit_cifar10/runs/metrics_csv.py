"""metrics.csv: one line of numbers per epoch.

Its columns are the keys of the metrics that train.py logs. A metric that was not measured is None, an empty cell; a
column that a run does not have counts as not measured.
"""

import contextlib
import csv
import io
import itertools

from vit_cifar10.utils import limits
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write, read_text

EVALUATED_COLUMNS = ("val_loss", "val_accuracy", "test_loss", "test_accuracy")


def is_evaluated(metrics):
    """Whether the network was evaluated after the epoch of these metrics; `--eval_every` leaves out some."""
    return metrics.get("test_accuracy") is not None


def read_metrics(path):
    """Read metrics.csv.

    Returns:
        The epochs, one {column: number or None} each, and whether the last line was dropped because it was cut off, for
        example by a crash.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    text = read_text(path, longest=300 * limits.LARGEST_EPOCHS)
    is_cut = bool(text) and not text.endswith("\n")
    try:
        rows = read_rows(text[: text.rfind("\n") + 1] if is_cut else text)
        epochs = [{key: float(value) if value else None for key, value in row.items()} for row in rows]
        epochs = [{**metrics, "epoch": int(metrics["epoch"])} for metrics in epochs]
        if any(later["epoch"] <= earlier["epoch"] for earlier, later in itertools.pairwise(epochs)):
            raise ValueError("its epochs are not in order")
    except (csv.Error, KeyError, TypeError, OverflowError) as error:
        raise ValueError("it is not a table of metrics") from error
    return epochs, is_cut


def read_rows(text):
    """The lines of a table, {column: text} each. Raises `csv.Error` or `ValueError` if it is not one, or too large."""
    lines = csv.reader(io.StringIO(text, newline=""))
    columns = next(lines, [])
    if len(columns) > limits.MOST_COLUMNS:
        raise ValueError(f"it has more than {limits.MOST_COLUMNS} columns")
    rows = []
    for number, cells in enumerate(lines):
        if number == limits.LARGEST_EPOCHS or number * len(columns) > limits.MOST_CELLS:
            raise ValueError("it has too many lines")
        if len(cells) > len(columns):
            raise csv.Error("a line is longer than the first one")
        if cells:
            rows.append(dict(zip(columns, cells, strict=False)))
    return rows


def write_metrics(path, epochs):
    """Write metrics.csv with all `epochs`; without any, remove it. Raises `UserError` if it cannot be written."""
    if not epochs:
        path.unlink(missing_ok=True)
        return
    columns = dict.fromkeys(column for metrics in epochs for column in metrics)
    with atomic_write(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(epochs)


def append_metrics(path, epochs):
    """Append the last of `epochs` to metrics.csv, or write all of them again if it has a column that the file lacks.

    Raises:
        UserError: the file cannot be written.
    """
    columns = []
    with contextlib.suppress(FileNotFoundError, ValueError, csv.Error), open(path, newline="") as file:
        columns = next(csv.reader(file), [])
    if not epochs[-1].keys() <= set(columns):
        write_metrics(path, epochs)
        return
    try:
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, columns).writerow(epochs[-1])
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); is the disk full?") from error
