"""What is kept: one file format, written atomically, read safely.

A checkpoint is a plain dict of tensors, numbers, strings, lists and dicts, so `torch.load(weights_only=True)` reads
it and nothing in it can run. `model/<run>/best.pt` holds all that inference needs:

    format          1
    model_config    what `build_model` takes; the architecture comes from here, never from flags
    weights         the network's state dict on the CPU, float32; float16 in the checkpoints that come with the project
    classes         names of the classes, in the order of the logits
    mean, std       normalisation of the images, three numbers each
    dataset         name of the data set it was trained on
    epoch, metrics  how many whole epochs the weights have seen, and the last one's row of metrics.csv
    recipe          every flag of the run

`model/<run>/last.pt` holds the same as of the last save, which may be within an epoch, and under `training` all that an
exact resume needs; `model/<run>/previous.pt` is the one before, should last.pt be damaged.
"""

import dataclasses
import math
import pickle
import pickletools
import sys
import zipfile
from pathlib import Path

import torch

from model import build_model
from vit_cifar10.data.dataset import DATASETS, normalize
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import save_tensors

FORMAT = 1
BEST, LAST, PREVIOUS = NAMES = ("best.pt", "last.pt", "previous.pt")
DICTS = ("model_config", "weights", "metrics", "recipe")
ROW = (  # of metrics.csv, in its order; what is not measured is None
    *("epoch", "train_loss", "train_accuracy", "learning_rate", "images_per_second", "train_seconds", "gpu_memory_gb"),
    *("val_loss", "val_accuracy", "test_loss", "test_accuracy", "seconds"),
)
MAY_BE_NONE = {"gpu_memory_gb", "val_loss", "val_accuracy"}
# Flags of a recipe that say where and how a run goes, not what it is.
CIRCUMSTANCES = {"resume", "device", "num_workers", "compile", "log", "save_every", "save_minutes"}
CIRCUMSTANCES |= {"data_path", "model_path", "output_path"}
LENGTH = ("epochs", "warmup_epochs")  # flags of how long a run takes
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}  # all that a file of this format calls
GLOBALS |= {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte")}
CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
LARGEST_PICKLE = 20_000_000  # bytes, without the tensors: a thousand epochs take a hundredth
LARGEST = {"depth": 1_000}  # of a size in a model_config, else 100,000: more than any network, yet quickly tried out
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


def save(path, checkpoint, previous=None):
    """Write a checkpoint whole or not at all; what was there stays as `previous`, if that is given.

    Raises:
        UserError: it cannot be written. What was there is still there.
    """
    save_tensors(path, {"format": FORMAT, **checkpoint}, previous)


def load_last(path):
    """What a run is resumed from: last.pt in its folder, or where that is damaged, the one before, with a warning.

    Under "is_older" it says whether it is the one before.

    Raises:
        UserError: neither can be read, or the file that `path` names holds no training state.
    """
    path = Path(path)
    path = path / LAST if path.is_dir() else path
    if not path.exists() and path.with_name(BEST).exists() and not path.with_name(PREVIOUS).exists():
        raise UserError(f"{path.parent} has no {LAST}, so its training cannot go on; its {BEST} is for test.py")
    previous = path.with_name(PREVIOUS)
    try:
        checkpoint = load(path)
        checkpoint["is_older"] = False
    except UserError as error:
        if path.name != LAST or not previous.exists():
            raise
        try:
            checkpoint = load(previous)
        except UserError as other:
            raise UserError(f"{error}; {other}") from error
        checkpoint["is_older"] = True
        print(f"warning: {error}; going on from {previous.name} beside it, which is older", file=sys.stderr)
    if not isinstance(checkpoint.get("training"), dict):
        raise UserError(f"{path} holds no training state; name the run's folder or its {LAST}")
    check_training(path, checkpoint)
    return checkpoint


def load(path, name=BEST):
    """Read a checkpoint from a file, or from `name` in a run's folder, on the CPU.

    The file may come from a stranger: nothing in it is run, and it takes no more memory than its own size.

    Raises:
        UserError: there is none, it is damaged, or it is not one of this project's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / name
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train one with train.py or check the path")
    check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is damaged, or holds more than weights and plain values") from error
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} cannot be read as a checkpoint; it is damaged or another kind of file") from error
    if not isinstance(checkpoint, dict) or KEYS.keys() - checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of this project; name a best.pt that train.py has written")
    if checkpoint["format"] != FORMAT:
        raise UserError(f"{path} has format {checkpoint['format']}, this version reads {FORMAT}; train it again")
    for key, kind in KEYS.items():
        if not isinstance(checkpoint[key], kind):
            raise UserError(f"{path} is damaged: its {key} is no {kind.__name__}; train it again")
    check_values(path, checkpoint)
    return checkpoint


def check_archive(path):
    """Raises `UserError` unless a file is whole, as PyTorch writes it, and unpacks to no more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if is_packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path} is refused: it is packed in a way that PyTorch does not write")
            damaged = archive.testzip()
            if not damaged:
                check_pickle(path, archive)
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a checkpoint; it is damaged or another kind of file") from error
    if damaged:
        raise UserError(f"{path} cannot be read as a checkpoint; it is damaged (checksum of {damaged})")


