"""Fine-tuning: a network starts from the weights of another one, and its first part may stay fixed.

changes = load_initial(model, source, img_size=64, keep_head=False)   # ["new head for 3 classes", ...]
frozen = freeze(model, count=6)
model.train()
for module in frozen:
    module.eval()
"""

from vit_cifar10.utils.errors import UserError


def load_initial(model, source, img_size, keep_head):
    """Copy the weights of `source` to `model`, a network of the same shape for images of side `img_size`.

    The position embeddings are resized. Parts that cannot be copied keep their random weights: the head, unless
    `keep_head`, and whatever depends on the size of the images in another way.

    Returns:
        What is different, as a list of phrases.
    """
    weights = source.weights_for(img_size)
    if not keep_head:
        weights = {name: value for name, value in weights.items() if not name.startswith(f"{model.head_name}.")}
    own = model.state_dict()
    model.load_state_dict({**own, **weights})
    missing = own.keys() - weights.keys()
    new = [part for part, prefixes in model.parts_from_head_to_input() if any(n.startswith(prefixes) for n in missing)]
    classes = model.get_submodule(model.head_name).out_features
    changes = [f"new {' and '.join(new)} for {classes} classes" if new else f"the head for {classes} classes is kept"]
    if model.has_attention and model.grid_size != source.grid_size:
        changes.append(f"positions resized from {grid(source)} to {grid(model)}")
    return changes


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
