"""Read ViTs of timm: a folder as timm saves it, a file of weights next to its config.json, or a name that timm loads.

    foreign = read_timm("folder")                   # config.json and model.safetensors
    foreign = read_timm("folder/weights.pth")       # with config.json in the same folder
    foreign = read_timm("vit_base_patch16_224")     # timm downloads the weights
    foreign = read_timm("timm/vit_base_patch16_224.augreg_in21k_ft_in1k")       # downloaded from the Hugging Face Hub

The weights do not tell the number of heads, the epsilon of the norms, the kind of GELU and the pooling. timm derives
them from the name of the architecture and from `model_args`. For the names in `NAMES`, this file does the same; for all
others, timm must be installed.
"""

import functools
import json
import math
import re
from pathlib import Path

import torch

from vit_cifar10.formats.foreign import (
    HUB_NAME,
    WEIGHT_FILES,
    class_names,
    fetch,
    read_colors,
    read_folder,
    read_json,
    read_size,
    read_weights,
    require,
)
from vit_cifar10.formats.plain import (
    CLASS_TOKEN,
    DISTILLATION,
    FC_NORM,
    LAYER_SCALE,
    PRE_NORM,
    QKV_BIAS,
    REFUSED,
    REGISTERS,
    TWO_HEADS,
    ForeignViT,
    features_of,
)
from vit_cifar10.runs.schema import ANYTHING, FRACTION, SIZE, SWITCH, TEXT, Invalid, Kind, check, number, one_of, whole
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.limits import LARGEST_RATIO, LARGEST_REGISTERS
from vit_cifar10.utils.text import one_line, shorten

WIDTHS = {  # the sizes of ViTs: width and number of heads
    **{"tiny": (192, 3), "small": (384, 6), "medium": (512, 8), "betwixt": (640, 10)},
    **{"base": (768, 12), "large": (1024, 16), "huge": (1280, 16)},
}
SIZES = f"({'|'.join(WIDTHS)})"
DEFAULTS = {  # arguments of timm's VisionTransformer, the epsilon of its norms, and whether it is a distilled one
    **{"global_pool": "token", "class_token": True, "qkv_bias": True, "pre_norm": False, "reg_tokens": 0},
    **{"init_values": None, "fc_norm": None, "act_layer": None, "norm_eps": 1e-6, "is_distilled": False},
}
MEAN = {"global_pool": "avg", "class_token": False, "init_values": 1e-6}
NAMES = {  # {pattern of an architecture's name: what differs from `DEFAULTS`}
    rf"vit_{SIZES}_patch\d+_\d+": {},
    rf"vit_{SIZES}_patch\d+_clip_\d+": {"norm_eps": 1e-5, "pre_norm": True},
    r"vit_(small|base|large)_patch14_dinov2": {"init_values": 1e-5},
    r"vit_(small|base|large)_patch14_reg4_dinov2": {"init_values": 1e-5, "reg_tokens": 4},
    r"vit_(medium|betwixt)_patch\d+_gap_\d+": {**MEAN, "qkv_bias": False, "fc_norm": False},
    r"vit_(medium|betwixt)_patch\d+_reg\d_gap_\d+": {**MEAN, "reg_tokens": 4},
    rf"deit_{SIZES}_patch16_\d+": {},
    rf"deit_{SIZES}_distilled_patch16_\d+": {"is_distilled": True},
    rf"deit3_{SIZES}_patch\d+_\d+": {"init_values": 1e-6},
}
GELUS = {"GELU": "gelu", "GELUTanh": "gelu_tanh"}  # timm's classes
PARTS = {  # of timm's VisionTransformer, and their classes in a plain one
    "patch_embed": "PatchEmbed",
    "blocks.0": "Block",
    "blocks.0.attn": "Attention",
    "blocks.0.mlp": "Mlp",
    "blocks.0.norm1": "LayerNorm",
    "blocks.0.attn.q_norm": "Identity",
}
KINDS = {  # what other classes of timm have
    "Beit": " (relative positions)",
    "Eva": " (rotary positions or a gated MLP)",
    "SwinTransformer": " (windows)",
    "SwinTransformerV2": " (windows)",
}

