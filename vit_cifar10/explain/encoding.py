"""Arrays as base64, as the page embeds them."""

import base64

import numpy as np
import torch


def encode(values, dtype="<f4"):
    """An array or tensor as base64 of its little-endian bytes."""
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype)).decode()
