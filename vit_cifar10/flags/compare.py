"""The flags of compare.py."""

from vit_cifar10.utils import choices
from vit_cifar10.utils.cli import POSITIVE_INT, WORKERS, ArgumentParser, path
from vit_cifar10.utils.errors import UserError

ROBUSTNESS_IMAGES = 500  # by default


def parse(argv=None):
    """Read and check the flags. Raises `UserError` if one of them is wrong or has no effect."""
    args = build_parser().parse_args(argv)
    if args.num_images and not args.robustness:
        raise UserError("--num_images only applies to --robustness; add it or leave out --num_images")
    args.num_images = args.num_images or ROBUSTNESS_IMAGES
    return args


def build_parser():
    parser = ArgumentParser(prog="compare.py", description="Compare trained runs.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder, a checkpoint, or a run's name")
    add("--model_path", type=path, default="./model", help="folder of the checkpoints of all runs")
    add("--output_path", type=path, default="./output", help="folder of the metrics and test results of all runs")
    add("--compare_path", type=path, default="./output/comparison", help="folder for tables and pictures")
    add("--data_path", type=path, default="./data", help="folder of the data set; CIFAR is downloaded to it")
    names = "text file with a name per line for each class, in the order of the networks' logits"
    add("--class_names", type=path, metavar="FILE", help=names)
    add("--device", choices=choices.DEVICES, default="auto", help="device; auto prefers cuda, then mps, then cpu")
    add("--batch_size", type=POSITIVE_INT, help="test images per batch (default 1000, on a CPU 100)")
    add("--num_workers", type=WORKERS, default=2, help="processes that decode a folder of images")
    robustness = "also test the runs on corrupted images, all runs on the same ones, and under attack (PGD)"
    add("--robustness", action="store_true", help=robustness)
    subset = f"--robustness: size of the stratified subset of the test images (default {ROBUSTNESS_IMAGES})"
    add("--num_images", type=POSITIVE_INT, help=subset)
    return parser
