"""How long a run takes on this machine: `--minutes`, and a word before a run that takes very long.

pace = measure(trainer)                        # a few steps of each kind, and part of an evaluation
epochs = epochs_within(10, pace)
"""

import dataclasses
import re
import time

from vit_cifar10.utils.device import synchronize
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import ROOT

RECIPES = ROOT / "recipes"
STEP_SECONDS = 1.5  # to measure each kind of step
EVALUATED_IMAGES = 1_000
LONG_HOURS = 3  # runs that take longer are worth a word
SUGGESTED = {True: "vit-layer6-36ep", False: "fast-cnn"}  # the recipe to suggest: for a ViT, or for another network


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds per epoch of training, on average over the run, and per evaluation."""

    epoch: float
    evaluation: float


def measure(trainer):
    """Measure the `Pace` of a whole run by training its trainer, which cannot be used for the run afterwards."""
    total, small = trainer.schedule.total_steps, trainer.patches.small_steps
    seconds_on_small = seconds_per_step(trainer, 0) if small else 0.0
    fewest, most = trainer.patches.keep(small), trainer.patches.keep(total - 1)  # patches of whole images
    seconds_on_fewest = seconds_on_most = seconds_per_step(trainer, small)
    if fewest < most:
        seconds_on_most = seconds_per_step(trainer, total - 1)
    seconds = small * seconds_on_small
    for step in range(small, total):
        progress = (trainer.patches.keep(step) - fewest) / (most - fewest or 1)
        seconds += seconds_on_fewest + (seconds_on_most - seconds_on_fewest) * progress
    return Pace(seconds / total * trainer.steps_per_epoch, evaluation_seconds(trainer))


def seconds_per_step(trainer, step):
    """The mean time of steps like step number `step`, without the first one, which takes memory and may compile."""

    def time_of(steps):
        started = time.perf_counter()
        for _ in range(steps):
            trainer.step = step
            trainer.step_on(*batch)
        synchronize(trainer.device)
        return time.perf_counter() - started

    batch = trainer.train_split.images[: trainer.batch_size], trainer.train_split.labels[: trainer.batch_size]
    trainer.model.train()
    time_of(1)
    first = time_of(1)
    steps = trainer.job.broadcast_from_rank0(lambda: max(1, round(STEP_SECONDS / first)))  # all ranks do as many
    return time_of(steps) / steps


def evaluation_seconds(trainer):
    """The time of one evaluation of the validation and the test images."""
    count = min(EVALUATED_IMAGES, len(trainer.test_split))
    started = time.perf_counter()
    trainer.predict(trainer.test_split.subset(range(count)))
    synchronize(trainer.device)
    images = (len(trainer.test_split) + len(trainer.val_split or ())) / trainer.job.size
    return (time.perf_counter() - started) * images / count


def epochs_within(minutes, pace, eval_every=1, spent=0.0):
    """The number of epochs that fit into so many minutes, `spent` seconds of which have passed.

    There is an evaluation after every `eval_every` epochs, and one at the end.

    Raises:
        UserError: not even one epoch fits.
    """
    epochs = int((60 * minutes - spent - pace.evaluation) / (pace.epoch + pace.evaluation / eval_every))
    if epochs < 1:
        needed = (spent + pace.epoch + 2 * pace.evaluation) / 60
        raise UserError(
            f"--minutes {minutes:g} is too short: one epoch takes about {needed:.2g} minutes here; raise it, or train"
            " on fewer images with --num_train_images"
        )
    return epochs


def advice_for_a_long_run(trainer, seconds):
    """A line for a run that will take so many seconds on a CPU; None if it is short or has other hardware."""
    if trainer.device.type != "cpu" or seconds < 3600 * LONG_HOURS:
        return None
    line = f"this run will take about {in_words(seconds)} on this machine; --minutes 60 would fit it into an hour"
    name = SUGGESTED[trainer.model.has_attention]
    result = measured_result(RECIPES / f"{name}.txt")
    if trainer.args.dataset == "cifar10" and result:
        line += f", and @recipes/{name}.txt reaches {result}"
    return line


def measured_result(recipe):
    """What the head of a recipe reports, such as "88.18 % in 65 min"; None if there is no such recipe or result."""
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    accuracy = re.search(r"^# measured: ([\d.]+(?: ± [\d.]+)? %)", text, re.MULTILINE)
    minutes = re.search(r"^# measured: .* ([\d.,]+ min) of training", text, re.MULTILINE)
    return f"{accuracy[1]} in {minutes[1]}" if accuracy and minutes else None


def in_words(seconds):
    """A long time, such as "5 hours" or "9 days"."""
    hours = seconds / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"
