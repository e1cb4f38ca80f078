"""Write a ViT as a folder that timm loads: timm.create_model("local-dir:FOLDER", pretrained=True)."""

import json
from pathlib import Path

import torch

from vit_cifar10.formats.foreign import require
from vit_cifar10.formats.to_safetensors import write_weights
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_folder

# Architectures of timm by the epsilon of their norms, which timm's arguments cannot set. All else is in model_args.
ARCHITECTURES = {1e-6: "vit_tiny_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
DISTILLED = "deit_tiny_distilled_patch16_224"


def save_timm_folder(network, folder):
    """Write config.json and model.safetensors of a `Network` to a new or empty folder.

    Raises:
        UserError: timm has no such network, safetensors is missing, or the folder is not empty or cannot be written.
    """
    folder, config = Path(folder), network.saved["model_config"]
    if not network.model.has_attention:
        raise UserError(f"timm has no network like {network.name}, a CNN; convert it to .onnx or .safetensors")
    architecture = find_architecture(network)
    safetensors = require("safetensors.torch", "writing .safetensors files")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose a new folder")
    side = config["img_size"]
    contents = {
        "architecture": architecture,
        "num_classes": config["num_classes"],
        "num_features": config["embed_dim"],
        "label_names": network.classes,
        "model_args": model_arguments(config),
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,  # as test.py prepares images
            "crop_mode": {"crop": "center", "squash": "squash", "pad": "border"}[network.resize],
            "mean": network.saved["mean"],
            "std": network.saved["std"],
            "num_classes": config["num_classes"],
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config["global_pool"] == "distilled" else "head",
        },
    }
    with atomic_folder(folder) as partial:
        write_weights(safetensors, timm_weights(network.model), partial / "model.safetensors", {"format": "pt"})
        (partial / "config.json").write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def find_architecture(network):
    """The architecture of timm that `model_args` turn into this network."""
    config = network.saved["model_config"]
    eps = config.get("norm_eps", 1e-6)
    is_distilled = config["global_pool"] == "distilled"
    if eps not in ARCHITECTURES or (is_distilled and eps != 1e-6):
        raise UserError(f"timm has no argument for norm_eps {eps:g}; convert {network.name} to .onnx or .safetensors")
    return DISTILLED if is_distilled else ARCHITECTURES[eps]


def model_arguments(config):
    """The arguments of timm's VisionTransformer for the argument of `build_model`."""
    same = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "class_token")
    same += ("fc_norm", "act_layer")
    arguments = {name: config[name] for name in same if name in config} | {"pre_norm": config.get("pre_norm", False)}
    if config["global_pool"] == "distilled":
        return arguments
    return arguments | {"global_pool": config["global_pool"], "reg_tokens": config.get("reg_tokens", 0)}


def timm_weights(model):
    """The state dict of a ViT under timm's names.

    Only three things differ: with pre_norm, timm's patches have no bias, which is then part of the positions; and
    timm's distilled ViT has another name for the second token, and two heads, whose logits it averages.
    """
    weights = dict(model.state_dict())
    if "norm_pre.weight" in weights:
        positions = weights["pos_embed"].clone()
        positions[:, model.num_prefix_tokens :] += weights.pop("patch_embed.proj.bias")
        weights["pos_embed"] = positions
    if model.global_pool == "distilled":
        weights["dist_token"] = weights.pop("reg_token")
        halves = torch.split(2 * weights["head.weight"], model.embed_dim, dim=1)
        weights["head.weight"], weights["head_dist.weight"] = (half.contiguous() for half in halves)
        weights["head_dist.bias"] = weights["head.bias"].clone()
    return weights
