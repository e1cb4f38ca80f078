"""The two descriptions of a network: the flags of train.py, and the argument of `build_model`."""

import inspect

from model import NETWORKS

SHAPE_FLAGS = {  # the flags that determine which weights a network has, and their keys for `build_model`
    "vit": {
        "patch_size": "patch_size",
        "pool": "global_pool",
        "embed_dim": "embed_dim",
        "n_layers": "depth",
        "n_attention_heads": "num_heads",
        "forward_mul": "mlp_ratio",
    },
    "cnn": {"width": "width"},
    "fast-cnn": {"width": "width"},
}
OTHER_FLAGS = {  # the flags that a network with the same weights may change; only the image size resizes some of them
    "vit": {"image_size": "img_size", "dropout": "drop_rate", "drop_path": "drop_path_rate"},
    "cnn": {"image_size": "img_size", "dropout": "drop_rate"},
    "fast-cnn": {"image_size": "img_size"},
}


def model_config(args, num_classes, shape=None):
    """The argument of `build_model`, from the flags.

    `shape` is the argument for a network that has the shape to use. It may have entries that no flag describes.
    """
    config = dict(shape or {"model": args.model})
    if shape is None:
        config |= {key: getattr(args, flag) for flag, key in SHAPE_FLAGS[args.model].items()}
        if args.model == "vit":
            config["class_token"] = args.pool == "token"
    config |= {key: getattr(args, flag) for flag, key in OTHER_FLAGS[args.model].items()}
    return config | {"num_classes": num_classes}


def network_flags(config):
    """The flags that describe a network, {flag: value}, from the argument of `build_model`.

    No flag describes the pooling of DeiT's distilled networks, which convert.py reads.
    """
    name = config["model"]
    defaults = inspect.signature(NETWORKS[name]).parameters
    keys = SHAPE_FLAGS[name] | OTHER_FLAGS[name]
    values = {flag: config[key] if key in config else defaults[key].default for flag, key in keys.items()}
    if values.get("pool") == "distilled":
        del values["pool"]
    return {"model": name, **values}
