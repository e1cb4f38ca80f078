"""Checks that make untrusted checkpoints safe to load: only tensors and plain values are accepted.

`check_checkpoint_archive` runs before PyTorch reads the file. `check_values` and `check_training` run before anything
is built from it. Nothing in a file is executed, and loading takes no more memory than the file's own size.
"""

import pickletools
import sys
import zipfile

import torch

from vit_cifar10.data.dataset import DATASETS
from vit_cifar10.runs.metrics_csv import COLUMNS, MAY_BE_NONE
from vit_cifar10.utils.errors import UserError

# The only functions that a checkpoint may call: those that PyTorch needs to rebuild tensors.
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
GLOBALS |= {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte")}
CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")  # pickle opcodes
LARGEST_PICKLE = 20_000_000  # bytes without the tensors; a run of a thousand epochs needs about 1 % of this
LARGEST_SIZE = 100_000  # largest number in model_config: no network needs more, and the meta device handles it quickly
LARGEST_DEPTH = 1_000
KEYS = {
    "format": int,
    "model_config": dict,
    "weights": dict,
    "classes": list,
    "mean": list,
    "std": list,
    "dataset": str,
    "epoch": int,
    "metrics": dict,
    "recipe": dict,
}
TRAINING_KEYS = {
    "step": int,
    "sums": torch.Tensor,
    "seconds": list,
    "timed_steps": int,
    "model": dict | None,
    "optimizer": dict,
    "schedule": dict,
    "scaler": dict,
    "average": dict | None,
    "data": str,
    "rows": list,
    "best": dict | None,
}


def check_checkpoint_archive(path):
    """Raise `UserError` unless a file is a complete archive as PyTorch writes it, uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path} is refused: it is packed in a way that PyTorch does not write")
            damaged = archive.testzip()
            if not damaged:
                check_checkpoint_pickle(path, archive)
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a checkpoint; it is damaged or another kind of file") from error
    if damaged:
        raise UserError(f"{path} cannot be read as a checkpoint; it is damaged (checksum of {damaged})")


def check_checkpoint_pickle(path, archive):
    """Raise `UserError` if the archive's pickle calls anything but what rebuilds tensors.

    PyTorch's `weights_only` does not execute code either, but it allows calls that allocate unlimited memory.
    """
    names = [entry.filename.lower() for entry in archive.infolist()]  # PyTorch ignores case
    pickles = [entry for entry in archive.infolist() if entry.filename.lower().endswith("/data.pkl")]
    if len(set(names)) < len(names) or len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
        raise UserError(f"{path} is refused: it is packed in a way that PyTorch does not write")
    for operation, argument, _ in pickletools.genops(archive.read(pickles[0])):
        is_allowed = operation.name not in CALLS or (operation.name == "GLOBAL" and argument in GLOBALS)
        if not is_allowed:
            raise UserError(f"{path} is refused: it contains {argument or operation.name}, not only weights and values")


def check_keys(path, checkpoint):
    """Raise `UserError` unless each of a checkpoint's entries has its type."""
    for key, kind in KEYS.items():
        if not isinstance(checkpoint[key], kind):
            raise UserError(f"{path} is damaged: its {key} is not a {kind.__name__}; train it again")


def check_values(path, checkpoint):
    """Raise `UserError` for values that the program cannot use, or tensors larger than their data in the file."""
    classes, weights, config = (checkpoint[key] for key in ("classes", "weights", "model_config"))
    mean, std = checkpoint["mean"], checkpoint["std"]
    names = [*classes, *(name for key in ("model_config", "weights", "metrics", "recipe") for name in checkpoint[key])]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        refuse(path, "names")
    if checkpoint["dataset"] not in DATASETS:
        refuse(path, "data set")
    if not (len(mean) == len(std) == 3 and all(map(is_number, [*mean, *std]))):
        refuse(path, "normalization")
    if not all(is_safe_weight(value) for value in weights.values()):
        refuse(path, "weights")
    if not all(is_safe_size(key, value) for key, value in config.items()):
        refuse(path, "model_config")
    if config.get("num_classes", len(classes)) != len(classes):
        refuse(path, "number of classes")
    if not all(value is None or is_number(value) for value in checkpoint["metrics"].values()):
        refuse(path, "metrics")
    if not all(isinstance(value, str | int | float | None) for value in checkpoint["recipe"].values()):
        refuse(path, "recipe")


def check_training(path, checkpoint):
    """Raise `UserError` if a part of the training state is of the wrong kind.

    `Trainer.resume` checks that the parts fit the network and the optimizer.
    """
    training = checkpoint["training"]
    for key, kind in TRAINING_KEYS.items():
        if key not in training or not isinstance(training[key], kind):
            raise UserError(f"the training state in {path} is damaged or of another version: its {key}; train it again")
    rows, best, sums, seconds = (training[key] for key in ("rows", "best", "sums", "seconds"))
    epochs = list(range(1, checkpoint["epoch"] + 1))
    if not (all(map(is_epoch_metrics, rows)) and [row["epoch"] for row in rows] == epochs):
        refuse(path, "rows")
    if not (best is None or is_epoch_metrics(best)):  # not always in `rows`: best.pt may be newer than last.pt
        refuse(path, "best row")
    if not (sums.shape == (2,) and is_safe_weight(sums)):
        refuse(path, "sums")
    if not (len(seconds) == 2 and all(is_number(value) and value >= 0 for value in seconds)):
        refuse(path, "seconds")
    if not all(is_number(value) or value == float("inf") for value in training["schedule"].values()):
        refuse(path, "schedule")
    if not all(is_number(value) for value in training["scaler"].values()):
        refuse(path, "scaler")


def refuse(path, what):
    raise UserError(f"{path} is refused: its {what} cannot be valid; train it again")


def is_number(value):
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # false for nan and huge integers too


def is_safe_size(key, value):
    """Whether an entry of model_config is text or a number that is not too large."""
    largest = LARGEST_DEPTH if key == "depth" else LARGEST_SIZE
    return isinstance(value, str) or (isinstance(value, int | float) and 0 <= value <= largest)


def is_safe_weight(value):
    """Whether a value is a finite tensor that is no larger than its stored data."""
    return isinstance(value, torch.Tensor) and brings_its_memory(value) and bool(value.isfinite().all())


def brings_its_memory(tensor):
    """Whether a tensor is plain, on the CPU, and no larger than its stored data."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return is_plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def is_epoch_metrics(metrics):
    """Whether a value is a row of metrics.csv: all columns, finite numbers, and None only where it may be."""
    if not (isinstance(metrics, dict) and metrics.keys() == set(COLUMNS)):
        return False
    return all(is_number(value) or (value is None and key in MAY_BE_NONE) for key, value in metrics.items())
