"""Record a training run: its files, its progress on the screen, and how it ends."""

import contextlib
import enum
import math
import sys
import time

from tqdm import tqdm

from vit_cifar10.evaluation.full_test import run_full_test, write_full_test
from vit_cifar10.flags.train import usual_rates
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import TEST_FILES, resume_command
from vit_cifar10.runs.trackers import open_tracker
from vit_cifar10.training.budget import advice_for_a_long_run
from vit_cifar10.training.distributed import AsyncMaxAllReduce
from vit_cifar10.training.signals import Interrupted
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.text import LINE, filled, folded, one_line, printable

HUGE = 10  # times the default: a learning rate that may be the reason why nothing is learned
HARDLY_MORE = 0.2  # above chance, as a fraction of it
TIMED_STEPS = 5  # after which the length of a run is estimated


@contextlib.contextmanager
def recorded(trainer, run, signals, resumed=None):
    """Record the training of a run. However it ends, leave a resumable run or no files.

    On entry, open the run's folders and print what will be trained. If a signal requests a stop in the body, save,
    print how to resume, and exit with status 128 + signal number.

    Args:
        run: a `RunWriter` on rank 0, None on the other ranks.
        resumed: the checkpoint that the trainer resumes from, if any.

    Yields:
        A `Recorder`. Call its `after_step`, `after_batch` and `log_epoch`.
    """
    job, failed, was_complete = trainer.job, True, trainer.is_complete
    try:
        job.run_on_rank0(lambda: begin(run, trainer, resumed))
        with progress_bar(trainer) as bar:
            recorder = Recorder(trainer, run, signals, bar)
            yield recorder
        recorder.finish()
        if was_complete:
            job.run_on_rank0(lambda: run.finish(trainer))
        if trainer.args.log != "none":
            job.run_on_rank0(lambda: send_pictures(trainer, run))
        failed = False
    except Interrupted as stop:
        recorder.finish()
        job.run_on_rank0(lambda: run.save(trainer))
        if run:
            if run.epochs:
                run.draw_throttled(now=True)
            command = resume_command(run.model_folder)
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"\ninterrupted at step {trainer.step}; resume with:\n{printable(command)}", flush=True)
        sys.exit(128 + stop.signal_number)
    except OSError as error:  # nothing can be printed: the reader of standard output is gone, or a log's disk is full
        if error.filename is not None or job.size > 1 or not trainer.step or was_complete:
            raise
        run.save(trainer)
        if signals.received:
            sys.exit(128 + signals.received)
        raise
    finally:
        if run:
            run.close(failed)


class Action(enum.IntEnum):
    """What all ranks do after a step. If ranks request different actions, the highest one wins."""

    NONE = 0
    SAVE = 1
    STOP = 2
    FAIL = 3  # the loss is not finite


