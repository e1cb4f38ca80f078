"""What the files of a run may contain: the type and the range of every entry, in one place.

`CHECKPOINT` describes best.pt, last.pt and previous.pt, `CONFIG` config.json, `METRICS` metrics.csv, `LOGITS`
test_logits.pt, and `FAITHFULNESS` faithfulness.pt. All of these files may come from strangers, so they are checked
before anything uses them:

    CHECKPOINT.check(value)     # raises Invalid: model_config.depth is not a whole number from 1 to 1,000
"""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Set
from typing import Any

import torch

from vit_cifar10.data.tables import DATASETS
from vit_cifar10.runs.metrics_csv import COLUMNS, MAY_BE_NONE
from vit_cifar10.utils import limits
from vit_cifar10.utils.networks import NETWORKS


class Invalid(ValueError):
    """An entry is missing, of the wrong type or out of range. The message contains its place, `name`."""

    def __init__(self, name, expected):
        super().__init__(f"{name or 'it'} is not {expected}")


# Kinds of entries. `check(value, name)` raises `Invalid` unless the value is of this kind; `name` is its place.


@dataclasses.dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; with `whole`, an integer. With `or_infinite`, it may also be infinity."""

    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    whole: bool = False
    or_infinite: bool = False

    def check(self, value, name=""):
        is_number = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        is_in_range = is_number and (self.low <= value <= self.high or (self.or_infinite and value == math.inf))
        if not is_in_range:  # nan is in no range
            bounds = "" if self.high == sys.float_info.max else f" from {self.low:,.15g} to {self.high:,.15g}"
            raise Invalid(name, f"a {'whole' if self.whole else 'finite'} number{bounds}")


@dataclasses.dataclass(frozen=True)
class Text:
    """Text of at most `longest` characters, printable unless `is_path`; with `choices`, one of them."""

    longest: int = 255
    choices: tuple = ()
    is_path: bool = False

    def check(self, value, name=""):
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            raise Invalid(name, f"one of {', '.join(self.choices)}" if self.choices else "text")
        is_safe = is_file_name(value) if self.is_path else value.isprintable()
        if len(value) > self.longest or not is_safe:
            raise Invalid(name, f"printable text of at most {self.longest} characters")


def is_file_name(text):
    """Whether the system accepts the characters of a path."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


