"""Files of tensors that are written atomically. runs/untrusted.py reads them."""

import torch

from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write


def save_tensors(path, value, previous=None):
    """`torch.save`, atomically; see `atomic_write`. Raises `UserError` if it cannot be written."""
    try:
        with atomic_write(path, previous) as partial, open(partial, "wb") as file:
            torch.save(value, file)  # given a path, it would store the name of the temporary file
    except RuntimeError as error:  # PyTorch's writer reports a full disk this way
        raise UserError(f"cannot write {path}; is the disk full?") from error
