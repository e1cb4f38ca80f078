"""The methods of the table in utils/methods.py, with what they compute.

methods = methods_for(model)                            # {"attention": Method, "rollout": Method, ...}
best_method(model).explain(model, images, targets)      # (B, h, w): one map for each image
best_method(model).for_classes(model, images, classes)  # (B, K, h, w): K classes of each image
"""

import functools
import importlib

import torch

from vit_cifar10.explain.maps import attention_maps, images_at_once, is_large
from vit_cifar10.utils.choices import SAMPLES
from vit_cifar10.utils.methods import METHODS, SHOWN, MethodEntry


class Method(MethodEntry):
    """An entry of the table that can compute maps."""

    @property
    def compute(self):
        """The function, with its options."""
        function = self.function
        if isinstance(function, str):
            module, _, name = function.partition(":")
            function = getattr(importlib.import_module(module), name)
        return functools.partial(function, **self.options)

    def explain(self, model, images, targets=None):
        """The maps (B, h, w) of one class of each image. `targets` are int64 (B,)."""
        if self.explains_all_classes:
            return self.compute(model, images)[torch.arange(len(images)), targets]
        maps = self.by_layers(model, images, targets)
        return maps[self.result] if self.by_layer else maps

    def by_layers(self, model, images, targets=None, attention=None):
        """The maps of all layers, (depth, B, h, w), or (B, h, w) if there are none by layer.

        `attention`, from `attention_maps`, is computed if it is None and needed.
        """
        if not self.takes_attention:
            return self.compute(model, images, targets)
        attention = attention_maps(model, images) if attention is None else attention
        return self.compute(attention, global_pool=model.global_pool)

    def for_classes(self, model, images, classes):
        """The maps of several classes (B, K) of each image: (B, K, h, w)."""
        if self.explains_all_classes:
            maps = self.compute(model, images)
            return torch.stack([of_image[chosen] for of_image, chosen in zip(maps, classes, strict=True)])
        count = classes.shape[1]
        if self.is_class_blind:
            return self.explain(model, images, classes[:, 0])[:, None].expand(-1, count, -1, -1)
        repeated, size = images.repeat_interleave(count, dim=0), images_at_once(images)
        parts = zip(repeated.split(size), classes.flatten().split(size), strict=True)
        return torch.cat([self.explain(model, *part) for part in parts]).unflatten(0, classes.shape)


def find(flag, **options):
    """The `Method` of a flag, with options of its function."""
    return Method(**{**vars(METHODS[flag]), "options": options})


def masks_method(samples=SAMPLES):
    """The `Method` of mask_maps with a number of masks for each image."""
    return find("masks", samples=samples)


def methods_for(model):
    """The methods that can explain a network: {the value of --method: Method}."""
    pool = getattr(model, "global_pool", "")
    return {
        flag: find(flag) for flag, entry in METHODS.items() if model.kind in entry.networks and entry.pool in ("", pool)
    }


def shown_methods(model):
    """The flags of the methods that are shown by default; the last one is the best.

    They depend on the kind of network and, for a ViT, on whether it `is_large`.
    """
    return SHOWN["large vit" if is_large(model) else model.kind]


def best_method(model):
    """The fast method that did best on networks like this one; see `shown_methods` and docs/explanations.md."""
    return find(shown_methods(model)[-1])