OFF = Kind(lambda value: value is None or value is False, "supported")  # an option of timm that is not used
RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
ARGUMENTS = {  # of timm's VisionTransformer
    **dict.fromkeys(("patch_size?", "img_size?"), ANYTHING),  # read elsewhere
    **dict.fromkeys(("embed_dim?", "depth?", "num_heads?", "in_chans?"), SIZE),
    "num_classes?": whole(0),  # with 0, there is no classifier, and a better message follows
    "mlp_ratio?": number(0, LARGEST_RATIO),
    "global_pool?": TEXT,  # checked by `check_pool`
    "act_layer?": (one_of(tuple(GELUS.values())), None),
    "init_values?": (number(0, 1e6), None),
    "reg_tokens?": whole(0, LARGEST_REGISTERS),
    **dict.fromkeys(("class_token?", "no_embed_class?", "pre_norm?", "qkv_bias?", "proj_bias?"), SWITCH),
    "fc_norm?": (SWITCH, None),
    **dict.fromkeys(("dynamic_img_size?", "strict_img_size?"), SWITCH),
    **{f"{rate}?": FRACTION for rate in RATES},
    TEXT: OFF,
}
TRAITS = ("num_heads", "global_pool", "act_layer", "norm_eps", "features")  # of `ForeignViT`


def read_timm(source):
    """The `ForeignViT` that `source` means: a folder, a file of weights, or a name that timm loads.

    Raises:
        UserError: it cannot be read, is not a plain ViT, or its architecture cannot be known.
    """
    path = Path(source)
    if not path.exists() and path.suffix not in WEIGHT_FILES and HUB_NAME.fullmatch(source):
        return read_saved(fetch(source, "timm"), path.name)
    if path.is_dir():
        return read_saved(path, path.resolve().name)
    if path.suffix in WEIGHT_FILES or len(path.parts) > 1:
        if not path.is_file():
            raise UserError(f"there is no folder or file {path}; check the path")
        return read_saved(path, path.name)
    return load_by_name(source)


def read_saved(path, name):
    """The network in a folder or a file of weights, as the config.json there describes it."""
    config_path = path / "config.json" if path.is_dir() else path.with_name("config.json")
    if not config_path.exists():
        weights = rename_old(read_folder(path) if path.is_dir() else read_weights(path))
        raise UserError(f"there is no {config_path}, which tells what weights do not; {propose_config(weights, path)}")
    config = read_json(config_path)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not re.fullmatch(r"[\w.]{1,100}", architecture):
        raise UserError(f"{config_path} names no architecture of timm; give config.json as timm saves it")
    arguments = config.get("model_args") or {}
    pretrained = config.get("pretrained_cfg", config)  # older files have only one level
    try:
        check(arguments, ARGUMENTS, "model_args")
        check(pretrained, {TEXT: ANYTHING}, "pretrained_cfg")
    except Invalid as error:
        raise UserError(f"{config_path} is refused: {error}; {REFUSED}") from error
    if config.get("global_pool") is not None:  # older files have it only here
        arguments = {"global_pool": str(config["global_pool"]), **arguments}
    weights = rename_old(read_folder(path) if path.is_dir() else read_weights(path))
    projection = weights.get("patch_embed.proj.weight")
    width = len(projection) if projection is not None and projection.ndim == 4 else None
    traits = resolve_by_table(architecture, arguments, width) or resolve_with_timm(architecture, arguments)
    names = config.get("label_names", pretrained.get("label_names"))
    return ForeignViT(
        source=f"timm:{name}",
        weights=weights,
        **traits,
        img_size=read_size(declared_size(arguments, pretrained), "input_size", config_path),
        preparation=lambda: (*read_colors(pretrained, ("mean", "std"), config_path), resize_of(pretrained)),
        class_names=functools.partial(described_names, names, config.get("label_descriptions"), config_path),
    )


def resize_of(config):
    """What makes images square, one of `RESIZES`, from timm's crop_mode."""
    return {"squash": "squash", "border": "pad"}.get(str(config.get("crop_mode")), "crop")


