"""Read ViTs of Hugging Face's transformers: a folder as save_pretrained writes it.

    foreign = read_huggingface("folder")      # config.json, model.safetensors, preprocessor_config.json
    foreign = read_huggingface("google/vit-base-patch16-224")       # downloaded from the Hugging Face Hub

transformers need not be installed: config.json tells everything that the weights do not. Entries that are missing have
the defaults of `ViTConfig`, as in transformers.
"""

import functools
import math
import re
from pathlib import Path

import torch

from vit_cifar10.formats.foreign import (
    HUB_NAME,
    class_names,
    fetch,
    note,
    read_colors,
    read_folder,
    read_json,
    read_size,
)
from vit_cifar10.formats.plain import CLASS_TOKEN, DISTILLATION, QKV_BIAS, REFUSED, TWO_HEADS, ForeignViT
from vit_cifar10.runs.schema import SIZE, Invalid, check, number, one_of
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.text import shorten

CLASSIFIERS = ("ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")
GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
TOP = {  # the names of weights outside the blocks, in transformers and in timm
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
IN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.attention.query": "attn.query",
    "attention.attention.key": "attn.key",
    "attention.attention.value": "attn.value",
}
SAME_SCALE = 1e-6  # relative difference of the factors of two image processors


def read_huggingface(folder):
    """The `ForeignViT` in a folder that transformers' `save_pretrained` has written.

    Raises:
        UserError: it cannot be read, or is not a plain ViT or DeiT with a classifier.
    """
    source = folder
    if not Path(folder).is_dir() and HUB_NAME.fullmatch(folder):
        folder = fetch(folder, "hf")
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one that save_pretrained has written")
    path = folder / "config.json"
    config = read_json(path)
    kinds = config.get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else kinds
    if kind not in CLASSIFIERS:
        what = f"is a {shorten(str(kind))}" if kind else "has no architecture of transformers in config.json"
        lacks = " has no classifier" if str(kind) in ("ViTModel", "DeiTModel") else ""
        raise UserError(f"{folder} {what}{lacks}; {', '.join(CLASSIFIERS)} can be converted")
    if config.get("problem_type") == "multi_label_classification":
        raise UserError(f"{folder} gives an image several labels; convert a network for one class per image")
    try:
        check(config.get("num_attention_heads", 12), SIZE, "num_attention_heads")
        check(config.get("layer_norm_eps", 1e-12), number(1e-20, 1), "layer_norm_eps")
        check(config.get("hidden_act", "gelu"), one_of(tuple(GELUS)), "hidden_act")
    except Invalid as error:
        raise UserError(f"{path} is refused: {error}; {REFUSED}") from error
    is_deit, has_two_heads = kind.startswith("DeiT"), kind.endswith("WithTeacher")
    is_on = {CLASS_TOKEN: True, DISTILLATION: is_deit, TWO_HEADS: has_two_heads, QKV_BIAS: config.get("qkv_bias", True)}
    features = frozenset(feature for feature, value in is_on.items() if value)
    return ForeignViT(
        source=f"hf:{Path(source).resolve().name}",
        weights=rename(read_folder(folder), folder),
        num_heads=config.get("num_attention_heads", 12),
        act_layer=GELUS[config.get("hidden_act", "gelu")],
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        global_pool="token",
        features=features,
        img_size=read_size(config.get("image_size", 224), "image_size", path),
        preparation=functools.partial(read_processor, folder / "preprocessor_config.json"),
        class_names=functools.partial(class_names, config.get("id2label"), path=path),
    )


def read_processor(path):
    """How images are prepared, as in `ForeignViT`, from preprocessor_config.json.

    The image processors of ViTs distort images that are not square, unless `size` is the length of the shortest edge.
    """
    if not path.exists():
        note(f"there is no {path}, so images are normalized with mean 0.5 and std 0.5, the default of transformers")
        return [0.5] * 3, [0.5] * 3, "squash"
    processor = read_json(path)
    factor = processor.get("rescale_factor", 1 / 255)
    is_usual = processor.get("do_rescale", True) is True and isinstance(factor, int | float)
    if not is_usual or not 0 < factor < 1 or not math.isclose(factor, 1 / 255, rel_tol=SAME_SCALE):
        raise UserError(f"{path} does not scale images to values from 0 to 1; only rescale_factor 1/255 is supported")
    size = processor.get("size")
    resize = "crop" if isinstance(size, dict) and "shortest_edge" in size else "squash"
    if processor.get("do_normalize", True) is False:
        return [0.0] * 3, [1.0] * 3, resize
    return *read_colors(processor, ("image_mean", "image_std"), path), resize


def rename(weights, folder):
    """Weights with timm's names: queries, keys and values are one matrix. Unknown names stay."""
    renamed, parts = {}, {}
    for name, value in weights.items():
        inner, _, kind = re.sub(r"^(vit|deit)\.", "", name).rpartition(".")
        block = re.fullmatch(r"encoder\.layer\.(\d{1,6})\.(.+)", inner)
        if block and block[2] in IN_BLOCK:
            part = IN_BLOCK[block[2]]
            if part.rpartition(".")[2] in ("query", "key", "value"):
                parts.setdefault((int(block[1]), kind), {})[part] = value
            else:
                renamed[f"blocks.{int(block[1])}.{part}.{kind}"] = value
        elif inner == "pooler.dense":  # computed by transformers, but read by no classifier
            continue
        elif inner in TOP:
            renamed[f"{TOP[inner]}.{kind}"] = value
        else:
            renamed[TOP.get(f"{inner}.{kind}", name)] = value
    for (layer, kind), three in parts.items():
        values = [three.get(f"attn.{part}") for part in ("query", "key", "value")]
        if any(value is None or not value.ndim or value.shape != values[0].shape for value in values):
            raise UserError(f"{folder} lacks queries, keys or values of block {layer + 1}; the file is incomplete")
        renamed[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(values)
    return renamed