class Recorder:
    """Shows the progress of a training, saves it, and records its epochs.

    If any rank requests it after a step, all ranks save, stop or fail. `run` is a `RunWriter` on rank 0, None on the
    other ranks.
    """

    def __init__(self, trainer, run, signals, bar):
        self.trainer, self.run, self.signals, self.bar = trainer, run, signals, bar
        self.agree = AsyncMaxAllReduce(trainer.job)
        self.step, self.started_at = trainer.step, time.perf_counter()
        self.shown_at = self.started_at
        self.has_advised, self.has_hinted = bool(trainer.args.minutes), False
        self.work = self.work_left = trainer.patches.work(self.step, trainer.args.epochs * trainer.steps_per_epoch)

    def after_step(self):
        """After `Trainer.step_on`: show the progress, and save if it is time to.

        Raises:
            Interrupted: a signal requests a stop.
            UserError: the loss is not finite.
        """
        trainer = self.trainer
        epoch = (trainer.step - 1) // trainer.steps_per_epoch + 1
        self.bar.set_description(f"epoch {epoch}/{trainer.args.epochs}", refresh=False)
        self.bar.update(trainer.batch_size)
        self.advise()
        action = self.requested_action()
        if self.is_display_due() and not self.show_metrics():
            action = Action.FAIL
        self.apply(*self.agree(action, self.signals.received))

    def advise(self):
        """After the first steps, print a line if the run will take very long."""
        trainer = self.trainer
        if self.has_advised or trainer.timed_steps < min(TIMED_STEPS, trainer.steps_per_epoch - 1):
            return
        self.has_advised = True
        seconds_per_work = trainer.step_time.elapsed / max(1, trainer.timed_steps)
        seconds_per_work /= trainer.patches.work(trainer.step - 1, trainer.step)
        advice = advice_for_a_long_run(trainer, seconds_per_work * self.work)
        if advice and trainer.job.is_rank0:
            tqdm.write(folded(advice))

    def after_batch(self):
        """After a batch of an evaluation: save if it is time to. Raises `Interrupted` if a signal requests a stop."""
        self.apply(*self.agree(self.requested_action(), self.signals.received))

    def requested_action(self):
        """What this rank requests."""
        if self.signals.received:
            return Action.STOP
        return Action.SAVE if self.run and self.run.is_save_due() else Action.NONE

    def apply(self, action, signal_number):
        """Do what the ranks have agreed on."""
        trainer = self.trainer
        if action == Action.FAIL:
            trainer.check_loss(math.nan)
        if action != Action.NONE:
            trainer.share_epoch_totals()
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
        self.bar.set_postfix_str(f"loss {loss:.3f}, acc {100 * accuracy:.1f} %", refresh=False)
        return math.isfinite(loss)

    def finish(self):
        """Complete the communication with the other ranks."""
        self.agree.finish()

    def log_epoch(self, metrics):
        """After `Trainer.end_epoch`: record the metrics, keep the weights if they are the best, and print a line."""
        trainer, epochs = self.trainer, self.trainer.args.epochs
        trainer.job.run_on_rank0(lambda: self.run.log_epoch(trainer, metrics, is_last=trainer.is_complete))
        if trainer.job.is_rank0:
            self.work_left -= trainer.patches.work(self.step, trainer.step)
            self.step = trainer.step
            done, seconds = self.work - self.work_left, time.perf_counter() - self.started_at
            tqdm.write(describe_epoch(metrics, epochs, seconds * self.work_left / done if done else 0))
            hint = None if self.has_hinted else hint_at_chance(trainer, metrics)
            if hint:
                tqdm.write(hint)
                self.has_hinted = True


def begin(run, trainer, resumed):
    """Open the run's folders and its tracker, and print what will be trained."""
    args, job = trainer.args, trainer.job
    run.begin()
    if resumed:
        run.restore(resumed, trainer.is_complete)
    summary = trainer.summary()
    run.write_config(vars(args), summary)
    processes = f" in {job.size} processes" if job.size > 1 else ""
    lines = [
        f"{run.name}: {summary['parameters']:,} parameters, {summary['train_images']:,} training,"
        f" {summary['val_images']:,} validation and {summary['test_images']:,} test images,"
        f" {summary['device']}{processes}, {trainer.precision}"
    ]
    if trainer.initial_changes and not resumed:
        lines.append(printable(describe_start(trainer)))
    images, batch = len(trainer.train_split), trainer.batch_size
    left_out = images - trainer.steps_per_epoch * batch
    if left_out > images / 20:
        lines.append(
            f"each epoch leaves out {left_out} of the {images} images, different ones each time, because they do not"
            f" fill a batch of {batch}"
        )
    if resumed:
        lines.append(describe_resume(trainer, resumed["recipe"].get("epochs")))
    print(folded("\n".join(lines)), flush=True)
    run.tracker = open_tracker(args.log, run.name, run.output_folder, run.config, trainer.epoch + 1)


