"""Write a network as an ONNX file, for any number of images at once."""

import contextlib
import io
import logging
import warnings

import torch
from torch import nn

from model import count_parameters
from vit_cifar10.formats.foreign import require
from vit_cifar10.formats.to_safetensors import metadata_of
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write

LARGEST_FILE = 2_000_000_000  # bytes; ONNX cannot store more in one file
OPSET = 18


class WithAttention(nn.Module):
    """A ViT that returns its logits and the attention weights of each layer, one after the other."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        logits, attentions = self.model.forward_with_attention(images)
        return logits, *attentions


def save_onnx(network, path, attention=False):
    """Write a `Network` to an ONNX file with the input `images`, normalized float32 (N, 3, H, W), and output `logits`.

    With `attention`, further outputs are `attention_1`, `attention_2` ..., (N, heads, tokens, tokens), one for each
    layer. The file's metadata holds the classes, the mean and std, and the argument of `build_model`, as JSON.

    Raises:
        UserError: a package is missing, the network has no attention, is too large, or the file cannot be written.
    """
    if attention and not network.model.has_attention:
        raise UserError(f"--attention needs a Vision Transformer, but {network.name} is a CNN; leave it out")
    for package in ("onnx", "onnxscript"):
        require(package, "writing .onnx files")
    if 4 * count_parameters(network.model) > LARGEST_FILE:
        raise UserError(f"{network.name} is too large for an ONNX file (2 GB); convert it to .safetensors")
    depth = len(network.model.blocks) if attention else 0
    model = WithAttention(network.model) if attention else network.model
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 3, network.image_size, network.image_size, device=network.device),),
            input_names=["images"],
            output_names=["logits", *(f"attention_{layer + 1}" for layer in range(depth))],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(metadata_of(network))
    with atomic_write(path) as partial:
        program.save(str(partial), external_data=False)


@contextlib.contextmanager
def quiet():
    """Hide what the exporter prints about its progress. Errors are still raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
