"""What happens between training steps: progress display, saves and stops, which all ranks agree on."""

import contextlib
import enum
import math
import shlex
import sys
import time

from tqdm import tqdm

from vit_cifar10.evaluation.full_test import send_pictures
from vit_cifar10.runs.trackers import open_tracker
from vit_cifar10.training.distributed import AsyncMaxAllReduce
from vit_cifar10.training.signals import Interrupted
from vit_cifar10.training.trainer import Hooks


class Action(enum.IntEnum):
    """What all ranks do after a step. If ranks request different actions, the highest one wins."""

    NONE = 0
    SAVE = 1
    STOP = 2
    FAIL = 3  # the loss is not finite


class StepHooks(Hooks):
    """Shows progress after every step, and does what any rank requests on all ranks: save, stop or fail."""

    def __init__(self, trainer, run, signals, bar):
        self.trainer, self.run, self.signals, self.bar = trainer, run, signals, bar
        self.agree = AsyncMaxAllReduce(trainer.job)
        self.shown_at = self.started_at = time.perf_counter()
        self.first_step = trainer.step

    def start_epoch(self, epoch):
        self.bar.set_description(f"epoch {epoch}/{self.trainer.args.epochs}")

    def after_step(self):
        self.bar.update(self.trainer.batch_size)
        action = self.requested_action()
        if self.is_display_due() and not self.show_metrics():
            action = Action.FAIL
        self.apply(*self.agree(action, self.signals.received))

    def after_batch(self):
        self.apply(*self.agree(self.requested_action(), self.signals.received))

    def requested_action(self):
        """What this rank requests."""
        if self.signals.received:
            return Action.STOP
        return Action.SAVE if self.run and self.run.is_save_due() else Action.NONE

    def apply(self, action, signal_number):
        """Do what the ranks have agreed on. Raises `Interrupted` to stop, or `UserError` if the loss is not finite."""
        trainer = self.trainer
        if action == Action.FAIL:
            trainer.check_loss(math.nan)
        if action != Action.NONE:
            trainer.rebalance_sums()
        if action == Action.STOP:
            raise Interrupted(signal_number)
        if action == Action.SAVE:
            with trainer.paused():
                trainer.job.run_on_rank0(lambda: self.run.save(trainer))

    def is_display_due(self):
        """Whether the displayed metrics are half a second old, or the last step of an epoch is complete."""
        is_last_step = self.trainer.step % self.trainer.steps_per_epoch == 0
        return is_last_step or time.perf_counter() >= self.shown_at + 0.5

    def show_metrics(self):
        """Show loss and accuracy next to the bar, and return whether the loss is finite."""
        self.shown_at = time.perf_counter()
        loss, accuracy = self.trainer.running_metrics()
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, acc {100 * accuracy:.1f} %, lr {self.trainer.learning_rate:.1e}", refresh=False
        )
        return math.isfinite(loss)

    def log_epoch(self, metrics):
        """Complete an epoch: record its metrics, keep its weights if they are the best, and print a line."""
        trainer, epochs = self.trainer, self.trainer.args.epochs
        metrics["seconds"] = trainer.epoch_time.elapsed
        trainer.end_epoch(metrics)
        is_last = metrics["epoch"] == epochs
        trainer.job.run_on_rank0(lambda: self.run.log_epoch(trainer, metrics, is_last))
        if trainer.job.is_rank0:
            steps = max(1, trainer.step - self.first_step)
            seconds_per_step = (time.perf_counter() - self.started_at) / steps
            steps_left = epochs * trainer.steps_per_epoch - trainer.step
            tqdm.write(describe_epoch(metrics, epochs, seconds_per_step * steps_left))


