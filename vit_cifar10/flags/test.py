"""The flags of test.py: the parser, and checks that need neither PyTorch nor the network."""

import os
from pathlib import Path

from vit_cifar10.data.image_files import check_image_file
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.utils import choices
from vit_cifar10.utils.cli import (
    FRACTION,
    NON_NEGATIVE_INT,
    POSITIVE_INT,
    WORKERS,
    ArgumentParser,
    Number,
    path,
)
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.limits import LARGEST_SAMPLES
from vit_cifar10.utils.methods import LARGE, METHODS, SHOWN

MODES = ("cifar", "cifar-single", "custom", "faithfulness")
SINGLE_MODES = ("cifar-single", "custom")
FILES = {"html": ("an HTML", (".html", ".htm")), "csv": ("a CSV", (".csv",)), "embeddings": ("an NPZ", (".npz",))}
FEWEST_IMAGES = 10  # with which --mode faithfulness measures anything
TESTED_IMAGES = 500  # with which it measures by default


def build_parser():
    parser = ArgumentParser(prog="test.py", description="Test a trained network and explain its predictions.")
    add = parser.add_argument
    modes = (
        "cifar: the whole test set of the network's data set; cifar-single: single images of it; "
        "custom: any image file, or all images of a folder; faithfulness: how far the explanations can be trusted"
    )
    add("--mode", choices=MODES, default="cifar", help=modes)
    index = "cifar-single: numbers of the test images to classify; the first is 0 (default: 1)"
    add("--index", type=NON_NEGATIVE_INT, nargs="+", help=index)
    add("--image_path", type=path, help="custom: the image file, or a folder of images")
    model = "a run's name or folder, or a checkpoint; default: the run trained last, or else the ViT of this project"
    add("--model_path", type=path, help=model)
    add("--data_path", type=path, default="./data", help="folder of the data set; CIFAR is downloaded to it")
    datasets = "the data set to test on, if it is not the network's own; the results get a folder of their own"
    add("--dataset", choices=DATASETS, help=datasets)
    add("--resize", choices=choices.RESIZES, help=f"{choices.RESIZE_HELP}; default: as in the training")
    names = "text file with a name per class of the network, in the order of its logits, or lines NAME = CLASS for some"
    add("--class_names", type=path, metavar="FILE", help=names)
    add(
        "--output_path",
        type=path,
        default="./output",
        help="cifar, faithfulness, folders of images: folder for results, one sub-folder per run",
    )
    csv = "write the predictions, with the probabilities of all classes, to this file; default: in --output_path"
    add("--csv", type=path, nargs="?", const=True, metavar="FILE", help=f"cifar, folders: {csv}")
    npz = "write what the last layer reads of each image, and the labels, to this NPZ file; default: in --output_path"
    add("--embeddings", type=path, nargs="?", const=True, metavar="FILE", help=f"cifar, folders: {npz}")
    attention = "with --embeddings: also write the attention of a ViT's output token to the patches, by layer and head"
    add("--attention", action="store_true", help=attention)
    gif = "file for the GIF; the still is the .png next to it; default: in attention_map_gif/, named after the image"
    add("--gif_path", type=path, help=gif)
    add("--no_gif", action="store_true", help="write neither a GIF nor a still")
    titles = {"vit": "ViT", "large vit": f"ViT of {LARGE} pixels or more", "cnn": "CNN"}
    shown = ", ".join(f"{' and '.join(SHOWN[kind])} for a {title}" for kind, title in titles.items())
    slow = " and ".join(flag for flag, method in METHODS.items() if method.is_slow)
    add("--method", choices=METHODS, nargs="+", help=f"maps in the GIF; default: {shown}; {slow} takes long")
    masks = f"masks: number of random masks per image (default {choices.SAMPLES}); faithfulness: also measure masks"
    add("--samples", type=Number(int, at_least=2, at_most=LARGEST_SAMPLES), help=masks)
    fusion = "GIF: how rollout combines the heads of a layer"
    add("--head_fusion", choices=choices.HEAD_FUSIONS, default="mean", help=fusion)
    discard = "GIF: fraction of each layer's attention weights that rollout drops, starting with the smallest"
    add("--discard_ratio", type=FRACTION, default=0.0, help=discard)
    scale = "GIF of a ViT: one color scale for the heads of all layers (image), or one for each map of a head (own)"
    add("--head_scale", choices=choices.HEAD_SCALES, default="image", help=scale)
    page = "cifar-single, custom, or with --live: write an HTML page to this file, for exploring the prediction"
    add("--html", type=path, help=page)
    live = (
        "put the network into the page of --html, where you change the image or the network and see the answer change"
    )
    add("--live", action="store_true", help=live)
    add("--no_image", action="store_true", help="do not open a window")
    add(
        "--tta",
        action="store_true",
        help="cifar: also report the accuracy of predictions averaged over each image and its mirror image, and over"
        " six views; takes six times as long",
    )
    subset = f"faithfulness: size of the stratified subset of the test images (default: {TESTED_IMAGES})"
    add("--num_images", type=POSITIVE_INT, help=subset)
    add("--device", choices=choices.DEVICES, default="auto", help="device; auto prefers cuda, then mps, then cpu")
    add("--batch_size", type=POSITIVE_INT, help="cifar, folders: images per batch (default 1000, on a CPU 100)")
    add("--num_workers", type=WORKERS, default=2, help="processes that decode a folder of images")
    return parser


