"""Learning-rate schedules.

schedule = Schedule(optimizer, "cosine", total_steps, warmup_steps)
for step in range(total_steps):
    schedule.set_step(step)      # before the update
    ...
    optimizer.step()
"""

import math

FINAL_FACTOR = 0.01  # fraction of the peak at the end of cosine and linear; at 0, the last step would be wasted


def schedule_factor(schedule, step, total_steps, warmup_steps=0):
    """The fraction of the peak learning rate to use at `step`, from 0 to `total_steps` - 1: in (0, 1].

    The rate rises for `warmup_steps` steps, reaches its peak at step `warmup_steps` ("onecycle": one step earlier), and
    then follows the schedule. "cosine" and "linear" fall to `FINAL_FACTOR` at the last step; "constant" and "plateau"
    stay at the peak. "onecycle" equals PyTorch's OneCycleLR (Smith and Topin, 2019): half a cosine up from 1/25 of the
    peak, then half a cosine down to 1/250,000.
    """
    if schedule == "onecycle":
        return _one_cycle(step, total_steps, max(0, warmup_steps - 1))
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    if schedule == "cosine":
        return _half_cosine(1, FINAL_FACTOR, progress)
    if schedule == "linear":
        return 1 + (FINAL_FACTOR - 1) * progress
    return 1.0


def _one_cycle(step, total_steps, peak_step):
    if step < peak_step:
        return _half_cosine(1 / 25, 1, step / peak_step)
    return _half_cosine(1, 1 / 250_000, (step - peak_step) / max(1, total_steps - 1 - peak_step))


def _half_cosine(start, end, progress):
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class Schedule:
    """Sets an optimizer's learning rates before every step. Its initial rates are the peaks.

    "plateau" multiplies the rates by 0.1 when the validation loss has not improved for more than `patience` epochs. As
    in PyTorch's ReduceLROnPlateau, an improvement is at least 0.01 %.
    """

    def __init__(self, optimizer, schedule, total_steps, warmup_steps=0, patience=10):
        self.optimizer = optimizer
        self.schedule = schedule
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.patience = patience
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.scale, self.best_loss, self.bad_epochs = 1.0, math.inf, 0

    def set_step(self, step):
        """Set the learning rates for `step` and return the rate of the first parameter group."""
        factor = self.scale * schedule_factor(self.schedule, step, self.total_steps, self.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return self.optimizer.param_groups[0]["lr"]

    def end_epoch(self, val_loss):
        """Report the validation loss of an epoch; only the plateau schedule uses it."""
        if self.schedule != "plateau":
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
