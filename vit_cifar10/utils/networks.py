"""The table of networks: what train.py offers, and how its flags become the arguments of `build_model`.

From an entry follow the flags and their help, the argument of `build_model`, and what a checkpoint may contain. To add
a network, write its class in model.py, and an entry here. The table needs no PyTorch, so that --help is fast.
"""

import dataclasses

from vit_cifar10.utils import limits
from vit_cifar10.utils.cli import FRACTION, SIZE, Number


@dataclasses.dataclass(frozen=True)
class Size:
    """A constructor argument of a network that a flag of train.py sets.

    Attributes:
        flag, argument: its name as a flag, and as an argument of the class in model.py.
        kind: its bounds, a `Number`, or a tuple of the words to choose from.
        default, help: of the flag. Networks that share a flag may have different ones.
        is_shape: whether a network with other weights results from another value. A fine-tuning keeps these.
    """

    flag: str
    argument: str
    kind: object
    default: object
    help: str
    is_shape: bool = True


@dataclasses.dataclass(frozen=True)
class Network:
    """An entry of the table.

    Attributes:
        help: what the network is, in a few words.
        sizes: a `Size` per flag.
        run_name: the start of a run's default name; flags in braces are filled in.
        takes_fewer_patches: whether it can be trained with --small_epochs and --keep_patches.
        other_arguments: {argument: kind} of arguments that no flag sets, but that a checkpoint may contain; `bool` is a
            kind, too.
        derive: computes arguments that depend on several flags, {argument: value}, from all flags.
    """

    help: str
    sizes: tuple
    run_name: str
    takes_fewer_patches: bool = False
    other_arguments: dict = dataclasses.field(default_factory=dict)
    derive: object = lambda args: {}


IMAGE = Number(int, at_least=4, at_most=limits.LARGEST_IMAGE)
DEPTH = Number(int, at_least=1, at_most=limits.LARGEST_DEPTH)
RATIO = Number(float, above=0, at_most=limits.LARGEST_RATIO)
POOLS = ("token", "avg")

# Help texts
IMAGE_SIZE = "side of the images in pixels; images of other sizes are resized"
PATCH_SIZE = "side of a patch in pixels; halving it gives four times as many tokens"
DROP_PATH = "stochastic depth rate of the last block, 0 in the first; helps deep networks in long runs"

NETWORKS = {
    "vit": Network(
        "Vision Transformer",
        (
            Size("image_size", "img_size", IMAGE, 32, IMAGE_SIZE, is_shape=False),
            Size("patch_size", "patch_size", SIZE, 4, PATCH_SIZE),
            Size("embed_dim", "embed_dim", SIZE, 192, "width of a token"),
            Size("n_layers", "depth", DEPTH, 12, "number of transformer blocks"),
            Size("n_attention_heads", "num_heads", SIZE, 3, "attention heads per block"),
            Size("forward_mul", "mlp_ratio", RATIO, 4, "hidden width of the MLP as a multiple of --embed_dim"),
            Size("pool", "global_pool", POOLS, "token", "classify from a class token, or from the mean of the patches"),
            Size("dropout", "drop_rate", FRACTION, 0.1, "dropout rate in the blocks", is_shape=False),
            Size("drop_path", "drop_path_rate", FRACTION, 0.0, DROP_PATH, is_shape=False),
        ),
        run_name="vit-layer{n_layers}",
        takes_fewer_patches=True,
        other_arguments={  # the class token, and what convert.py has read if it differs from the default
            "class_token": bool,
            "global_pool": (*POOLS, "distilled"),
            "attn_drop_rate": FRACTION,
            "reg_tokens": Number(int, at_least=0, at_most=limits.LARGEST_REGISTERS),
            "pre_norm": bool,
            "fc_norm": bool,
            "act_layer": ("gelu", "gelu_tanh"),
            "norm_eps": Number(float, at_least=1e-20, at_most=1),
        },
        derive=lambda args: {"class_token": args.pool == "token"},
    ),
    "cnn": Network(
        "four convolutions",
        (
            Size("image_size", "img_size", IMAGE, 32, IMAGE_SIZE, is_shape=False),
            Size("width", "width", SIZE, 32, "channels of the first convolution; the others scale with it"),
            Size("dropout", "drop_rate", FRACTION, 0.3, "dropout rate before the last layer", is_shape=False),
        ),
        run_name="cnn",
    ),
    "fast-cnn": Network(
        "a CNN that learns in a few epochs",
        (
            Size("image_size", "img_size", IMAGE, 32, IMAGE_SIZE, is_shape=False),
            Size("width", "width", SIZE, 64, "channels of the first group; the others scale with it"),
        ),
        run_name="fast-cnn",
    ),
}


def sizes_of_all():
    """The sizes of all networks, {flag: {network: Size}}."""
    sizes = {}
    for name, network in NETWORKS.items():
        for size in network.sizes:
            sizes.setdefault(size.flag, {})[name] = size
    return sizes