def describe_start(trainer):
    """A line that reports the weights a fine-tuning starts from, and what stays fixed."""
    changes, count, name = trainer.initial_changes, trainer.args.freeze_blocks, trainer.model.block_name
    if count:
        changes = [*changes, f"the first {f'{count} {name}s stay' if count > 1 else f'{name} stays'} fixed"]
    return f"starting from {trainer.init_record['name']}: {', '.join(changes)}"


def describe_resume(trainer, earlier_epochs):
    """One or two lines that report where a resumed run continues."""
    epochs = trainer.args.epochs
    if trainer.is_complete:
        return f"all {epochs} epochs are complete; nothing is left to train"
    line = f"resuming after {trainer.epoch} of {epochs} epochs, at step {trainer.step + 1}"
    if epochs != earlier_epochs:
        is_growing = trainer.args.keep_patches < 1
        followers = "learning rates and the fraction of patches" if is_growing else "learning rates"
        line += f"\n--epochs {epochs} replaces {earlier_epochs}: the {followers} now follow the new length"
    return line


def progress_bar(trainer):
    """A bar over the images of all epochs; in a log file, a line per minute."""
    total_steps = trainer.args.epochs * trainer.steps_per_epoch
    is_terminal = bool(sys.stderr and sys.stderr.isatty())
    return tqdm(
        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}",
        ncols=None if is_terminal else LINE,
        desc=f"epoch {trainer.epoch + 1}/{trainer.args.epochs}",
        total=total_steps * trainer.batch_size,
        initial=trainer.step * trainer.batch_size,
        unit="img",
        unit_scale=True,
        mininterval=0.5 if is_terminal else 60,
        disable=not (trainer.job.is_rank0 and sys.stderr) or trainer.is_complete,
    )


def send_pictures(trainer, run):
    """Test the kept weights of a complete run and send the pictures, with the curves, to its tracker.

    If this fails, print a warning. Nothing else is lost.
    """
    try:
        with out_of_memory_advice("test.py can draw them with a lower --batch_size"):
            network = checkpoint.load_network(run.checkpoint_path, trainer.device)
            test = network.normalized_for(trainer.test_split)
            tested = run_full_test(network, run.checkpoint_path, test, trainer.test_batch_size)
        write_full_test(tested, network, test, run.output_folder)
        files = [run.curves_path, *(run.output_folder / name for name in TEST_FILES)]
        pictures = {file.stem: file for file in files if file.suffix == ".png" and file.exists()}
        run.tracker.finish(pictures, run.epochs[-1]["epoch"])
    except (UserError, OSError) as error:
        print(one_line(f"warning: the final pictures were not sent: {error}"), file=sys.stderr)


def hint_at_chance(trainer, metrics):
    """A line if a network with a very high learning rate has learned nothing after two epochs; otherwise None."""
    args, labels = trainer.args, trainer.train_split.labels
    chance = labels.bincount().max().item() / len(labels)  # always the most frequent class
    learns = metrics["train_accuracy"] > chance + HARDLY_MORE * chance * (1 - chance)
    if learns or metrics["epoch"] < min(2, args.epochs):
        return None
    for flag, usual in usual_rates(args).items():
        rate = getattr(args, flag)
        if rate >= HUGE * usual and (flag == "learning_rate" or args.optimizer != "adamw"):
            return (
                f"hint: the network still guesses, and --{flag} {rate:g} is {rate / usual:,.0f} times the default,"
                f" {usual:g}; try a lower one"
            )
    return None


def describe_epoch(metrics, epochs, seconds_left):
    """An epoch's metrics as one or two lines of text."""
    parts = [f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val", "test"):
        if metrics[f"{split}_loss"] is not None:
            parts.append(f"{split} loss {metrics[f'{split}_loss']:.3f} acc {100 * metrics[f'{split}_accuracy']:5.2f} %")
    parts += [f"lr {metrics['learning_rate']:.1e}", f"{metrics['images_per_second']:,.0f} img/s"]
    return filled([*parts, f"left {tqdm.format_interval(seconds_left)}"], indent=len(parts[0]) + 2)