def propose_config(weights, path):
    """The remedy for a missing config.json: its content, as far as the weights tell it."""
    projection, positions = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    head = weights.get("head.weight")
    if any(value is None or value.ndim != axes for value, axes in ((projection, 4), (positions, 3), (head, 2))):
        return f"and {path} has no plain ViT of timm, so it cannot be converted"
    width, patch = len(projection), projection.shape[-1]
    prefix = sum(name in weights for name in ("cls_token", "dist_token"))
    prefix += weights["reg_token"].shape[1] if "reg_token" in weights else 0
    count = positions.shape[1]
    side = next((math.isqrt(n) for n in (count - prefix, count) if n > 0 and math.isqrt(n) ** 2 == n), 0) * patch
    size = next((name for name, (known, _) in WIDTHS.items() if known == width), None)
    kind = "deit" if "dist_token" in weights else "vit"
    tag = "_distilled" if "dist_token" in weights else ""
    differences = {
        "embed_dim": None if size else width,
        "num_heads": None if size else "HEADS",
        "class_token": None if "cls_token" in weights else False,
        "global_pool": "avg" if "fc_norm.weight" in weights or "cls_token" not in weights else None,
        "reg_tokens": weights["reg_token"].shape[1] if "reg_token" in weights else None,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "pre_norm": True if "norm_pre.weight" in weights else None,
        "qkv_bias": None if "blocks.0.attn.qkv.bias" in weights else False,
        "fc_norm": False if "cls_token" not in weights and "norm.weight" in weights else None,
    }
    config = {
        "architecture": f"{kind}_{size or 'base'}{tag}_patch{patch if kind == 'vit' else 16}_{side}",
        "model_args": {"img_size": side, **{key: value for key, value in differences.items() if value is not None}},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    heads = "" if size else "the number of HEADS and "
    return f"write this file, with {heads}the mean and std of the training: {json.dumps(config)}"


def declared_size(arguments, pretrained):
    """The size of the images in config.json, as it is there."""
    if arguments.get("img_size") is not None:
        return arguments["img_size"]
    size = pretrained.get("input_size")
    return size[1:] if isinstance(size, list) and len(size) == 3 else size


def described_names(names, descriptions, path, count):
    """The class names, or the descriptions of all of them, such as "tench, Tinca tinca" for "n01440764"."""
    names = class_names(names, count, path)
    if isinstance(descriptions, dict) and all(name in descriptions for name in names):
        names = class_names([descriptions[name] for name in names], count, path)
    return names


def rename_old(weights):
    """Weights with the present names of DeiT-3's LayerScale."""
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): value for name, value in weights.items()}


def resolve_by_table(architecture, arguments, width):
    """What the weights do not tell, for an architecture of `NAMES`: a dict of `TRAITS`. None for other names.

    Raises:
        UserError: the weights have another width than the architecture.
    """
    name = architecture.split(".")[0]  # what follows is the tag of pretrained weights
    for pattern, differences in NAMES.items():
        match = re.fullmatch(pattern, name)
        if match:
            default_width, default_heads = WIDTHS[match[1]]
            used = {"embed_dim": default_width, "num_heads": default_heads, **DEFAULTS, **differences, **arguments}
            if width is None:
                raise UserError(f"{architecture} has patches, but the weights have no patch_embed.proj.weight for them")
            if width != used["embed_dim"]:
                raise UserError(f"{architecture} has tokens of width {used['embed_dim']}, but the weights have {width}")
            check_pool(used["global_pool"], architecture)
            used["act_layer"] = used["act_layer"] or "gelu"
            return {trait: used[trait] for trait in TRAITS[:-1]} | {"features": features_with(used)}
    return None


def features_with(used):
    """The features of timm's VisionTransformer with these arguments."""
    is_on = {
        **{CLASS_TOKEN: used["class_token"], QKV_BIAS: used["qkv_bias"], PRE_NORM: used["pre_norm"]},
        **{REGISTERS: used["reg_tokens"], LAYER_SCALE: used["init_values"]},
        **{DISTILLATION: used["is_distilled"], TWO_HEADS: used["is_distilled"]},
        FC_NORM: used["global_pool"] == "avg" if used["fc_norm"] is None else used["fc_norm"],
    }
    return frozenset(feature for feature, value in is_on.items() if value)


