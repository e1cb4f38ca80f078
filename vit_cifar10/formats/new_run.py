"""Write a network that another library has trained as a run, which test.py and compare.py read like any other."""

from pathlib import Path

from vit_cifar10.data.classes import describe_match, match_classes
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.formats.plain import to_plain
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.schema import CHECKPOINT, Invalid, check
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_folder
from vit_cifar10.utils.text import printable


def write_run(foreign, folder, dataset=None):
    """Write best.pt of a `ForeignViT` network to a folder without a run, and return what it contains.

    With the name of a data set whose classes are known, the network gets its classes, in their order.

    Raises:
        UserError: the network is not plain, it has other classes than the data set, the folder already holds a run, or
            it cannot be written.
    """
    folder = Path(folder)
    if any((folder / name).exists() for name in checkpoint.NAMES):
        raise UserError(f"{folder} already holds a run; choose another folder")
    config, weights = to_plain(foreign)
    mean, std, resize = foreign.preparation()
    classes = foreign.class_names(config["num_classes"])
    if dataset:
        classes, weights = adopt_classes(DATASETS[dataset].classes, classes, weights, f"{foreign.source} and {dataset}")
    contents = {
        "format": checkpoint.FORMAT,
        "model_config": config,
        "weights": weights,
        "classes": classes,
        "mean": mean,
        "std": std,
        "dataset": dataset or "folder",  # the images that --data_path may name
        "epoch": 0,
        "metrics": {},
        "recipe": {"converted_from": foreign.source, "resize": resize},
    }
    try:
        check(contents, CHECKPOINT)
    except Invalid as error:
        raise UserError(f"{foreign.source} is refused: {error}; it is damaged, or not supported") from error
    with atomic_folder(folder) as partial:
        checkpoint.save(partial / checkpoint.BEST, contents)
    return contents


def adopt_classes(names, classes, weights, which):
    """The classes of a data set, and the weights with the rows of the head in their order; print what was matched.

    Raises:
        UserError: the classes differ; `which` are the network and the data set, for the message.
    """
    if len(names) != len(classes):
        raise UserError(f"{which} do not fit: {len(classes):,} and {len(names):,} classes; leave out --dataset")
    places, how = match_classes(names, classes, in_order=True)
    if how:
        print(printable(describe_match(names, classes, places, how)))
    head = {name: weights[name][places] for name in ("head.weight", "head.bias") if name in weights}
    return list(names), {**weights, **head}