def parse(argv=None):
    """Read and check the flags. Raises `UserError` if they do not fit each other."""
    args = build_parser().parse_args(argv)
    check_modes(args)
    args.index = args.index or [1]
    args.num_images = args.num_images or TESTED_IMAGES
    check_flags(args)
    return args


def check_modes(args):
    """Raise `UserError` for flags that would do nothing in this mode."""
    needed = {"index": "cifar-single", "image_path": "custom", "tta": "cifar", "num_images": "faithfulness"}
    for flag, mode in needed.items():
        if getattr(args, flag) and args.mode != mode:
            raise UserError(f"--{flag} needs --mode {mode}")


def check_flags(args):
    """Raise `UserError` for flags that do not fit each other, or an image that does not exist."""
    if args.dataset and (args.mode == "custom" or shows_example(args)):
        raise UserError("--dataset chooses test images; use it with --mode cifar, cifar-single or faithfulness")
    if args.gif_path and Path(args.gif_path).suffix.lower() != ".gif":
        raise UserError(f"--gif_path {args.gif_path} is not a GIF file; its name must end in .gif")
    if args.gif_path and args.mode == "cifar-single" and len(args.index) > 1:
        raise UserError("--gif_path takes only one image; leave out the flag, or give one --index")
    if args.mode == "custom" and not args.image_path:
        raise UserError("--mode custom needs --image_path, the image file to classify")
    if args.image_path and not is_folder(args):
        check_image_file(args.image_path)
    check_predictions(args)
    if args.live and args.html is None:
        raise UserError("--live puts the network into the page of --html; add --html FILE.html")
    if args.html is not None:
        check_html(args)
    gif_flags = "--method" if args.method else "--head_fusion and --discard_ratio" if has_rollout_flags(args) else ""
    gif_flags = gif_flags or "--head_scale" * (args.head_scale != "image")
    if gif_flags and args.mode not in SINGLE_MODES:
        raise UserError(f"only GIFs depend on {gif_flags}; add --mode cifar-single or --mode custom")
    if gif_flags and args.no_gif and args.no_image:
        raise UserError("--no_gif and --no_image leave nothing to draw; leave out one of them, or the flags about maps")
    if has_rollout_flags(args) and args.method and "rollout" not in args.method:
        raise UserError("--head_fusion and --discard_ratio change only rollout; add rollout to --method")
    if args.mode == "faithfulness" and args.num_images < FEWEST_IMAGES:
        raise UserError(f"--num_images {args.num_images} is too few for intervals; choose {FEWEST_IMAGES} or more")
    if args.samples and args.mode != "faithfulness" and "masks" not in (args.method or ()):
        raise UserError("--samples is the number of random masks; add --method masks, or --mode faithfulness")


def check_predictions(args):
    """Raise `UserError` for flags that do not fit predictions of many images as files."""
    files = [flag for flag in FILES if flag != "html" and getattr(args, flag)]
    if files and not (is_folder(args) or (args.mode == "cifar" and not args.live)):
        raise UserError(f"--{files[0]} is for many images; use it with --mode cifar, or with a folder as --image_path")
    if args.attention and not args.embeddings:
        raise UserError("--attention is a part of the embeddings; add --embeddings")
    for flag in files:
        if getattr(args, flag) is not True:
            check_file(flag, getattr(args, flag))
    if is_folder(args) and (args.gif_path or args.method or has_rollout_flags(args) or args.samples):
        raise UserError(
            f"{args.image_path} is a folder, of which no GIFs are drawn; give one image, or leave out --method"
            " and other flags of GIFs"
        )


def is_folder(args):
    """Whether the images of a folder are to be classified."""
    return args.mode == "custom" and os.path.isdir(args.image_path or "")


def shows_example(args):
    """Whether the command writes only a live page, which opens with an example."""
    return args.live and args.mode == "cifar"


def has_rollout_flags(args):
    return args.head_fusion != "mean" or args.discard_ratio > 0


def check_html(args):
    """Raise `UserError` if the page that --html asks for cannot be written."""
    check_file("html", args.html)
    if args.mode not in SINGLE_MODES and not shows_example(args):
        raise UserError("--html shows single images; add --mode cifar-single or --mode custom")


def check_file(flag, typed):
    """Raise `UserError` if the file that one of the flags in `FILES` names cannot be written."""
    path, (kind, suffixes) = Path(typed), FILES[flag]
    if path.suffix.lower() not in suffixes or typed.endswith(("/", "\\")) or path.is_dir():
        raise UserError(f"--{flag} {typed!r} is not {kind} file; choose a file name that ends in {suffixes[0]}")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"cannot write {path}; choose a folder you may write to")
