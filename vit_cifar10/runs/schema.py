"""What the files of a run may contain: the type and the range of every entry, in one place.

`CHECKPOINT` describes best.pt, last.pt and previous.pt, `CONFIG` config.json, `METRICS` a line of metrics.csv, `LOGITS`
test_logits.pt, `FAITHFULNESS` faithfulness.pt, and `ROBUSTNESS` robustness.pt. All of these files may come from
strangers, so they are checked before anything uses them:

    check(value, CHECKPOINT)     # raises Invalid: model_config.depth is not a whole number from 1 to 1,000

Records live longer than code: entries that this version does not know are kept, except in what becomes the argument of
a function. What describes an entry, its kind, is one of:

    Kind, Number         a predicate, such as TEXT or whole(1)
    (kind, None)         a value of this kind, or None
    [kind], [kind] * 3   a list of any number of items, or of three
    {"field": kind}      a dict with this entry; "field?" may be missing
    {TEXT: kind}         a dict whose other keys are TEXT, and their values of this kind; without it, there are none
    function             a function that returns the kind of a given dict
"""

import dataclasses
import math
import os
from collections.abc import Callable

import torch

from vit_cifar10.data.tables import DATASETS
from vit_cifar10.utils import limits
from vit_cifar10.utils.choices import RESIZES
from vit_cifar10.utils.cli import Number
from vit_cifar10.utils.networks import NETWORKS


class Invalid(ValueError):
    """An entry is missing, of the wrong type or out of range. The message contains its place, `name`."""

    def __init__(self, name, expected):
        super().__init__(f"{name or 'it'} is not {expected}")


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values for which `holds(value)` is true; `name` describes them in an error message."""

    holds: Callable
    name: str


def check(value, kind, name=""):
    """Raise `Invalid` unless a value is of this kind; `name` is its place."""
    if isinstance(kind, tuple):
        if value is not None:
            check(value, kind[0], name)
    elif isinstance(kind, Kind | Number):
        if not kind.holds(value):
            raise Invalid(name, kind.name)
    elif isinstance(kind, list):
        check_list(value, kind, name)
    elif not isinstance(value, dict):
        raise Invalid(name, "a dict")
    else:
        check_dict(value, kind if isinstance(kind, dict) else kind(value), name)


def check_list(value, kinds, name):
    longest = len(kinds) if len(kinds) > 1 else limits.LARGEST_SIZE
    if not isinstance(value, list) or len(value) > longest or (len(kinds) > 1 and len(value) < longest):
        raise Invalid(name, f"a list of {'' if len(kinds) > 1 else 'at most '}{longest:,} items")
    for place, item in enumerate(value):
        check(item, kinds[0], f"{name}[{place}]")


def check_dict(value, kinds, name):
    dot, fields = f"{name}." if name else "", set()
    for field in filter(is_text, kinds):
        key = field.removesuffix("?")
        fields.add(key)
        if key in value:
            check(value[key], kinds[field], f"{dot}{key}")
        elif key == field:
            raise Invalid(f"{dot}{key}", "in the file")
    others = next((kind for kind in kinds if isinstance(kind, Kind | Number)), None)
    for key in value.keys() - fields:
        check(key, others or TEXT, f"a key of {name or 'the file'}")
        if others is None:
            raise Invalid(f"{dot}{key}", "an entry of this version")
        check(value[key], kinds[others], f"{dot}{key}")


# Predicates


def number(low=None, high=None):
    """A number from `low` to `high`."""
    return Number(float, at_least=low, at_most=high)


def whole(low, high=limits.LARGEST_COUNT):
    """A whole number from `low` to `high`."""
    return Number(int, at_least=low, at_most=high)


def one_of(choices):
    """One of several texts."""
    return Kind(lambda value: is_text(value) and value in choices, f"one of {', '.join(choices)}")


def text(longest):
    """Printable text of at most `longest` characters."""
    holds = lambda value: is_text(value) and len(value) <= longest and value.isprintable()  # noqa: E731
    return Kind(holds, f"printable text of at most {longest} characters")


def tensor(low=-math.inf, high=math.inf, shape=None):
    """A tensor of finite numbers from `low` to `high`; with `shape`, of this shape."""

    def holds(value):
        is_tensor = isinstance(value, torch.Tensor) and (shape is None or tuple(value.shape) == shape)
        return is_tensor and bool(value.isfinite().all() & (value >= low).all() & (value <= high).all())

    return Kind(holds, f"a tensor of finite numbers{f' of shape {shape}' if shape else ''}")


def is_text(value):
    return isinstance(value, str)


def is_path(value):
    """Whether a value is text that the system accepts as a path."""
    try:
        return is_text(value) and len(value) <= limits.LONGEST_PATH and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def is_plain(value, depth=5):
    """Whether a value is None, a switch, a number or text, or consists of such values, nested at most `depth` deep."""
    if isinstance(value, dict):
        return depth > 0 and all(TEXT.holds(key) and is_plain(item, depth - 1) for key, item in value.items())
    if isinstance(value, list):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool) or is_path(value) or NUMBER.holds(value)


NUMBER, NON_NEGATIVE, FRACTION = number(), number(0, 1e30), number(0, 1)
SIZE = whole(1, limits.LARGEST_SIZE)
TEXT, HASH = text(255), text(64)
SWITCH = Kind(lambda value: isinstance(value, bool), "True or False")
PATH = Kind(is_path, f"a path of at most {limits.LONGEST_PATH} characters")
PLAIN = Kind(is_plain, "made of plain values")
ANYTHING = Kind(lambda value: True, "anything")  # nothing uses it

# The files

COLORS = [number(-1e6, 1e6)] * 3
WEIGHTS = {TEXT: tensor()}


def kind_of(kind):
    """The kind of an entry of model_config, from the kind in the table of networks."""
    if isinstance(kind, tuple):
        return one_of(kind)
    return SWITCH if kind is bool else kind


def model_config(config):
    """The kind of an argument of `build_model`, from its network's entry in the table of networks."""
    network = NETWORKS.get(str(config.get("model")), NETWORKS["vit"])
    own = {size.argument: size.kind for size in network.sizes} | network.other_arguments
    kinds = {f"{argument}?": kind_of(kind) for argument, kind in own.items()}
    kinds["img_size"] = kinds.pop("img_size?")
    return {"model": one_of(tuple(NETWORKS)), "in_chans?": whole(3, 3), "num_classes": SIZE, **kinds}


