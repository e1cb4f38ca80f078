"""Turn a ViT of another library into the plain one of model.py, with the same logits and attention.

    foreign = ForeignViT("timm:my-vit", weights, num_heads=12, ...)
    model_config, weights = to_plain(foreign)

Whatever is a constant factor or a missing term is folded into the weights, exactly: LayerScale into the last matrix of
its branch, missing biases and positions as zeros, the two heads of DeiT's distillation into one. What remains are a few
arguments of `VisionTransformer`. Everything else is refused by name.
"""

import collections
import dataclasses
import re
from collections.abc import Callable

import torch

from model import build_without_memory
from vit_cifar10.runs.schema import check, model_config
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.limits import LARGEST_DEPTH
from vit_cifar10.utils.text import shorten

MOST_TOKENS = 2_500  # patches of an image; the attention of each head takes the square of it
TOP = r"cls_token|reg_token|dist_token|pos_embed|patch_embed\.proj\.(weight|bias)"
NORMS = r"(norm_pre|norm|fc_norm)\.(weight|bias)|(head|head_dist)\.(weight|bias)"
IN_BLOCK = r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|ls[12]\.gamma"
KNOWN = re.compile(rf"{TOP}|{NORMS}|blocks\.[0-9]{{1,4}}\.({IN_BLOCK})")
AXES = (  # the number of axes of the weights with these names
    (re.compile(r".*_token|pos_embed"), 3),
    (re.compile(r"patch_embed\.proj\.weight"), 4),
    (re.compile(r".*(bias|gamma)|(.*\.)?(fc_)?norm(_pre|[12])?\.weight"), 1),
    (re.compile(r".*"), 2),
)
FEATURES = {  # patterns of the names of weights that a plain ViT does not have
    r"q_norm": "norms of queries and keys",
    r"attn_pool": "an attention-pool head",
    r"rel_pos|relative_position": "relative positions",
    r"rope": "rotary positions",
    r"(mlp|attn)\.norm": "a norm inside its MLPs or its attention",
    r"fc1_g|w12": "a gated MLP (SwiGLU)",
    r"lambda_": "differential attention",
    r"q_bias": "separate biases of queries and values (BEiT)",
    r"patch_embed\.(norm|backbone)": "a norm after its patches, or a convolutional network before them",
    r"layers\.|stages\.": "stages or windows",
    r"conv": "convolutions",
}
# Features of a plain ViT. What has a feature has a weight with its name in `TELLTALES`.
CLASS_TOKEN, REGISTERS, DISTILLATION, TWO_HEADS = "a class token", "registers", "a distillation token", "two heads"
QKV_BIAS, LAYER_SCALE = "biases of queries, keys and values", "LayerScale"
PRE_NORM, FC_NORM = "a norm before the first block", "a norm after the pooling"
TELLTALES = {
    CLASS_TOKEN: "cls_token",
    REGISTERS: "reg_token",
    DISTILLATION: "dist_token",
    TWO_HEADS: "head_dist.weight",
    QKV_BIAS: "blocks.0.attn.qkv.bias",
    LAYER_SCALE: "blocks.0.ls1.gamma",
    PRE_NORM: "norm_pre.weight",
    FC_NORM: "fc_norm.weight",
}
REFUSED = "only plain ViTs and DeiTs can be converted"


@dataclasses.dataclass(frozen=True)
class ForeignViT:
    """A ViT of another library.

    Attributes:
        source: where it comes from, for messages and the run's record.
        weights: its state dict, with timm's names.
        num_heads, act_layer, norm_eps: as in `VisionTransformer`; the weights do not tell them.
        global_pool: "token" or "avg".
        features: the keys of `TELLTALES` that the network must have, and no others. A file without the weights of one
            would otherwise be taken for a network without it.
        img_size: side of the images in pixels.
        preparation: () -> how it takes images: mean and std, three numbers each, and what makes them square, one of
            `RESIZES`.
        class_names: (number of classes) -> list of names.
    """

    source: str
    weights: dict
    num_heads: int
    act_layer: str
    norm_eps: float
    global_pool: str
    features: frozenset
    img_size: int
    preparation: Callable
    class_names: Callable

    def lacks(self, name):
        return UserError(f"{self.source} has no weights {name}; the file is incomplete, or {REFUSED}")


