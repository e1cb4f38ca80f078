"""The two descriptions of a network: the flags of train.py, and the argument of `build_model`."""

import inspect
import re

import model
from vit_cifar10.utils.networks import NETWORKS


def model_config(args, num_classes, shape=None):
    """The argument of `build_model`, from the flags.

    `shape` is the argument for a network that has the shape to use. It may have entries that no flag describes.
    """
    network = NETWORKS[args.model]
    config = dict(shape or {"model": args.model, **network.derive(args)})
    sizes = [size for size in network.sizes if not (shape and size.is_shape)]
    return config | {size.argument: getattr(args, size.flag) for size in sizes} | {"num_classes": num_classes}


def network_flags(config):
    """The flags that describe a network, {flag: value}, from the argument of `build_model`.

    No flag describes the pooling of DeiT's distilled networks, which convert.py reads.
    """
    name = config["model"]
    defaults = inspect.signature(model.NETWORKS[name]).parameters
    values = {
        size.flag: config[size.argument] if size.argument in config else defaults[size.argument].default
        for size in NETWORKS[name].sizes
    }
    if values.get("pool") == "distilled":
        del values["pool"]
    return {"model": name, **values}


def shape_flags(name):
    """The flags that determine which weights a network has."""
    return {size.flag for size in NETWORKS[name].sizes if size.is_shape}


def in_flags(message, name):
    """A message of model.py about the arguments of a network, with the flags that set them."""
    for size in NETWORKS[name].sizes:
        message = re.sub(rf"\b{size.argument}\b", f"--{size.flag}", message)
    return message
