"""Read the files of other libraries: config.json, .safetensors, and .pth files of weights.

    config = read_json(folder / "config.json")
    weights = read_weights(folder / "model.safetensors")        # {name: tensor}

The files may come from strangers. Nothing in them is executed: safetensors has no code, and .pth files go through
runs/untrusted.py. Everything that can be wrong with a file is a `UserError`.
"""

import importlib
import json
import os
from pathlib import Path

import torch

from vit_cifar10.runs.schema import COLORS, SIZE, TEXT, Invalid, check
from vit_cifar10.runs.untrusted import load_untrusted
from vit_cifar10.utils import limits
from vit_cifar10.utils.device import physical_memory
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import read_text
from vit_cifar10.utils.text import one_line, shorten

LARGEST_JSON = 5_000_000  # bytes; a config.json with the names of 21,843 classes needs a tenth
LARGEST_HEADER = 10_000_000  # bytes of a .safetensors file's header; a tensor needs about 100
WRAPPERS = ("model", "state_dict", "model_state_dict")  # entries in which .pth files keep the weights
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


def require(package, purpose):
    """Import an optional package. Raises `UserError` if it is missing; `purpose` is what needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise UserError(f"{purpose} needs the package {name}; install it with pip install {name}") from error


def read_json(path):
    """The object in a JSON file, as a dict.

    Raises:
        UserError: there is no such file, it is too long or nested too deeply, or it holds no JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(read_text(path, longest=LARGEST_JSON))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); is it the right folder?") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file of settings ({shorten(one_line(error), 100)})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON file of settings; it holds a {type(value).__name__}, not an object")
    return value


def read_weights(path):
    """The tensors of floating-point numbers in a .safetensors or .pth file, {name: tensor}.

    Raises:
        UserError: the file is missing, damaged, or contains anything but such tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; it should hold the weights")
    if 3 * path.stat().st_size > physical_memory():
        size = path.stat().st_size / 1e9
        raise UserError(f"{path} has {size:,.1f} GB, too much for this machine's memory; use a smaller network")
    weights = read_safetensors(path) if path.suffix == ".safetensors" else unwrap(load_untrusted(path))
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path} holds no weights; it should be the state dict of a network")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path} is not a file of weights; its entry {shorten(str(name))} is not a tensor")
        if value.dtype not in FLOATS or not value.numel():
            kind = f"a tensor of {value.dtype}" if value.numel() else "empty"
            raise UserError(f"the entry {shorten(name)} in {path} is {kind}; weights are floating-point numbers")
    return weights


def read_safetensors(path):
    """The tensors in a .safetensors file. Raises `UserError` if it is damaged."""
    safetensors = require("safetensors", f"reading {path}")
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
        if header > min(LARGEST_HEADER, file.seek(0, os.SEEK_END) - 8):
            raise UserError(f"{path} is refused: its header is damaged, or larger than any network's")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} cannot be read as safetensors ({shorten(one_line(error), 100)})") from error


def unwrap(value):
    """The state dict in the contents of a .pth file."""
    for name in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(name), dict):
            return value[name]
    return value


def read_colors(config, names, path):
    """The mean and std in a dict under these two names, lists of three numbers each.

    Raises:
        UserError: they are missing or of another kind.
    """
    try:
        for name in names:
            check(config.get(name), COLORS, name)
    except Invalid as error:
        raise UserError(f"the normalization of the images cannot be known: in {path}, {error}") from error
    return [[float(value) for value in config[name]] for name in names]


def class_names(names, count, path):
    """The names of `count` classes, from a list or a dict {number: name}. Without any, "class 0", "class 1" ...

    Raises:
        UserError: there is another number of names, or they are not short printable text.
    """
    if names is None:
        return [f"class {number}" for number in range(count)]
    if isinstance(names, dict):
        numbers = {str(number): name for number, name in names.items()}
        names = [numbers.get(str(number)) for number in range(count)] if len(numbers) == count else []
    try:
        check(names, [TEXT], "the list of class names")
        if len(names) != count:
            raise Invalid("the list of class names", f"a list of {count:,} items")
    except Invalid as error:
        raise UserError(f"{path} does not fit the weights: {error}; they have {count} classes") from error
    return names


def read_size(value, name, path):
    """A whole number that describes a size, or the side of a square given as two equal numbers, such as [224, 224].

    Raises:
        UserError: it is of another kind, or too large, or the two numbers differ.
    """
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    try:
        check(value, SIZE, name)
    except Invalid as error:
        raise UserError(f"{path} is refused: {error}; only square images and patches are supported") from error
    return min(value, limits.LARGEST_IMAGE + 1)