def to_plain(foreign):
    """The argument of `build_model` and the weights, float32, of a plain ViT that computes the same.

    Raises:
        UserError: the network is not plain, or its weights do not fit each other.
    """
    check_names(foreign)
    check_features(foreign)
    weights = {name: value.float() for name, value in foreign.weights.items()}
    config = {"model": "vit", **read_sizes(foreign, weights)}
    fold_blocks(foreign, weights, config["depth"])
    config |= fold_embedding(foreign, weights, config)
    config |= fold_head(foreign, weights)
    try:
        check(config, model_config)
        build_without_memory(config).load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"the weights of {foreign.source} do not fit each other ({shorten(reason, 300)})") from error
    return config, weights


def check_names(foreign):
    """Raise `UserError` if there are weights that a plain ViT does not have, or that have another number of axes."""
    for name, value in foreign.weights.items():
        if not KNOWN.fullmatch(name):
            feature = next((feature for part, feature in FEATURES.items() if re.search(part, name)), None)
            raise UserError(f"{foreign.source} has {feature or f'the weights {shorten(name)}'}, but {REFUSED}")
        axes = next(axes for pattern, axes in AXES if pattern.fullmatch(name))
        if value.ndim != axes:
            raise UserError(f"{foreign.source} has weights {name} with {value.ndim} axes instead of {axes}; {REFUSED}")


def features_of(weights):
    """The features, keys of `TELLTALES`, that a network with these weights, or names of weights, has."""
    return frozenset(feature for feature, name in TELLTALES.items() if name in weights)


def check_features(foreign):
    """Raise `UserError` if the weights lack a feature, have an unexpected one, or have one in some blocks only."""
    features = features_of(foreign.weights)
    for feature in sorted(foreign.features - features):
        raise foreign.lacks(f"of {feature}")
    for feature in sorted(features - foreign.features):
        raise UserError(f"{foreign.source} has {feature}, which its config.json does not report; correct the file")
    in_blocks = [name.split(".", 2)[1:] for name in foreign.weights if name.startswith("blocks.")]
    blocks = {number for number, _ in in_blocks}
    counts = collections.Counter(name for _, name in in_blocks)
    for name, count in counts.items():
        if count != len(blocks):
            raise foreign.lacks(f"{name} in some of its blocks")


def read_sizes(foreign, weights):
    """The sizes that the weights tell, as entries of the configuration."""
    if "head.weight" not in weights:
        raise UserError(f"{foreign.source} has no classifier (num_classes 0); convert a network that has one")
    if len(weights["head.weight"]) < 2:
        raise UserError(f"{foreign.source} has one logit only; convert a network that has at least two classes")
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in weights:
            raise foreign.lacks(name)
    embed_dim, in_chans, height, width = weights["patch_embed.proj.weight"].shape
    if in_chans != 3 or height != width:
        raise UserError(f"{foreign.source} has patches of {in_chans} x {height} x {width}; only 3 x P x P is supported")
    blocks = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    if len(blocks) != max(blocks) + 1 or len(blocks) > LARGEST_DEPTH:
        raise UserError(f"{foreign.source} lacks the weights of some of its blocks; the file is incomplete")
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    second = weights.get("blocks.0.mlp.fc2.weight")
    if second is not None and second.shape[-1] * 2 == hidden:
        raise UserError(f"{foreign.source} has a gated MLP (SwiGLU), but {REFUSED}")
    ratio = hidden / embed_dim
    return {
        "img_size": foreign.img_size,
        "patch_size": height,
        "num_classes": weights["head.weight"].shape[0],
        "embed_dim": embed_dim,
        "depth": len(blocks),
        "num_heads": foreign.num_heads,
        "mlp_ratio": ratio if int(embed_dim * ratio) == hidden else (hidden + 0.5) / embed_dim,
        **({"act_layer": foreign.act_layer} if foreign.act_layer != "gelu" else {}),
        **({"norm_eps": foreign.norm_eps} if foreign.norm_eps != 1e-6 else {}),
    }


