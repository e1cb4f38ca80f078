"""What the GIF and the page show of one image. They share it, so that nothing is computed twice.

explanation = Explanation(network, image)     # uint8 (3, H, W)
explanation.probabilities, explanation.classes, explanation.attention
explanation.maps(best_method(network.model), count=5)
"""

import functools

import torch

from vit_cifar10.explain.lens import logit_lens
from vit_cifar10.explain.maps import attention_maps, images_at_once

MAX_CLASSES = 20  # with more classes than this, the page explains only the most probable ones
TOP_CLASSES = 10  # the number of classes that it then explains


class Explanation:
    """Attributes: `logits` and `probabilities`, (C,); `classes`, the explained ones, int64 (K,), most probable first.

    Args:
        image: uint8 (3, H, W).
        for_page: whether a page will show it, which needs the maps of all explained classes.
    """

    def __init__(self, network, image, for_page=True):
        self.network, self.model, self.image, self.for_page = network, network.model, image, for_page
        self.inputs = network.prepare(image[None])
        self.logits = network.logits(image[None])[0]
        self.probabilities = self.logits.softmax(dim=0)
        self.classes = self.probabilities.topk(count_explained(network)).indices
        self.computed = {}

    @functools.cached_property
    def attention(self):
        """The weights of a ViT, from `attention_maps`: (depth, 1, heads, N, N)."""
        return attention_maps(self.model, self.inputs)

    @functools.cached_property
    def lens(self):
        """The logits of a ViT after each layer, from `logit_lens`: (depth + 1, C)."""
        return logit_lens(self.model, self.inputs)[:, 0]

    def parts(self, count):
        """The most probable classes in parts that fit into memory: pairs of normalized images and classes."""
        classes = self.classes[:count]
        return [
            (self.inputs.expand(len(part), -1, -1, -1), part) for part in classes.split(images_at_once(self.inputs))
        ]

    def maps(self, method, count=None):
        """The maps of a `Method` for the `count` most probable classes; None stands for all explained ones.

        Returns:
            (count, h, w), or (count, depth, h, w) if there is one by layer. A method that is the same for every class
            has no first dimension.
        """
        count = len(self.classes) if count is None or (self.for_page and not method.is_slow) else count
        key = (method.name, tuple(method.options.items()))
        maps = self.computed.get(key)
        if maps is None or (not method.is_class_blind and len(maps) < count):
            maps = self.computed[key] = self.compute(method, count)
        return maps

    def compute(self, method, count):
        if method.takes_attention:
            return method.by_layers(self.model, self.inputs, attention=self.attention)[:, 0]
        if method.is_class_blind:
            maps = method.by_layers(self.model, self.inputs, self.classes[:1])
            return maps[:, 0] if method.by_layer else maps[0]
        if method.by_layer:
            return torch.cat([method.by_layers(self.model, *part) for part in self.parts(count)], dim=1).transpose(0, 1)
        return method.for_classes(self.model, self.inputs, self.classes[None, :count])[0]


def count_explained(network):
    """How many classes of an image the page explains."""
    return len(network.classes) if len(network.classes) <= MAX_CLASSES else TOP_CLASSES