LOSS = number(-1, 1e30)
METRICS = {
    "epoch": whole(1, limits.LARGEST_EPOCHS),
    **{
        f"{split}_{quantity}?": (kind, None)
        for split in ("train", "val", "test")
        for quantity, kind in (("loss", LOSS), ("accuracy", FRACTION))
    },
    **dict.fromkeys(("learning_rate?", "images_per_second?", "train_seconds?", "seconds?"), (NON_NEGATIVE, None)),
    TEXT: (NUMBER, None),
}

FLAGS = {
    "epochs?": whole(1, limits.LARGEST_EPOCHS),
    "batch_size?": whole(1),
    "seed?": whole(0, limits.LARGEST_SEED),
    "warmup_epochs?": (NON_NEGATIVE, None),
    "num_train_images?": (whole(1), None),
    "num_test_images?": (whole(1), None),
    "data_path?": PATH,
    "resize?": one_of(tuple(RESIZES)),
    TEXT: PLAIN,
}
RECORDED_FLAGS = {**FLAGS, "epochs": FLAGS["epochs?"]}
CONFIG = {"flags": RECORDED_FLAGS, "train_images": whole(1), "started?": TEXT, TEXT: PLAIN}

OPTIMIZER = {"state": {whole(0): {TEXT: tensor()}}, TEXT: ANYTHING}
OPTIMIZERS = {"together": [OPTIMIZER] * 2}
SCALER = {
    "scale": number(1e-30, 1e30),
    "growth_factor": number(1, 100),
    "backoff_factor": FRACTION,
    "growth_interval": whole(1),
    "_growth_tracker": whole(0),
}
STEP = whole(0, limits.LARGEST_STEP)
LOWEST_LOSS = Kind(lambda value: NUMBER.holds(value) or value == math.inf, "a finite number or infinity")
TRAINING = {
    "step": STEP,
    "sums": tensor(shape=(2,)),
    "seconds": [NON_NEGATIVE] * 2,
    "timed_steps": STEP,
    "model": (WEIGHTS, None),
    "optimizer": lambda state: OPTIMIZERS if "together" in state else OPTIMIZER,
    "schedule": {"scale": FRACTION, "best_loss": LOWEST_LOSS, "bad_epochs": whole(0), TEXT: ANYTHING},
    "scaler": lambda state: SCALER if state else {},  # only fp16 has one
    "average": ({"module": WEIGHTS, "updates": STEP, TEXT: ANYTHING}, None),
    "data": HASH,
    "rows": [METRICS],
    "best": (METRICS, None),  # may be later than `rows`: best.pt may be newer than last.pt
    TEXT: ANYTHING,
}
CHECKPOINT = {
    "format": whole(1, 1),
    "model_config": model_config,
    "weights": WEIGHTS,
    "classes": [TEXT],
    "mean": COLORS,
    "std": [number(1e-6, 1e6)] * 3,
    "dataset": one_of(DATASETS),
    "epoch": whole(0, limits.LARGEST_EPOCHS),
    "metrics": lambda metrics: METRICS if metrics else {},  # before the first epoch, there are none
    "recipe": FLAGS,
    "init?": {"name": TEXT, "sha256": HASH, TEXT: PLAIN},
    "images?": {"seen": tensor(), "test": (HASH, None), TEXT: PLAIN},
    "teacher?": {"name": TEXT, "sha256": HASH, "flops": NON_NEGATIVE, TEXT: PLAIN},
    "training?": TRAINING,
    TEXT: ANYTHING,
}
LOGITS = {"logits": tensor(), "labels": tensor(), "checkpoint_sha256": HASH, "test_sha256": HASH, TEXT: ANYTHING}
PROBABILITIES, CORRELATIONS = tensor(-1e-3, 1 + 1e-3), tensor(-1 - 1e-3, 1 + 1e-3)  # with rounding
FAITHFULNESS = {
    "protocol": NUMBER,
    "checkpoint_sha256": HASH,
    "test_sha256": HASH,
    "methods": [TEXT],
    "samples": (whole(1, limits.LARGEST_SAMPLES), None),
    "curves": PROBABILITIES,
    "runner_up": PROBABILITIES,
    "randomized": CORRELATIONS,
    "agreement": CORRELATIONS,
    "seconds": tensor(0),
    TEXT: ANYTHING,
}
ROBUSTNESS = {
    "checkpoint_sha256": HASH,
    "test_sha256": HASH,
    "settings_sha256": HASH,
    "correct": {TEXT: tensor(0, 1)},
    TEXT: ANYTHING,
}
