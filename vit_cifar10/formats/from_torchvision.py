"""Read ViTs of torchvision: a file with the state dict of vit_b_16, vit_b_32, vit_l_16, vit_l_32 or vit_h_14.

    foreign = read_torchvision("vit_b_16-c867db91.pth")

The weights do not tell the number of heads, which follows from the width, and the normalization, which is ImageNet's
for all weights of torchvision.
"""

import functools
import math
import re
from pathlib import Path

from vit_cifar10.formats.foreign import class_names, note, read_weights
from vit_cifar10.formats.plain import CLASS_TOKEN, QKV_BIAS, REFUSED, ForeignViT
from vit_cifar10.utils.errors import UserError

HEADS = {768: 12, 1024: 16, 1280: 16}  # by width
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYER = re.compile(r"encoder\.layers\.encoder_layer_([0-9]{1,4})\.(.+)")
TOP = {  # the names of weights outside the blocks, in torchvision and in timm
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    **{f"conv_proj.{kind}": f"patch_embed.proj.{kind}" for kind in ("weight", "bias")},
    **{f"encoder.ln.{kind}": f"norm.{kind}" for kind in ("weight", "bias")},
    **{f"heads.{name}{kind}": f"head.{kind}" for name in ("head.", "") for kind in ("weight", "bias")},
    **{f"heads.0.{kind}": f"head.{kind}" for kind in ("weight", "bias")},
}
IN_BLOCK = {
    **{"ln_1": "norm1", "ln_2": "norm2", "self_attention.out_proj": "attn.proj"},
    **{"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2", "mlp.linear_1": "mlp.fc1", "mlp.linear_2": "mlp.fc2"},
}


def read_torchvision(source):
    """The `ForeignViT` in a file of weights.

    Raises:
        UserError: it cannot be read, or is not a ViT of torchvision.
    """
    path = Path(source)
    weights = {rename(name): value for name, value in read_weights(path).items()}
    projection, positions = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    if projection is None or projection.ndim != 4 or positions is None or positions.ndim != 3:
        raise UserError(f"{path} has no conv_proj and pos_embedding as torchvision's ViTs have; {REFUSED}")
    width = len(projection)
    if width not in HEADS:
        raise UserError(f"{path} has tokens of width {width}, but torchvision's ViTs have {', '.join(map(str, HEADS))}")
    return ForeignViT(
        source=f"torchvision:{path.name}",
        weights=weights,
        num_heads=HEADS[width],
        act_layer="gelu",
        norm_eps=1e-6,
        global_pool="token",
        features=frozenset((CLASS_TOKEN, QKV_BIAS)),
        img_size=math.isqrt(max(positions.shape[1] - 1, 0)) * projection.shape[-1],
        preparation=lambda: (MEAN, STD, "crop"),
        class_names=functools.partial(names_of, path),
    )


def rename(name):
    """timm's name of a weight. Unknown names stay."""
    match = LAYER.fullmatch(name)
    if not match:
        return TOP.get(name, name)
    part, _, kind = match[2].rpartition(".")
    if part == "self_attention" and kind.startswith("in_proj_"):
        part, kind = "attn.qkv", kind.removeprefix("in_proj_")
    return f"blocks.{int(match[1])}.{IN_BLOCK.get(part, part)}.{kind}"


def names_of(path, count):
    """ImageNet's names of classes for 1,000 of them, else numbers."""
    if count != 1000:
        return class_names(None, count, path)
    from torchvision.models import ViT_B_16_Weights  # imported only here because it takes seconds

    note(f"{path} has 1,000 classes, which are taken to be ImageNet's")
    return class_names(unique(ViT_B_16_Weights.DEFAULT.meta["categories"]), count, path)


def unique(names):
    """The names; the later of two that are equal, such as ImageNet's two cranes, gets its number added."""
    return [f"{name} ({place})" if name in names[:place] else name for place, name in enumerate(names)]
