"""Read the files of other libraries: config.json, .safetensors, and .pth files of weights.

    config = read_json(folder / "config.json")
    weights = read_weights(folder / "model.safetensors")        # {name: tensor}

The files may come from strangers. Nothing in them is executed: safetensors has no code, and .pth files go through
state_dicts.py. Everything that can be wrong with a file is a `UserError`.
"""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import torch

from vit_cifar10.formats.state_dicts import Other, Stored, read_saved_tensors
from vit_cifar10.runs.schema import COLORS, SIZE, TEXT, Invalid, check
from vit_cifar10.utils import limits
from vit_cifar10.utils.device import physical_memory
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import check_is_downloaded, read_text
from vit_cifar10.utils.text import one_line, shorten

LARGEST_JSON = 5_000_000  # bytes; a config.json with the names of 21,843 classes needs a tenth
LARGEST_HEADER = 10_000_000  # bytes of a .safetensors file's header; a tensor needs about 100
WRAPPERS = (  # entries in which .pth files keep the weights, the first that is there
    *("model", "state_dict", "model_state_dict", "net", "network", "module", "weights"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)
DEEPEST_WRAPPER = 5
ANCHORS = ("patch_embed.proj.weight", "conv_proj.weight", "classifier.weight", "cls_classifier.weight")
PREFIX = re.compile(rf"(|.*\.)({'|'.join(map(re.escape, ANCHORS))})")  # before names, from what has wrapped a network
HUB_NAME = re.compile(r"(hf[-_]hub:)?([\w.-]+/[\w.-]+)")
WEIGHTS_IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "model.pth")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".t7")


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
    with open(path, "rb") as file:
        check_is_downloaded(file)
    weights = strip_prefix(read_safetensors(path) if path.suffix == ".safetensors" else read_pickled(path), path)
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path} is not a file of weights; its entry {shorten(str(name))} is not a tensor")
        if value.dtype not in FLOATS or not value.numel():
            kind = f"a tensor of {value.dtype}" if value.numel() else "empty"
            raise UserError(
                f"the entry {shorten(name)} in {path} is {kind}, but plain ViTs have floating-point numbers only"
            )
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


def read_pickled(path):
    """The tensors in a file that `torch.save` has written, wherever they are in it.

    Raises:
        UserError: it is damaged, or has no state dict.
    """
    saved = read_saved_tensors(path)
    found, taken = saved.contents, []
    while isinstance(found, dict) and len(taken) < DEEPEST_WRAPPER:
        name = next((name for name in WRAPPERS if isinstance(found.get(name), dict | Other)), None)
        if name is None:
            break
        found = found[name]
        taken.append(name)
    if isinstance(found, Other):
        raise UserError(
            f"{path} is refused: it is a pickled {shorten(found.name)}, which would run its code;"
            " save the weights instead, with torch.save(model.state_dict(), FILE)"
        )
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no weights; it should be the state dict of a network")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Stored):
            raise UserError(f"{path} is not a file of weights; its entry {shorten(str(name))} is not a tensor")
    if sum(value.bytes for value in found.values() if value.is_plain) > path.stat().st_size:
        raise UserError(f"{path} is refused: its tensors are larger than the file")
    if taken:
        note(f"{path}: took the weights in its entry {'.'.join(taken)}")
    try:
        return {name: saved.load(value) for name, value in found.items()}
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} is damaged ({shorten(one_line(error), 100)}); save it again") from error


def strip_prefix(weights, path):
    """Weights without the prefix that DataParallel, torch.compile, Lightning or another wrapper has put before names.

    What does not have the prefix, such as the weights of a loss, is left out.
    """
    found = [match[1] for name in weights if (match := PREFIX.fullmatch(str(name)))]
    prefix = min(found, key=len, default="")
    if not prefix:
        return weights
    kept = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    others = [name for name in weights if not name.startswith(prefix)]
    left = f", and left out {len(others)} others, such as {shorten(others[0], 40)}" if others else ""
    note(f"{path}: stripped {shorten(prefix, 40)} from the names of {len(kept)} weights{left}")
    return kept


def note(text):
    """Report in a line on standard error what was assumed or left out."""
    print(f"convert.py: {one_line(text)}", file=sys.stderr)


def read_folder(folder):
    """The weights in a folder of a library: in one file, or in several with an index.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    for name in WEIGHTS_IN_FOLDER:
        if (folder / name).is_file():
            return read_weights(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return read_shards(folder / f"{name}.index.json")
    raise UserError(f"{folder} has no {WEIGHTS_IN_FOLDER[0]}; give a folder as it was saved, or a file of weights")


def read_shards(path):
    """The weights in the files that an index names. Raises `UserError` if one is missing or elsewhere."""
    index = read_json(path).get("weight_map")
    files = set(index.values()) if isinstance(index, dict) and set(map(type, index.values())) == {str} else set()
    if not files or any(Path(name).name != name or Path(name).suffix not in WEIGHT_FILES for name in files):
        raise UserError(f"{path} is refused: it is not an index of weights in files next to it")
    weights = {}
    for name in sorted(files):
        weights |= read_weights(path.with_name(name))
    missing = next((name for name in index if name not in weights), None)
    if missing is not None:
        raise UserError(f"{path} names the weights {shorten(missing)}, which are in none of its files; get it again")
    return weights


def fetch(name, library):
    """The folder of a network on the Hugging Face Hub, such as google/vit-base-patch16-224, after its download.

    Raises:
        UserError: the package huggingface_hub is missing, or the Hub cannot be reached, or has no such network.
    """
    name = HUB_NAME.fullmatch(name)[2]
    elsewhere = f"hf download {name} --local-dir FOLDER, then convert {library}:FOLDER"
    hub = require("huggingface_hub", f"there is no folder {name}; downloading it, unless you run {elsewhere},")
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(hub.snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except Exception as error:  # the hub's errors are of many types
        reason = shorten(one_line(error), 100)
        raise UserError(
            f"there is no folder {name}, and it cannot be downloaded ({reason}); run {elsewhere}"
        ) from error
    return folder


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