def fold_blocks(foreign, weights, depth):
    """Add biases that no block has as zeros, and fold LayerScale into the matrix before it."""
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        names = [f"blocks.{layer}.{part}" for layer in range(depth)]
        if not any(f"{name}.bias" in weights for name in names):
            for name in names:
                add_zeros(foreign, weights, name)
    for layer in range(depth):
        for scale, part in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            gamma, name = weights.pop(f"blocks.{layer}.{scale}", None), f"blocks.{layer}.{part}"
            if gamma is not None:
                weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
                if weight is None or bias is None or not len(weight) == len(bias) == len(gamma):
                    raise foreign.lacks(f"{name} that fit {scale}")
                weights[f"{name}.weight"], weights[f"{name}.bias"] = weight * gamma[:, None], bias * gamma


def add_zeros(foreign, weights, part):
    """Give a linear layer or convolution without bias a bias of zeros."""
    if f"{part}.weight" not in weights:
        raise foreign.lacks(f"{part}.weight")
    weights[f"{part}.bias"] = torch.zeros(weights[f"{part}.weight"].shape[0])


def fold_embedding(foreign, weights, config):
    """Make tokens and positions those of model.py; return the entries of the configuration that describe them."""
    is_distilled = "dist_token" in weights
    if is_distilled:
        if "reg_token" in weights or foreign.global_pool != "token":
            raise UserError(f"{foreign.source} has a distillation token and registers or pooling, but {REFUSED}")
        weights["reg_token"] = weights.pop("dist_token")
    prefix = [weights[name] for name in ("cls_token", "reg_token") if name in weights]
    num_prefix, embed_dim = sum(token.shape[1] for token in prefix), config["embed_dim"]
    grid = config["img_size"] // config["patch_size"]
    if grid**2 > MOST_TOKENS:
        raise UserError(
            f"{foreign.source} cuts images into {grid} x {grid} patches; at most {MOST_TOKENS} are supported"
        )
    positions = weights.get("pos_embed")
    if positions is None:
        raise UserError(f"{foreign.source} has no learned positions (pos_embed), but {REFUSED}")
    if positions.shape == (1, grid**2, embed_dim):  # positions for the patches only
        weights["pos_embed"] = torch.cat([torch.zeros(1, num_prefix, embed_dim), positions], dim=1)
    elif positions.shape != (1, num_prefix + grid**2, embed_dim):
        size = f"{config['img_size']} x {config['img_size']} pixels"
        raise UserError(f"{foreign.source} has positions of shape {tuple(positions.shape)}, which do not fit {size}")
    entries = {"class_token": "cls_token" in weights}
    if "reg_token" in weights:
        entries["reg_tokens"] = weights["reg_token"].shape[1]
    if "norm_pre.weight" in weights:
        entries["pre_norm"] = True
        if "patch_embed.proj.bias" not in weights:  # timm leaves it out in this case
            add_zeros(foreign, weights, "patch_embed.proj")
    return entries


def fold_head(foreign, weights):
    """Make the final norm and the head those of model.py; return the entries of the configuration for them."""
    if ("norm.weight" in weights) == ("fc_norm.weight" in weights):
        raise foreign.lacks("of one final norm (norm or fc_norm)")
    if "head_dist.weight" in weights:  # the mean of two heads is one head that reads both tokens
        heads = [weights.pop(f"{name}.weight") for name in ("head", "head_dist")]
        biases = [weights.pop(f"{name}.bias", None) for name in ("head", "head_dist")]
        has_biases = all(bias is not None and len(bias) == len(heads[0]) for bias in biases)
        if heads[0].shape != heads[1].shape or not has_biases:
            raise foreign.lacks("of two heads of the same size")
        weights["head.weight"], weights["head.bias"] = torch.cat(heads, dim=1) / 2, sum(biases) / 2
        return {"global_pool": "distilled"}
    if foreign.global_pool == "avg":
        return {"global_pool": "avg"} | ({"fc_norm": False} if "norm.weight" in weights else {})
    for part in ("weight", "bias"):  # with a class token, it makes no difference which comes first
        if f"fc_norm.{part}" in weights:
            weights[f"norm.{part}"] = weights.pop(f"fc_norm.{part}")
    return {"global_pool": "token"}
