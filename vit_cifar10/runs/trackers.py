"""The same record for TensorBoard or Weights & Biases: scalars, configuration, final pictures.

Both packages are optional and only imported when asked for.
"""

import importlib.util
import re

from vit_cifar10.utils.errors import UserError

TRACKING_FOLDERS = ("tensorboard", "wandb")
PACKAGES = {"none": None, "tensorboard": "tensorboard", "wandb": "wandb"}


def check_package(name):
    """Raises `UserError` if the package behind `--log name` is not installed."""
    package = PACKAGES[name]
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"--log {name} needs a package that is not installed: pip install {package}")


def open_tracker(name, run_name, folder, config, first_epoch):
    """A tracker with `log(row)`, `finish(pictures)` and `close()`; its files lie in `folder`.

    Args:
        name: one of `PACKAGES`.
        config: what config.json holds.
        first_epoch: 1, or that after the one a resumed run goes on from.

    Raises:
        UserError: the service refuses, say for want of a login.
    """
    if name == "none":
        return Tracker()
    return {"tensorboard": TensorBoard, "wandb": WandB}[name](run_name, folder, config, first_epoch)


def scalars(row):
    """A row of metrics as {"loss/train": ..., ...}; what was not measured is left out."""
    named = {}
    for key, value in row.items():
        split, _, quantity = key.rpartition("_")
        if value is not None and key != "epoch":
            named[f"{quantity}/{split}" if split in ("train", "val", "test") and quantity != "seconds" else key] = value
    return named


class Tracker:
    """Tracks nothing."""

    def log(self, row):
        """Send a row of metrics."""

    def finish(self, pictures, epoch):
        """Send the pictures, {name: path of a PNG}, as of the last epoch."""

    def close(self, failed=False):
        """Let go of files and connections, and say whether the run failed; more than once does no harm."""


class TensorBoard(Tracker):
    """Event files in `folder`/tensorboard, for `tensorboard --logdir output`."""

    def __init__(self, run_name, folder, config, first_epoch):
        from torch.utils.tensorboard import SummaryWriter

        purge = {"purge_step": first_epoch} if first_epoch > 1 else {}
        self.writer = SummaryWriter(str(folder / "tensorboard"), **purge)
        if first_epoch == 1:
            flags = {key: str(value).replace("|", "\\|") for key, value in sorted(config["flags"].items())}
            table = "\n".join(f"| {key} | {value} |" for key, value in flags.items())
            self.writer.add_text("config", f"| flag | value |\n|---|---|\n{table}")

    def log(self, row):
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def finish(self, pictures, epoch):
        import numpy as np
        from PIL import Image

        for name, path in pictures.items():
            with Image.open(path) as picture:
                self.writer.add_image(name, np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")

    def close(self, failed=False):
        self.writer.close()


class WandB(Tracker):
    """A run of the project "vit-cifar10"; offline with WANDB_MODE=offline, its files in `folder`/wandb."""

    def __init__(self, run_name, folder, config, first_epoch):
        import wandb

        started = re.sub(r"\D", "", config["started"])
        try:
            self.run = wandb.init(
                project="vit-cifar10",
                name=run_name,
                id=re.sub(r"[^\w-]", "-", f"{run_name}-{started}"),  # a resumed run goes on in its own
                resume="allow",
                dir=str(folder),
                config=config,
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"W&B refuses ({reason}); try wandb login, or set WANDB_MODE=offline") from error
        self.picture, self.error = wandb.Image, wandb.Error

    def log(self, row):
        self.run.log(scalars(row), step=row["epoch"])

    def finish(self, pictures, epoch):
        try:
            self.run.log({name: self.picture(str(path)) for name, path in pictures.items()}, step=epoch)
        except self.error as error:
            raise UserError(f"W&B refuses them ({error})") from error

    def close(self, failed=False):
        self.run.finish(exit_code=int(failed))
