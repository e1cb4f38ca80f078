"""The flags of convert.py."""

import re
from pathlib import Path

from vit_cifar10.data.tables import DATASETS
from vit_cifar10.utils.cli import ArgumentParser, not_empty, path
from vit_cifar10.utils.errors import UserError

LIBRARIES = ("timm", "hf", "torchvision")  # prefixes of networks from elsewhere
SUFFIXES = (".onnx", ".safetensors")  # of the files that can be written


def build_parser():
    parser = ArgumentParser(prog="convert.py", description="Convert networks from and to other libraries.")
    add = parser.add_argument
    source = (
        "what to convert: timm:NAME, timm:FOLDER or timm:FILE (a plain ViT of timm), hf:FOLDER or hf:NAME (of Hugging "
        "Face's transformers), torchvision:FILE, or a run's name, folder or checkpoint"
    )
    add("source", type=not_empty, metavar="SOURCE", help=source)
    target = (
        "what to write: for a network from elsewhere, the folder of the new run, such as model/my-vit; for a run, a "
        "file that ends in .onnx or .safetensors, or else a folder for timm"
    )
    add("target", type=path, metavar="TARGET", help=target)
    dataset = "from elsewhere: the network's classes are those of this data set, on which test.py then tests it"
    add("--dataset", choices=[name for name, entry in DATASETS.items() if entry.classes], help=dataset)
    add("--attention", action="store_true", help=".onnx: also output the attention weights of every layer")
    return parser


def parse(argv=None):
    """Read and check the flags. Raises `UserError` if they do not fit each other.

    Returns:
        The flags. `library` is one of `LIBRARIES`, with `source` as what follows it, or None for a run.
    """
    args = build_parser().parse_args(argv)
    library, colon, rest = args.source.partition(":")
    args.library = library if colon and library in LIBRARIES else None
    suffix = Path(args.target).suffix.lower()
    if args.library:
        args.source = rest
        if not rest:
            raise UserError(f"{library}: needs a name or a folder after the colon, such as {library}:my-vit")
        if suffix in SUFFIXES:
            raise UserError(
                f"{args.target} is not a folder; convert to a run first, such as model/my-vit, then the run"
            )
    is_unknown = re.fullmatch(r"\.[a-z]{2,6}", suffix) and suffix not in SUFFIXES
    if is_unknown and not (args.library or args.target.endswith("/")):
        raise UserError(
            f"{args.target} cannot be written; choose a name that ends in .onnx or .safetensors, or in / for a folder"
        )
    if args.dataset and not args.library:
        raise UserError("--dataset is about networks from elsewhere; a run knows its data set")
    if args.attention and suffix != ".onnx":
        raise UserError("--attention needs a TARGET that ends in .onnx")
    return args
