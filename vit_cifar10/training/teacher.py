"""Distillation (train.py --teacher): a trained network teaches the one in training, through its class probabilities.

    teacher = load_teacher(args)
    if teacher.teaches(step / total_steps):
        lesson = teacher.lesson(inputs, mean, std)          # (B, C), from the augmented images in full size
    loss = teacher.combine(loss, logits, lesson)

Hinton et al., 2015, https://arxiv.org/abs/1503.02531. Hard labels: DeiT, https://arxiv.org/abs/2012.12877
"""

import dataclasses

import torch
from torch.nn import functional as F

from model import count_flops
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import find_run
from vit_cifar10.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network, and how it teaches.

    Attributes:
        network: the `Network`, in evaluation mode.
        record: its name, the SHA-256 of its checkpoint, and the operations of a forward pass of one image.
        weight: fraction of the loss that compares the student with the teacher.
        temperature: what both networks' logits are divided by before they are compared.
        hard: whether only the class that the teacher predicts counts, not its probabilities.
        start, end: the part of the run in which it teaches, as fractions of the steps.
    """

    network: checkpoint.Network
    record: dict
    weight: float
    temperature: float
    hard: bool
    start: float
    end: float

    def teaches(self, progress):
        """Whether the teacher teaches after a fraction of the run's steps."""
        return self.start <= progress < self.end

    @torch.no_grad()
    def lesson(self, inputs, mean, std):
        """What the student is to predict for images: probabilities (B, C).

        `inputs`: float (B, 3, H, W), normalized with the student's `mean` and `std`, (3,) each. The teacher sees them
        with its own normalization.
        """
        network = self.network
        scale, shift = std / network.std, (mean - network.mean) / network.std
        logits = network.model(inputs * scale[:, None, None] + shift[:, None, None]).float()
        if self.hard:
            return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
        return (logits / self.temperature).softmax(dim=1)

    def combine(self, loss, logits, lesson):
        """The weighted mean of a loss and the cross-entropy of the student's `logits` (B, C) with a `lesson` (B, C).

        The square of the temperature keeps the gradients of the second part as large as those of the first.
        """
        taught = F.cross_entropy(logits / self.temperature, lesson) * self.temperature**2
        return (1 - self.weight) * loss + self.weight * taught

    def check_classes(self, classes):
        """Raise `UserError` if the teacher does not have exactly these classes, in this order."""
        if list(self.network.classes) != list(classes):
            raise UserError(
                f"--teacher {self.record['name']} knows other classes than the images have, or in another order;"
                " choose a network that was trained on the same data set"
            )

    def to(self, device):
        """This teacher on a device."""
        network = self.network
        moved = {name: getattr(network, name).to(device) for name in ("model", "mean", "std")}
        return dataclasses.replace(self, network=dataclasses.replace(network, device=device, **moved))


def load_teacher(args, record=None):
    """The `Teacher` that the flags ask for, on the CPU; None without --teacher.

    `record`: that of a resumed run, whose teacher must not have changed.

    Raises:
        UserError: there is no such run, it cannot be read, it takes images of another size, or it has changed.
    """
    if args.teacher is None:
        return None
    path = find_run(args.teacher, args.model_path, args.output_path).checkpoint_path
    network = checkpoint.load_network(path, torch.device("cpu"))
    if record and record["sha256"] != network.sha256:
        raise UserError(f"{path} is not the teacher that this run started with; it cannot be resumed with another one")
    if network.image_size != args.image_size:
        raise UserError(
            f"--teacher {network.name} takes images of {network.image_size} pixels, and --image_size is"
            f" {args.image_size}; choose a teacher of the same size"
        )
    flops = count_flops(network.saved["model_config"])
    return Teacher(
        network,
        {"name": network.name, "sha256": network.sha256, "flops": flops},
        args.teacher_weight,
        args.teacher_temperature,
        args.teacher_hard,
        args.teacher_start,
        args.teacher_end,
    )