@contextlib.contextmanager
def recorded(trainer, run, signals, resumed=None):
    """Record the training of a run. However it ends, leave a resumable run or no files.

    On entry, open the run's folders and print what will be trained. In the body, save and show progress after the
    steps. If a signal requests a stop, save, print how to resume, and exit with status 128 + signal number.

    Args:
        run: a `RunWriter` on rank 0, None on the other ranks.
        resumed: the checkpoint that the trainer resumes from, if any.

    Yields:
        `StepHooks`, whose `log_epoch` takes the metrics of each epoch.
    """
    job, failed = trainer.job, True
    try:
        job.run_on_rank0(lambda: begin(run, trainer, resumed))
        with progress_bar(trainer) as bar:
            hooks = trainer.hooks = StepHooks(trainer, run, signals, bar)
            yield hooks
        if hooks.first_step == trainer.step:  # a resumed run that was complete
            job.run_on_rank0(lambda: run.finish(trainer))
        if trainer.args.log != "none":
            job.run_on_rank0(lambda: send_pictures(run, trainer.test_split, trainer.device, trainer.test_batch_size))
        failed = False
    except Interrupted as stop:
        job.run_on_rank0(lambda: run.save(trainer))
        if run:
            if run.epochs:
                run.draw_throttled(now=True)
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"\ninterrupted at step {trainer.step}; resume with: {resume_command(run)}", flush=True)
        sys.exit(128 + stop.signal_number)
    except OSError as error:  # nothing can be printed: the reader of standard output is gone, or a log's disk is full
        if error.filename is not None or job.size > 1 or not trainer.step:
            raise
        run.save(trainer)
        if signals.received:
            sys.exit(128 + signals.received)
        raise
    finally:
        if run:
            run.close(failed)


def begin(run, trainer, resumed):
    """Open the run's folders and its tracker, and print what will be trained."""
    args, job = trainer.args, trainer.job
    run.begin()
    if resumed:
        run.restore(resumed)
    summary = trainer.summary()
    run.write_config(vars(args), summary)
    processes = f" in {job.size} processes" if job.size > 1 else ""
    print(
        f"{run.name}: {summary['parameters']:,} parameters, {summary['train_images']:,} training,"
        f" {summary['val_images']:,} validation and {summary['test_images']:,} test images,"
        f" {summary['device']}{processes}, {trainer.precision}",
        flush=True,
    )
    images, batch = len(trainer.train_split), trainer.batch_size
    left_out = images - trainer.steps_per_epoch * batch
    if left_out > images / 20:
        print(
            f"each epoch leaves out {left_out} of the {images} images, different ones each time, because they do not"
            f" fill a batch of {batch}",
            flush=True,
        )
    if resumed:
        print(describe_resume(trainer, resumed["recipe"].get("epochs")), flush=True)
    run.tracker = open_tracker(args.log, run.name, run.output_folder, run.config, trainer.epoch + 1)


def describe_resume(trainer, earlier_epochs):
    """One or two lines that report where a resumed run continues."""
    epochs = trainer.args.epochs
    if trainer.epoch == epochs:
        return f"all {epochs} epochs are complete; nothing is left to train"
    line = f"resuming after {trainer.epoch} of {epochs} epochs, at step {trainer.step + 1}"
    if epochs != earlier_epochs:
        line += f"\n--epochs {epochs} replaces {earlier_epochs}: the learning rates now follow the new length"
    return line


def progress_bar(trainer):
    """A bar over the images of all epochs; in a log file, a line per minute."""
    total_steps = trainer.args.epochs * trainer.steps_per_epoch
    return tqdm(
        total=total_steps * trainer.batch_size,
        initial=trainer.step * trainer.batch_size,
        unit="img",
        unit_scale=True,
        mininterval=0.5 if sys.stderr and sys.stderr.isatty() else 60,
        disable=not (trainer.job.is_rank0 and sys.stderr) or trainer.step == total_steps,
    )


def describe_epoch(metrics, epochs, seconds_left):
    """An epoch's metrics as a line of text."""
    parts = [f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val", "test"):
        if metrics[f"{split}_loss"] is not None:
            parts.append(f"{split} {metrics[f'{split}_loss']:.3f} {100 * metrics[f'{split}_accuracy']:5.2f} %")
    parts += [f"lr {metrics['learning_rate']:.1e}", f"{metrics['images_per_second']:,.0f} img/s"]
    return "  ".join(parts) + f"  left {tqdm.format_interval(seconds_left)}"


def resume_command(run):
    return f"python train.py --resume {shlex.quote(str(run.model_folder))}"
