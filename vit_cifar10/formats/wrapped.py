"""Explain any network: a torchvision ResNet, a ViT of another package, a network of one's own.

    network = wrap(resnet, resnet.layer4, classes, image_size=224, mean=(0.48, 0.46, 0.41), std=(0.23, 0.22, 0.23))
    explanation = Explanation(network, open_image("img.png", network.image_size))
    explanation.maps(find("grad-cam"), count=5)              # (5, h, w)

Grad-CAM and masks, their GIFs and pages, the full test and the faithfulness test need no more of a network than
`Wrapped` offers. The other methods look into a network, and need one of model.py.
"""

import copy
import hashlib
import math

import torch
from torch import nn

from vit_cifar10.explain.maps import grad_cam
from vit_cifar10.runs.checkpoint import Network

CELLS = 8  # along each side of an image, which are removed like patches; a network of patches has its own


class Wrapped(nn.Module):
    """The attributes of `Network` in model.py that the explanations of kind "other" need, for any module."""

    kind, has_attention = "other", False

    def __init__(self, module, grad_cam_layer):
        super().__init__()
        self.module, self.title, self.grid_size = module, type(module).__name__, CELLS
        self.layer_name = next((name for name, part in module.named_modules() if part is grad_cam_layer), None)
        if not self.layer_name:
            raise ValueError("grad_cam_layer is not a part of the network; choose a module in it")

    @property
    def grad_cam_layer(self):
        return self.module.get_submodule(self.layer_name)

    def forward(self, images):
        """Normalized images (B, 3, H, W) -> logits (B, classes), also if they are an attribute of the output."""
        output = self.module(images)
        return getattr(output, "logits", output)

    def parts_from_head_to_input(self):
        """The modules that the network consists of, in reverse order, and last, its own parameters."""
        names = self.state_dict()
        parts = [(name, (f"module.{name}.",)) for name, _ in self.module.named_children()]
        parts = [part for part in reversed(parts) if any(name.startswith(part[1]) for name in names)]
        rest = tuple(name for name in names if not any(name.startswith(prefixes) for _, prefixes in parts))
        return [*parts, ("embedding", rest)] if rest else parts

    def untrained_weights(self, seed):
        """The state dict with random weights: modules draw theirs with `reset_parameters`, as PyTorch's do.

        Modules without this function get the values of each of their parameters in random order.
        """
        untrained = copy.deepcopy(self).cpu()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for part in untrained.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
                else:
                    for values in part.parameters(recurse=False):
                        values.copy_(values.flatten()[torch.randperm(values.numel())].view_as(values))
        return untrained.state_dict()


class WrappedNetwork(Network):
    """A `Network` that is not from a checkpoint."""

    def untrained_weights(self, seed):
        return self.model.untrained_weights(seed)


def wrap(module, grad_cam_layer, classes, image_size, mean, std, grid_size=None, name=None, dataset="folder"):
    """Everything that the rest of the project needs of a network, for any module that classifies images.

    The module is put into evaluation mode, and stays on its device.

    Args:
        module: takes normalized images, float (B, 3, image_size, image_size). Returns logits (B, classes), before any
            softmax, or an object with an attribute `logits`, as transformers' networks do.
        grad_cam_layer: the part of `module` whose output Grad-CAM explains: (B, C, h, w), or tokens (B, N, C) with a
            square number of patches in the end. Choose the last layer of features in a CNN, such as `resnet.layer4`,
            and the first norm of the last block in a ViT. After a ViT's last attention, the patches no longer matter.
        classes: the names of the classes, in the order of the logits.
        image_size: side of the square images in pixels.
        mean, std: three numbers each. The module sees `(image - mean) / std`, where the image is in [0, 1]. A removed
            patch has the color `mean`.
        grid_size: number of patches along each side of the image that masks and the faithfulness test remove. The
            default is that of the tokens, or 8 for a CNN.
        name: the name in tables and pictures; by default, the name of the module's class.
        dataset: the data set that `load_test_images` of the result reads; "folder" is a folder of images.

    Returns:
        A `Network` of runs/checkpoint.py.

    Raises:
        ValueError: the module does not do this. The message says what is wrong.
    """
    model = Wrapped(module, grad_cam_layer).eval()
    weights = model.state_dict()
    device = next(iter(weights.values()), torch.empty(0)).device
    shape = check_network(model, len(classes), image_size, device)
    model.grid_size = grid_size or (math.isqrt(shape[1]) if len(shape) == 3 else CELLS)
    if not 2 <= model.grid_size <= image_size:
        raise ValueError(f"grid_size {model.grid_size} is not from 2 to image_size {image_size}")
    digest = hashlib.sha256()
    for key, value in weights.items():
        digest.update(key.encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    source = f"{type(module).__module__}.{type(module).__name__}"
    saved = {
        "model_config": {"model": model.title, "img_size": image_size, "num_classes": len(classes)},
        "dataset": dataset,
        "recipe": {"converted_from": source},
        "epoch": 0,
        "metrics": {},
    }
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))
    return WrappedNetwork(name or model.title, model, device, list(classes), mean, std, saved, digest.hexdigest())


def check_network(model, count, image_size, device):
    """The shape of the output of a network's Grad-CAM layer. Raises `ValueError` if `wrap` cannot use the network."""
    shapes = []
    hook = model.grad_cam_layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    images = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.inference_mode():
            logits = model(images)
    finally:
        hook.remove()
    if logits.shape != (1, count):
        raise ValueError(f"the network returns {tuple(logits.shape)} for an image, not logits of {count} classes")
    shape = shapes[0] if shapes else ()
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[2] != shape[3]):
        raise ValueError(f"grad_cam_layer returns {tuple(shape)}; choose one with (B, C, h, w) or tokens (B, N, C)")
    grad_cam(model, images, layer=model.grad_cam_layer)
    return shape
