"""A network as the live page stores it: matrices with 8 bits a weight, and everything else in float32."""

import contextlib

import torch
from torch import nn

from model import count_parameters
from vit_cifar10.explain.encoding import encode
from vit_cifar10.explain.maps import images_at_once
from vit_cifar10.utils.errors import UserError

LARGEST_NETWORK = 25_000_000  # weights; each takes more than a byte of the page
UNKNOWN = {  # entries of a network's configuration, and the feature that page/network.js lacks
    "reg_tokens": "registers or a distillation token",
    "pre_norm": "a norm before the first block",
    "fc_norm": "another place of the final norm",
    "act_layer": "an approximate GELU",
    "norm_eps": "another epsilon of its norms",
}
TESTED_PATCHES = 64_000  # of the test images on which the effect of rounding is measured: 1,000 images of 8 x 8 patches
LEVELS = 127  # an 8-bit weight is an integer from -127 to 127, times the scale of its row


def check_live(network):
    """Raise `UserError` if page/network.js cannot compute with a network, or would take too long."""
    for entry, feature in UNKNOWN.items():
        if entry in network.saved["model_config"]:
            raise UserError(f"the page of --live cannot compute with {feature} ({entry}); leave out --live")
    if count_parameters(network.model) > LARGEST_NETWORK:
        size = f"{count_parameters(network.model) / 1e6:,.1f} million"
        most = f"{LARGEST_NETWORK // 10**6} million"
        raise UserError(f"--live takes networks of up to {most} weights, but this one has {size}; leave out --live")


def is_rounded(name, tensor):
    """Whether a tensor is stored in 8 bits: the weights of linear layers and convolutions."""
    return tensor.ndim >= 2 and name.endswith(".weight")


def round_rows(matrix):
    """Round the rows of a matrix (rows, ...) to 8 bits: int8 (rows, columns) and their float32 scales (rows, 1)."""
    rows = matrix.flatten(1).float()
    scales = (rows.abs().amax(dim=1, keepdim=True) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scales).round().to(torch.int8), scales


def stored_tensors(model):
    """The names and values of all weights and statistics that the forward pass reads."""
    return [(name, value.cpu()) for name, value in model.state_dict().items() if value.is_floating_point()]


def rounded_state(model):
    """The state dict that the page computes with, as float32 tensors."""
    state = dict(model.state_dict())
    for name, value in stored_tensors(model):
        if is_rounded(name, value):
            integers, scales = round_rows(value)
            state[name] = (integers * scales).view_as(value)
    return state


@contextlib.contextmanager
def rounded(model):
    """Give a network the weights that the page computes with."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(rounded_state(model))
    try:
        yield
    finally:
        model.load_state_dict(state)


def rounding_effect(network, images, test=None):
    """What rounding the weights changes, as plain values for the page.

    Args:
        images: uint8 (B, 3, H, W).
        test: the `Split` of test images, or None.

    Returns:
        "change", the largest change of a class probability of the images. With `test`, also "tested", the number of
        test images that were classified, and "before" and "after", how many of them correctly.
    """
    tested = None
    if test:
        count = min(len(test), max(1, TESTED_PATCHES // network.model.grid_size**2))
        tested = test.subset(torch.arange(count) * len(test) // count)  # evenly: images in folders are sorted by class
    probabilities, correct = _measure(network, images, tested)
    with rounded(network.model):
        changed, changed_correct = _measure(network, images, tested)
    effect = {"change": (changed - probabilities).abs().max().item()}
    return effect | ({"tested": len(tested), "before": correct, "after": changed_correct} if tested else {})


def _measure(network, images, tested):
    """The class probabilities of images, and how many of the tested ones are classified correctly."""
    correct = 0
    if tested:
        size = images_at_once(images)
        parts = zip(tested.images.split(size), tested.labels.split(size), strict=True)
        correct = sum((network.logits(part).argmax(dim=1).cpu() == labels.cpu()).sum().item() for part, labels in parts)
    return network.logits(images).softmax(dim=1), correct


def encode_network(network):
    """A network as plain values for the page: its configuration, and its weights as base64."""
    tensors, integers, floats = [], [], []
    for name, value in stored_tensors(network.model):
        rows = value.flatten(1) if value.ndim > 1 else value[None]
        tensor = {"name": name, "rows": rows.shape[0], "columns": rows.shape[1], "isRounded": is_rounded(name, value)}
        tensors.append(tensor)
        if tensor["isRounded"]:
            whole, scales = round_rows(value)
            integers.append(whole.flatten())
            floats.append(scales.flatten())
        else:
            floats.append(rows.flatten().float())
    return {
        "config": network_config(network),
        "tensors": tensors,
        "integers": encode(torch.cat(integers), "i1"),
        "floats": encode(torch.cat(floats)),
    }


def describe_layers(model):
    """The layers of a CNN in the order of its forward pass, which is also the order of its modules.

    Each one is a dict with "kind", the entries that page/network.js reads, and "module".
    """
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            sizes = {"side": module.kernel_size[0], "padding": module.padding[0], "outputs": module.out_channels}
            layer = {"kind": "convolution", "name": name, **sizes}
        elif isinstance(module, nn.BatchNorm2d):
            layer = {"kind": "norm", "name": name, "eps": module.eps}
        elif isinstance(module, nn.MaxPool2d):
            layer = {"kind": "pool", "side": module.kernel_size}
        elif isinstance(module, nn.Linear):
            layer = {"kind": "linear", "name": name, "outputs": module.out_features}
        elif isinstance(module, nn.ReLU | nn.GELU):
            layer = {"kind": type(module).__name__.lower()}
        else:
            continue
        layers.append({**layer, "module": module})
    return layers


def network_config(network):
    """The sizes of a network, with the names that page/network.js uses."""
    model = network.model
    sizes = {
        "isVit": model.has_attention,
        "imageSize": network.image_size,
        "classes": len(network.classes),
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
    }
    if not model.has_attention:
        layers = describe_layers(model)
        at = [layer.pop("module") for layer in layers].index(model.grad_cam_layer)
        return sizes | {"layers": layers, "gradCamLayer": at, "logitScale": getattr(model, "logit_scale", 1.0)}
    return sizes | {
        "patchSize": model.patch_embed.proj.kernel_size[0],
        "width": model.embed_dim,
        "depth": len(model.blocks),
        "heads": model.blocks[0].attn.num_heads,
        "hidden": model.blocks[0].mlp.fc1.out_features,
        "pool": model.global_pool,
        "prefix": model.num_prefix_tokens,
    }