class Switch:
    """True or False."""

    def check(self, value, name=""):
        if not isinstance(value, bool):
            raise Invalid(name, "True or False")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of finite numbers from `low` to `high`; with `shape`, of this shape."""

    shape: tuple | None = None
    low: float = -math.inf
    high: float = math.inf

    def check(self, value, name=""):
        is_tensor = isinstance(value, torch.Tensor) and (self.shape is None or tuple(value.shape) == self.shape)
        if not (is_tensor and bool(value.isfinite().all() & (value >= self.low).all() & (value <= self.high).all())):
            raise Invalid(name, f"a tensor of finite numbers{f' of shape {self.shape}' if self.shape else ''}")


@dataclasses.dataclass(frozen=True)
class OrNone:
    """None, or an entry of kind `item`."""

    item: Any

    def check(self, value, name=""):
        if value is not None:
            self.item.check(value, name)


class Scalar:
    """The value of a flag: None, a switch, a number or text."""

    def check(self, value, name=""):
        if value is not None and not isinstance(value, bool):
            kind = Text(longest=5_000, is_path=True) if isinstance(value, str) else Number()
            kind.check(value, name)


class Plain:
    """The value of a flag, or a dict of such values."""

    def check(self, value, name=""):
        (DictOf(Scalar()) if isinstance(value, dict) else Scalar()).check(value, name)


class Unused:
    """Anything, because nothing uses it."""

    def check(self, value, name=""):
        pass


@dataclasses.dataclass(frozen=True)
class ListOf:
    """A list of `shortest` to `longest` items of one kind."""

    item: Any
    shortest: int = 0
    longest: int = limits.LARGEST_SIZE

    def check(self, value, name=""):
        if not isinstance(value, list) or not self.shortest <= len(value) <= self.longest:
            length = f"{self.shortest:,} to " if self.shortest < self.longest else ""
            raise Invalid(name, f"a list of {length}{self.longest:,} items")
        for place, item in enumerate(value):
            self.item.check(item, f"{name}[{place}]")


@dataclasses.dataclass(frozen=True)
class DictOf:
    """A dict whose keys are of kind `key` and whose values are of kind `item`."""

    item: Any
    key: Any = Text()

    def check(self, value, name=""):
        if not isinstance(value, dict):
            raise Invalid(name, "a dict")
        for key, item in value.items():
            self.key.check(key, f"a key of {name}")
            self.item.check(item, f"{name}.{key}")


@dataclasses.dataclass(frozen=True)
class Record:
    """A dict with an entry for each of `fields`, {name: kind}. Those in `optional` may be missing.

    Other entries must be of kind `others`; if it is None, there must be none.
    """

    fields: dict
    optional: Set = frozenset()
    others: Any = None

    @property
    def required(self):
        return self.fields.keys() - self.optional

    def check(self, value, name=""):
        if not isinstance(value, dict):
            raise Invalid(name, "a dict")
        dot = f"{name}." if name else ""
        for field, kind in self.fields.items():
            if field in value:
                kind.check(value[field], f"{dot}{field}")
            elif field not in self.optional:
                raise Invalid(f"{dot}{field}", "in the file")
        for key in value.keys() - self.fields.keys():
            Text().check(key, f"a key of {name or 'the file'}")
            if self.others is None:
                raise Invalid(f"{dot}{key}", "an entry of this version")
            self.others.check(value[key], f"{dot}{key}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A dict of one of several kinds; `choose` returns the kind for a given dict."""

    choose: Callable

    def check(self, value, name=""):
        if not isinstance(value, dict):
            raise Invalid(name, "a dict")
        self.choose(value).check(value, name)


def whole(low, high=limits.LARGEST_COUNT):
    """A whole number from `low` to `high`."""
    return Number(low, high, whole=True)


# The files

SIZE, NON_NEGATIVE, FRACTION = whole(1, limits.LARGEST_SIZE), Number(0, 1e30), Number(0, 1)
HASH = Text(longest=64)
WEIGHTS = DictOf(Tensor())


def kind_of(kind):
    """The kind of an entry of model_config, from the kind in the table of networks."""
    if isinstance(kind, tuple):
        return Text(choices=kind)
    return Switch() if kind is bool else Number(*kind.range, whole=kind.is_whole)


def network_record(network):
    """The kind of a network's model_config, from its entry in the table of networks."""
    own = {size.argument: size.kind for size in network.sizes} | network.other_arguments
    fields = {
        "model": Text(choices=tuple(NETWORKS)),
        "in_chans": whole(3, 3),
        "num_classes": SIZE,
        **{argument: kind_of(kind) for argument, kind in own.items()},
    }
    return Record(fields, optional=fields.keys() - {"model", "img_size", "num_classes"})


MODEL_CONFIG = Choice(lambda config: network_record(NETWORKS.get(str(config.get("model")), NETWORKS["vit"])))


def metrics_kind(column):
    """The kind of a column of metrics.csv."""
    kind = FRACTION if column.endswith("accuracy") else Number(-1, 1e30) if column.endswith("loss") else NON_NEGATIVE
    return OrNone(kind) if column in MAY_BE_NONE else kind


ROW = Record({"epoch": whole(1, limits.LARGEST_EPOCHS), **{column: metrics_kind(column) for column in COLUMNS[1:]}})
METRICS = ListOf(Record(ROW.fields, optional=set(COLUMNS[1:])), longest=limits.LARGEST_EPOCHS)
EPOCH_METRICS = Choice(lambda metrics: ROW if metrics else Record({}))  # before the first epoch, there are none