def check_pickle(path, archive):
    """Raises `UserError` for a pickle that calls anything but what puts tensors together.

    PyTorch's `weights_only` runs no code either, but allows to call for memory without end.
    """
    names = [entry.filename.lower() for entry in archive.infolist()]  # PyTorch does not tell case apart
    pickles = [entry for entry in archive.infolist() if entry.filename.lower().endswith("/data.pkl")]
    if len(set(names)) < len(names) or len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
        raise UserError(f"{path} is refused: it is packed in a way that PyTorch does not write")
    for operation, argument, _ in pickletools.genops(archive.read(pickles[0])):
        if operation.name in CALLS and not (operation.name == "GLOBAL" and argument in GLOBALS):
            raise UserError(f"{path} is refused: it holds {argument or operation.name}, more than weights and values")


def check_values(path, checkpoint):
    """Raises `UserError` for values that the program could not use, or that claim memory they do not bring."""
    classes, weights, config = (checkpoint[key] for key in ("classes", "weights", "model_config"))
    mean_and_std = [*checkpoint["mean"], *checkpoint["std"]]
    is_right = {
        "names": lambda: all(
            isinstance(name, str) and name.isprintable() for key in ("classes", *DICTS) for name in checkpoint[key]
        ),
        "data set": lambda: checkpoint["dataset"] in DATASETS,
        "normalisation": lambda: (
            len(checkpoint["mean"]) == len(checkpoint["std"]) == 3 and all(map(is_number, mean_and_std))
        ),
        "weights": lambda: all(
            isinstance(value, torch.Tensor) and brings_its_memory(value) and value.isfinite().all()
            for value in weights.values()
        ),
        "model_config": lambda: all(
            isinstance(value, str) or (isinstance(value, int | float) and 0 <= value <= LARGEST.get(key, 100_000))
            for key, value in config.items()
        ),
        "number of classes": lambda: config.get("num_classes", len(classes)) == len(classes),
        "metrics": lambda: all(isinstance(value, int | float | None) for value in checkpoint["metrics"].values()),
        "recipe": lambda: all(isinstance(value, str | int | float | None) for value in checkpoint["recipe"].values()),
    }
    refuse_unless(path, is_right)


def refuse_unless(path, is_right):
    """Raises `UserError` naming the first of {what: check} that fails; checks are functions."""
    for what, check in is_right.items():
        if not check():
            raise UserError(f"{path} is refused: its {what} cannot be right; train it again")


def check_training(path, checkpoint):
    """Raises `UserError` if a training state's parts are not of their kinds; their sizes `Trainer.resume` knows."""
    training = checkpoint["training"]
    for key, kind in TRAINING_KEYS.items():
        if key not in training or not isinstance(training[key], kind):
            raise UserError(f"the training state in {path} is damaged or of another version: its {key}; train it again")
    rows, best = training["rows"], training["best"]
    is_right = {
        "rows": lambda: (
            all(map(is_row, rows)) and [row["epoch"] for row in rows] == list(range(1, checkpoint["epoch"] + 1))
        ),
        "best row": lambda: best is None or (is_row(best) and best in rows),
        "sums": lambda: (
            training["sums"].shape == (2,) and brings_its_memory(training["sums"]) and training["sums"].isfinite().all()
        ),
        "seconds": lambda: (
            len(training["seconds"]) == 2 and all(is_number(value) and value >= 0 for value in training["seconds"])
        ),
        "schedule": lambda: all(isinstance(value, int | float) for value in training["schedule"].values()),
        "scaler": lambda: all(is_number(value) for value in training["scaler"].values()),
    }
    refuse_unless(path, is_right)


def is_number(value):
    return isinstance(value, int | float) and math.isfinite(value)


def is_row(row):
    """Whether it is an epoch's metrics."""
    if not (isinstance(row, dict) and row.keys() == set(ROW)):
        return False
    return all(is_number(value) or (value is None and key in MAY_BE_NONE) for key, value in row.items())


def brings_its_memory(tensor):
    """Whether a tensor is a plain one on the CPU that is no larger than what was stored of it."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return is_plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network with what belongs to it: all that classifying an image takes.

    `mean` and `std` are on its device; `saved` is the checkpoint without its weights.
    """

    name: str
    model: torch.nn.Module
    device: torch.device
    classes: list
    mean: torch.Tensor
    std: torch.Tensor
    saved: dict

    @property
    def image_size(self):
        return self.saved["model_config"]["img_size"]

    def prepare(self, images):
        """uint8 (..., 3, H, W) -> what the network takes, on its device."""
        return normalize(images.to(self.device), self.mean, self.std)

    def adopt(self, split):
        """A split of images on the network's device, to be normalised as its training images were.

        Raises:
            UserError: its classes are not the network's.
        """
        if list(split.classes) != self.classes:
            raise UserError("the classes of these images are not those the network was trained for; check --data_path")
        return dataclasses.replace(split.to(self.device), mean=self.mean, std=self.std)


def load_network(path, device):
    """The network in a checkpoint, or in the best one of a run's folder, in evaluation mode on `device`.

    Raises:
        UserError: as `load`, or the weights do not fit the network that the checkpoint describes.
    """
    saved = load(path)
    weights = saved.pop("weights")
    try:
        with torch.device("meta"):  # allocates nothing: what does not fit the weights is never built
            build_model(saved["model_config"]).load_state_dict(weights, assign=True)
        model = build_model(saved["model_config"])
        model.load_state_dict(weights)
    except Exception as error:  # the file says what to build, so anything can be wrong with it
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"the weights in {path} do not fit the network it describes ({reason})") from error
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return Network(
        folder.resolve().name,
        model.to(device).eval(),
        device,
        saved["classes"],
        torch.tensor(saved["mean"], device=device),
        torch.tensor(saved["std"], device=device),
        saved,
    )


def cpu_weights(model):
    """A copy of a network's state dict on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
