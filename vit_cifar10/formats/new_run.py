"""Write a network that another library has trained as a run, which test.py and compare.py read like any other."""

from pathlib import Path

from vit_cifar10.formats.plain import to_plain
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.schema import CHECKPOINT, Invalid, check
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_folder


def write_run(foreign, folder):
    """Write best.pt of a `ForeignViT` network to a folder without a run, and return what it contains.

    Raises:
        UserError: the network is not plain, the folder already holds a run, or it cannot be written.
    """
    folder = Path(folder)
    if any((folder / name).exists() for name in checkpoint.NAMES):
        raise UserError(f"{folder} already holds a run; choose another folder")
    config, weights = to_plain(foreign)
    mean, std = foreign.colors()
    contents = {
        "format": checkpoint.FORMAT,
        "model_config": config,
        "weights": weights,
        "classes": foreign.class_names(config["num_classes"]),
        "mean": mean,
        "std": std,
        "dataset": "folder",  # the images that --data_path may name
        "epoch": 0,
        "metrics": {},
        "recipe": {"converted_from": foreign.source},
    }
    try:
        check(contents, CHECKPOINT)
    except Invalid as error:
        raise UserError(f"{foreign.source} is refused: {error}; it is damaged, or not supported") from error
    with atomic_folder(folder) as partial:
        checkpoint.save(partial / checkpoint.BEST, contents)
    return contents
