"""Send a run's configuration, metrics and final pictures to TensorBoard or Weights & Biases.

Both packages are optional. They are imported only when `--log` asks for them.
"""

import re

from vit_cifar10.utils.errors import UserError

TRACKING_FOLDERS = ("tensorboard", "wandb")


def open_tracker(name, run_name, folder, config, first_epoch):
    """Open a `Tracker` that writes its files to `folder`.

    Args:
        name: one of `TRACKERS` in utils/choices.py.
        config: the contents of config.json.
        first_epoch: the first epoch to be logged: 1, or the one after the last complete epoch of a resumed run.

    Raises:
        UserError: the service refuses the run, for example because the user is not logged in.
    """
    if name == "none":
        return Tracker()
    if (folder / name).is_symlink():  # a stranger's run could contain one
        raise UserError(f"{folder / name} is a link; remove it, or leave out --log")
    return {"tensorboard": TensorBoard, "wandb": WandB}[name](run_name, folder, config, first_epoch)


def scalars(metrics):
    """Rename an epoch's metrics to tags such as "loss/train", and drop those that were not measured (None)."""
    tagged = {}
    for key, value in metrics.items():
        split, _, quantity = key.rpartition("_")
        if value is not None and key != "epoch":
            is_of_split = split in ("train", "val", "test") and quantity != "seconds"
            tagged[f"{quantity}/{split}" if is_of_split else key] = value
    return tagged


class Tracker:
    """The interface of all trackers. This one sends nothing."""

    def log(self, metrics):
        """Send the metrics of an epoch, {column of metrics.csv: number or None}."""

    def finish(self, pictures, epoch):
        """Send the pictures of a complete run, {name: path of a PNG}, under its last epoch."""

    def close(self, failed=False):
        """Close files and connections, and report whether the run failed. Further calls have no effect."""


class TensorBoard(Tracker):
    """Write event files to `folder`/tensorboard; view them with `tensorboard --logdir output`."""

    def __init__(self, run_name, folder, config, first_epoch):
        from torch.utils.tensorboard import SummaryWriter

        purge = {"purge_step": first_epoch} if first_epoch > 1 else {}  # hides epochs that are trained again
        self.writer = SummaryWriter(str(folder / "tensorboard"), **purge)
        if first_epoch == 1:
            flags = {key: str(value).replace("|", "\\|") for key, value in sorted(config["flags"].items())}
            table = "\n".join(f"| {key} | {value} |" for key, value in flags.items())
            self.writer.add_text("config", f"| flag | value |\n|---|---|\n{table}")

    def log(self, metrics):
        for tag, value in scalars(metrics).items():
            self.writer.add_scalar(tag, value, metrics["epoch"])
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
    """Send to a run in the W&B project "vit-cifar10", whose files are in `folder`/wandb.

    With the environment variable WANDB_MODE=offline, only the files are written.
    """

    def __init__(self, run_name, folder, config, first_epoch):
        import wandb

        started = re.sub(r"\D", "", config.get("started", ""))
        try:
            self.run = wandb.init(
                project="vit-cifar10",
                name=run_name,
                id=re.sub(r"[^\w-]", "-", f"{run_name}-{started}"),  # a resumed run continues its own W&B run
                resume="allow",
                dir=str(folder),
                config=config,
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"W&B refuses the run ({reason}); run wandb login, or set WANDB_MODE=offline") from error
        self.image_type, self.error_type = wandb.Image, wandb.Error
        self.folder = folder

    def log(self, metrics):
        self.run.log(scalars(metrics), step=metrics["epoch"])

    def finish(self, pictures, epoch):
        try:
            self.run.log({name: self.image_type(str(path)) for name, path in pictures.items()}, step=epoch)
        except self.error_type as error:
            raise UserError(f"W&B refuses the pictures ({error}); they are still in {self.folder}") from error

    def close(self, failed=False):
        self.run.finish(exit_code=int(failed))