def resolve_with_timm(architecture, arguments):
    """What the weights do not tell, from timm: a dict of `TRAITS`.

    Raises:
        UserError: timm is missing or does not have this architecture, or it is not a plain ViT.
    """
    timm = require("timm", f"the architecture {architecture}")
    if not timm.is_model(architecture):
        raise UserError(f"timm {timm.__version__} has no architecture {architecture}; check the name, or update timm")
    used = {"num_heads", "embed_dim", *DEFAULTS}
    known = {name: value for name, value in arguments.items() if name in used}
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, **known)
    except Exception as error:  # whatever goes wrong in the networks of timm, of which there are a thousand
        raise UserError(f"timm cannot build {architecture} ({shorten(one_line(error), 100)}); {REFUSED}") from error
    return read_traits(model, architecture)


def read_traits(model, architecture):
    """What the weights do not tell, from a network of timm: a dict of `TRAITS`.

    Raises:
        UserError: it is not a plain ViT; the message contains the difference.
    """
    kind = type(model).__name__
    if kind not in ("VisionTransformer", "VisionTransformerDistilled"):
        raise UserError(f"{architecture} is of the kind {kind}{KINDS.get(kind, '')}, but {REFUSED}")
    check_pool(model.global_pool, architecture)
    if model.pool_include_prefix:
        raise UserError(f"{architecture} pools all tokens, but {REFUSED}")
    for place, expected in PARTS.items():
        part = type(model.get_submodule(place)).__name__
        if part != expected:
            feature = "norms of queries and keys" if expected == "Identity" else f"parts of the kind {part}"
            raise UserError(f"{architecture} has {feature}, but {REFUSED}")
    block = model.blocks[0]
    activation = type(block.mlp.act).__name__
    if activation not in GELUS:
        raise UserError(f"{architecture} has the activation {activation}, but {REFUSED}")
    features = features_of(model.state_dict())
    traits = (block.attn.num_heads, model.global_pool, GELUS[activation], block.norm1.eps, features)
    return dict(zip(TRAITS, traits, strict=True))


def check_pool(pool, architecture):
    """Raise `UserError` unless the head reads the class token or the mean of the patches."""
    if pool not in ("token", "avg"):
        feature = "an attention-pool head" if pool == "map" else f"the pooling {pool!r}"
        raise UserError(f"{architecture} has {feature}, but {REFUSED}")


def load_by_name(name):
    """A network of timm with pretrained weights, which timm downloads or has in its cache.

    Raises:
        UserError: timm is missing, has no weights of this name, or cannot download them.
    """
    timm = require("timm", f"timm:{name}")
    if not timm.is_model(name):
        raise UserError(f"{name} is neither a folder, a file, nor a network of timm {timm.__version__}; check the name")
    resolve_with_timm(name, {})  # before anything is downloaded
    if timm.get_pretrained_cfg_value(name, "num_classes") == 0:
        raise UserError(f"timm:{name} has no classifier (num_classes 0); convert a network that has one")
    try:
        model = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # timm's and the hub's errors are of many types
        raise UserError(f"timm cannot load {name} ({shorten(one_line(error), 200)})") from error
    config = model.pretrained_cfg
    return ForeignViT(
        source=f"timm:{name}",
        weights=model.state_dict(),
        **read_traits(model, name),
        img_size=model.patch_embed.img_size[0],
        preparation=lambda: (list(config["mean"]), list(config["std"]), resize_of(config)),
        class_names=functools.partial(pretrained_names, timm, model),
    )


def pretrained_names(timm, model, count):
    """The class names of pretrained weights: their own, or those of ImageNet if timm knows that they are for it."""
    names = model.pretrained_cfg.get("label_names")
    subset = None if names else timm.data.infer_imagenet_subset(model)
    if subset:
        info = timm.data.ImageNetInfo(subset)
        names = [info.index_to_description(number) for number in range(count)]
    return class_names(names, count, "timm")
