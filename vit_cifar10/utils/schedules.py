"""The table of learning-rate schedules. To add one, write its function and an entry in `SCHEDULES`.

A schedule is a function of the step (from 0 to `total_steps` - 1), `total_steps` and `warmup_steps`. It returns the
fraction of the peak learning rate to use, in (0, 1]. The rate rises for `warmup_steps` steps, reaches its peak at step
`warmup_steps` ("onecycle": one step earlier), and then falls or stays.

    factor = SCHEDULES["cosine"].factor(step, total_steps=1000, warmup_steps=50)
"""

import dataclasses
import functools
import math
from collections.abc import Callable

FINAL_FACTOR = 0.01  # fraction of the peak at the end of cosine and linear; at 0, the last step would be wasted


def after_warmup(decay):
    """Make a schedule of `decay`, a function of the progress from the peak, 0, to the last step, 1."""

    @functools.wraps(decay)
    def factor(step, total_steps, warmup_steps=0):
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return decay((step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))

    return factor


@after_warmup
def cosine(progress):
    return half_cosine(1, FINAL_FACTOR, progress)


@after_warmup
def linear(progress):
    return 1 + (FINAL_FACTOR - 1) * progress


@after_warmup
def constant(progress):
    return 1.0


def one_cycle(step, total_steps, warmup_steps=0):
    """PyTorch's OneCycleLR (Smith and Topin, 2019): half a cosine up from 1/25 of the peak, then down to 1/250,000."""
    peak_step = max(0, warmup_steps - 1)
    if step < peak_step:
        return half_cosine(1 / 25, 1, step / peak_step)
    return half_cosine(1, 1 / 250_000, (step - peak_step) / max(1, total_steps - 1 - peak_step))


def half_cosine(start, end, progress):
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


@dataclasses.dataclass(frozen=True)
class Entry:
    """A schedule.

    Attributes:
        factor: the function.
        help: what it does after the warmup, for --help.
        warmup: the default warmup as a fraction of the epochs.
        longest_warmup: the longest default warmup, in epochs.
        needs_val_loss: whether the rates also fall when the validation loss stops falling; see training/schedule.py.
    """

    factor: Callable
    help: str
    warmup: float = 0.2
    longest_warmup: float = 10
    needs_val_loss: bool = False


SCHEDULES = {
    "cosine": Entry(cosine, "falls to 1 % along half a cosine"),
    "linear": Entry(linear, "falls to 1 % along a line"),
    "onecycle": Entry(one_cycle, "rises and falls along half a cosine each", warmup=0.3, longest_warmup=math.inf),
    "plateau": Entry(constant, "falls tenfold when the validation loss stops falling", needs_val_loss=True),
    "constant": Entry(constant, "stays at the peak"),
}
