"""Set an optimizer's learning rates before every step.

schedule = Schedule(optimizer, "cosine", total_steps, warmup_steps)
for step in range(total_steps):
    schedule.set_step(step)      # before the update
    ...
    optimizer.step()
"""

import math

from vit_cifar10.utils.schedules import SCHEDULES


class Schedule:
    """A schedule of `SCHEDULES` for an optimizer, whose initial learning rates are the peaks.

    A schedule with `needs_val_loss` also multiplies the rates by 0.1 when the validation loss has not improved for more
    than `patience` epochs. As in PyTorch's ReduceLROnPlateau, an improvement is at least 0.01 %.
    """

    def __init__(self, optimizer, schedule, total_steps, warmup_steps=0, patience=10):
        self.optimizer = optimizer
        self.schedule = SCHEDULES[schedule]
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.patience = patience
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.scale, self.best_loss, self.bad_epochs = 1.0, math.inf, 0

    def set_step(self, step):
        """Set the learning rates for `step` and return the rate of the first parameter group."""
        factor = self.scale * self.schedule.factor(step, self.total_steps, self.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return self.optimizer.param_groups[0]["lr"]

    def end_epoch(self, val_loss):
        """Report the validation loss of an epoch, which few schedules use."""
        if not self.schedule.needs_val_loss:
            return
        if val_loss < self.best_loss * (1 - 1e-4):
            self.best_loss, self.bad_epochs = val_loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.scale, self.bad_epochs = self.scale * 0.1, 0

    def state_dict(self):
        return {"scale": self.scale, "best_loss": self.best_loss, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state):
        self.scale, self.best_loss, self.bad_epochs = state["scale"], state["best_loss"], state["bad_epochs"]
