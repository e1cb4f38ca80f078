"""Write a network's weights as one .safetensors file, with everything that inference needs in its metadata."""

import json

from vit_cifar10.formats.foreign import require
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.text import one_line, shorten


def save_safetensors(network, path, metadata=None):
    """Write the weights of a `Network`, float32, under the names of its state dict.

    The metadata holds, as JSON, the argument of `build_model` (model_config), the classes, the mean and std, unless
    `metadata` replaces it, a dict of text.

    Raises:
        UserError: safetensors is missing, or the file cannot be written.
    """
    safetensors = require("safetensors.torch", "writing .safetensors files")
    write_weights(safetensors, network.model.state_dict(), path, metadata_of(network) if metadata is None else metadata)


def write_weights(safetensors, weights, path, metadata):
    """Write {name: tensor} and a dict of text atomically."""
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_write(path) as partial:
        try:
            safetensors.save_file(weights, partial, metadata=metadata)
        except Exception as error:  # of a type of its own, for example if the disk is full
            raise UserError(f"cannot write {path} ({shorten(one_line(error), 100)}); is the disk full?") from error


def metadata_of(network):
    """What inference needs besides the weights, as a dict of JSON text."""
    facts = {
        "model_config": network.saved["model_config"],
        "classes": network.classes,
        "mean": network.saved["mean"],
        "std": network.saved["std"],
        "resize": network.resize,
    }
    return {name: json.dumps(value) for name, value in facts.items()}
