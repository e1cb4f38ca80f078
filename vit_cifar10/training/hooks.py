"""What happens between training steps: progress display, saves and stops, which all ranks agree on."""

import enum
import math
import time

from vit_cifar10.training.distributed import AsyncMaxAllReduce
from vit_cifar10.training.signals import Interrupted


class Hooks:
    """Callbacks between steps. They do nothing unless a subclass overrides them."""

    def start_epoch(self, epoch):
        """Called before the first step of an epoch."""

    def after_step(self):
        """Called after every training step. It may raise `Interrupted`."""

    def after_batch(self):
        """Called after every batch of an evaluation. It may raise `Interrupted`."""


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
        self.shown_at = time.perf_counter()

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

    def finish(self):
        """Complete the communication with the other ranks."""
        self.agree.finish()

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