FLAGS = {
    "epochs": whole(1, limits.LARGEST_EPOCHS),
    "batch_size": whole(1),
    "seed": whole(0, limits.LARGEST_SEED),
    "warmup_epochs": OrNone(NON_NEGATIVE),
    "num_train_images": OrNone(whole(1)),
    "num_test_images": OrNone(whole(1)),
    "data_path": Text(longest=5_000, is_path=True),
}
RECIPE = Record(FLAGS, optional=FLAGS.keys(), others=Scalar())
RECORDED_FLAGS = Record(FLAGS, optional=FLAGS.keys() - {"epochs"}, others=Scalar())
CONFIG = Record(
    {"flags": RECORDED_FLAGS, "train_images": whole(1), "started": Text()}, optional={"started"}, others=Plain()
)

OPTIMIZER = Record({"state": DictOf(DictOf(Tensor()), key=whole(0)), "param_groups": Unused()})
OPTIMIZERS = Record({"together": ListOf(OPTIMIZER, shortest=2, longest=2)})
SCALER = Record(
    {
        "scale": Number(1e-30, 1e30),
        "growth_factor": Number(1, 100),
        "backoff_factor": FRACTION,
        "growth_interval": whole(1),
        "_growth_tracker": whole(0),
    }
)
TRAINING = Record(
    {
        "step": whole(0, limits.LARGEST_STEP),
        "sums": Tensor(shape=(2,)),
        "seconds": ListOf(NON_NEGATIVE, shortest=2, longest=2),
        "timed_steps": whole(0, limits.LARGEST_STEP),
        "model": OrNone(WEIGHTS),
        "optimizer": Choice(lambda state: OPTIMIZERS if "together" in state else OPTIMIZER),
        "schedule": Record({"scale": FRACTION, "best_loss": Number(or_infinite=True), "bad_epochs": whole(0)}),
        "scaler": Choice(lambda state: SCALER if state else Record({})),  # only fp16 has one
        "average": OrNone(Record({"module": WEIGHTS, "updates": whole(0, limits.LARGEST_STEP)})),
        "data": HASH,
        "rows": ListOf(ROW, longest=limits.LARGEST_EPOCHS),
        "best": OrNone(ROW),  # may be later than `rows`: best.pt may be newer than last.pt
    }
)
CHECKPOINT = Record(
    {
        "format": whole(1, 1),
        "model_config": MODEL_CONFIG,
        "weights": WEIGHTS,
        "classes": ListOf(Text(), shortest=1),
        "mean": ListOf(Number(-1e6, 1e6), shortest=3, longest=3),
        "std": ListOf(Number(1e-6, 1e6), shortest=3, longest=3),
        "dataset": Text(choices=DATASETS),
        "epoch": whole(0, limits.LARGEST_EPOCHS),
        "metrics": EPOCH_METRICS,
        "recipe": RECIPE,
        "init": Record({"name": Text(), "sha256": HASH}),
        "teacher": Record({"name": Text(), "sha256": HASH, "flops": Number(0, 1e30)}),
        "training": TRAINING,
    },
    optional={"init", "teacher", "training"},
)
LOGITS = Record({"logits": Tensor(), "labels": Tensor(), "checkpoint_sha256": HASH, "test_sha256": HASH})
PROBABILITIES, CORRELATIONS = Tensor(low=-1e-3, high=1 + 1e-3), Tensor(low=-1 - 1e-3, high=1 + 1e-3)  # with rounding
FAITHFULNESS = Record(
    {
        "protocol": Number(whole=True),
        "checkpoint_sha256": HASH,
        "test_sha256": HASH,
        "methods": ListOf(Text()),
        "samples": OrNone(Number(low=1, high=limits.LARGEST_SAMPLES, whole=True)),
        "curves": PROBABILITIES,
        "runner_up": PROBABILITIES,
        "randomized": CORRELATIONS,
        "agreement": CORRELATIONS,
        "seconds": Tensor(low=0),
    }
)
