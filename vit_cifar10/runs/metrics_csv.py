"""metrics.csv: one line of numbers per epoch."""

import csv
import itertools

from vit_cifar10.utils import limits
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write, read_text

EVALUATED_COLUMNS = ("val_loss", "val_accuracy", "test_loss", "test_accuracy")
COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "learning_rate", "images_per_second", "train_seconds", "gpu_memory_gb"),
    *EVALUATED_COLUMNS,
    "seconds",
)
MAY_BE_NONE = {"gpu_memory_gb", *EVALUATED_COLUMNS}  # not measured: an empty cell


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
    lines = text.splitlines()
    if len(lines) > 1 + limits.LARGEST_EPOCHS:
        raise ValueError("it has too many lines")
    is_cut = bool(lines) and not text.endswith("\n")
    try:
        rows = list(csv.DictReader(lines[:-1] if is_cut else lines))
        epochs = [{key: float(value) if value else None for key, value in row.items()} for row in rows]
        epochs = [{**metrics, "epoch": int(metrics["epoch"])} for metrics in epochs]
        if any(later["epoch"] <= earlier["epoch"] for earlier, later in itertools.pairwise(epochs)):
            raise ValueError("its epochs are not in order")
    except (csv.Error, KeyError, TypeError, OverflowError) as error:
        raise ValueError("it is not a table of metrics") from error
    return epochs, is_cut


def write_metrics(path, epochs):
    """Write metrics.csv with all `epochs`; without any, remove it. Raises `UserError` if it cannot be written."""
    if not epochs:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(epochs)


def append_metrics(path, metrics):
    """Append an epoch to metrics.csv. Raises `UserError` if it cannot be written."""
    try:
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(metrics)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); is the disk full?") from error
