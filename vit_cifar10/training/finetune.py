"""Fine-tuning: a network starts from the weights of another one, and its first part may stay fixed.

changes = load_initial(model, source, img_size=64, head_rows=None)   # ["new head for 3 classes", ...]
frozen = freeze(model, count=6)
model.train()
for module in frozen:
    module.eval()
"""

from vit_cifar10.data.classes import places_by_name
from vit_cifar10.utils.errors import UserError


def load_initial(model, source, img_size, head_rows):
    """Copy the weights of `source` to `model`, a network of the same shape for images of side `img_size`.

    The position embeddings are resized. Parts that cannot be copied keep their random weights: the head, if `head_rows`
    is None, and whatever depends on the size of the images in another way. Otherwise, `head_rows` are the places of the
    classes in the head of `source`, from `same_classes`.

    Returns:
        What is different, as a list of phrases.
    """
    weights = source.weights_for(img_size)
    head = [name for name in weights if name.startswith(f"{model.head_name}.")]
    for name in head:
        value = weights.pop(name)
        if head_rows is not None:
            weights[name] = value[head_rows]
    own = model.state_dict()
    model.load_state_dict({**own, **weights})
    missing = own.keys() - weights.keys()
    new = [part for part, prefixes in model.parts_from_head_to_input() if any(n.startswith(prefixes) for n in missing)]
    classes = model.get_submodule(model.head_name).out_features
    kept = "kept" if head_rows == list(range(classes)) else "kept, in their new order"
    changes = [f"new {' and '.join(new)} for {classes} classes" if new else f"the head for {classes} classes is {kept}"]
    if model.has_attention and model.grid_size != source.grid_size:
        changes.append(f"positions resized from {grid(source)} to {grid(model)}")
    return changes


def same_classes(names, known):
    """The place of each class in `known`, if both lists name the same classes in any order; otherwise None."""
    places = places_by_name(list(names), known)
    return places if sorted(place for place in places if place is not None) == list(range(len(known))) else None


def grid(model):
    """The patches of a network in words, such as "8 x 8"."""
    return f"{model.grid_size} x {model.grid_size}"


def check_frozen_blocks(model, count):
    """Raise `UserError` if a network has fewer than `count` blocks."""
    blocks = sum(name.startswith(model.block_name) for name, _ in model.parts_from_head_to_input())
    if count > blocks:
        raise UserError(f"--freeze_blocks {count} is more than the network's {blocks} {model.block_name}s; lower it")


def freeze(model, count):
    """Exclude a network's first `count` blocks or convolutions, and what precedes them, from the training.

    Their weights need no gradients, so the backward pass ends after them.

    Returns:
        The frozen modules. In training, they must be in evaluation mode, so that they use no dropout and their batch
        normalization keeps its statistics.
    """
    if count == 0:
        return []
    parts = model.parts_from_head_to_input()[::-1]
    last = [name for name, _ in parts].index(f"{model.block_name} {count}")
    prefixes = tuple(prefix for _, part in parts[: last + 1] for prefix in part)
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    return [module for name, module in model.named_modules() if f"{name}.".startswith(prefixes)]
