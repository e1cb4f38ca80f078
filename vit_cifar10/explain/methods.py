"""All methods that explain a prediction, in one table.

methods = methods_for(model)                            # {"attention": Method, "rollout": Method, ...}
best_method(model).explain(model, images, targets)      # (B, h, w): one map for each image
best_method(model).for_classes(model, images, classes)  # (B, K, h, w): K classes of each image
"""

import dataclasses
import functools
from collections.abc import Callable

import torch

from vit_cifar10.explain.maps import (
    attention_maps,
    attention_rollout,
    attention_to_patches,
    grad_cam,
    gradient_rollout,
    images_at_once,
)
from vit_cifar10.explain.masks import mask_maps
from vit_cifar10.explain.propagation import attn_lrp, deep_lift
from vit_cifar10.utils.choices import SAMPLES


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to explain predictions.

    Attributes:
        name: the name in tables and pictures.
        explain: (model, images (B, 3, H, W), targets (B,)) -> relevance (B, h, w).
        networks: the networks that it can explain, "vit" or "cnn" or both.
        is_signed: whether negative values speak against the class.
        is_class_blind: whether the map is the same for every class.
        explain_all: (model, images) -> relevance (B, C, h, w), if one computation serves all C classes.
    """

    name: str
    explain: Callable
    networks: tuple = ("vit", "cnn")
    is_signed: bool = False
    is_class_blind: bool = False
    explain_all: Callable | None = None

    def for_classes(self, model, images, classes):
        """The maps of several classes (B, K) of each image: (B, K, h, w)."""
        if self.explain_all:
            maps = self.explain_all(model, images)
            return torch.stack([of_image[chosen] for of_image, chosen in zip(maps, classes, strict=True)])
        count = classes.shape[1]
        if self.is_class_blind:
            return self.explain(model, images, classes[:, 0])[:, None].expand(-1, count, -1, -1)
        repeated, size = images.repeat_interleave(count, dim=0), images_at_once(images)
        parts = zip(repeated.split(size), classes.flatten().split(size), strict=True)
        return torch.cat([self.explain(model, *part) for part in parts]).unflatten(0, classes.shape)


def last_attention(model, images, targets=None):
    """The attention of the last layer, (B, grid, grid), averaged over its heads."""
    return attention_to_patches(attention_maps(model, images)[-1], model.global_pool)


def rollout(model, images, targets=None):
    """Attention rollout through all layers, (B, grid, grid)."""
    return attention_rollout(attention_maps(model, images), global_pool=model.global_pool)


def masks_method(samples=SAMPLES):
    """The `Method` of mask_maps with a number of masks for each image."""
    explain_all = functools.partial(mask_maps, samples=samples)

    def explain(model, images, targets):
        return explain_all(model, images)[torch.arange(len(images)), targets]

    return Method("masks", explain, is_signed=True, explain_all=explain_all)


VIT, CNN = ("vit",), ("cnn",)
METHODS = {
    "attention": Method("attention", last_attention, VIT, is_class_blind=True),
    "rollout": Method("rollout", rollout, VIT, is_class_blind=True),
    "gradient-rollout": Method("gradient rollout", gradient_rollout, VIT),
    "grad-cam": Method("Grad-CAM", grad_cam),
    "attn-lrp": Method("AttnLRP", attn_lrp, VIT, is_signed=True),
    "deep-lift": Method("DeepLIFT", deep_lift, CNN, is_signed=True),
    "masks": masks_method(),
}


def methods_for(model):
    """The methods that can explain a network: {the value of --method: Method}."""
    network = "vit" if model.has_attention else "cnn"
    return {flag: method for flag, method in METHODS.items() if network in method.networks}


def best_method(model):
    """The fast method that did best on the shipped networks; see docs/explanations.md."""
    return METHODS["attn-lrp" if model.has_attention else "deep-lift"]
