"""Signed relevance from one changed backward pass: AttnLRP, ResLRP and FullGrad+ for a ViT, DeepLIFT for a CNN.

    attn_lrp(model, images, targets)           # (B, grid, grid): what speaks for (> 0) and against (< 0) a class
    attn_lrp_by_layer(model, images, targets)  # (depth, B, grid, grid): the same in the tokens that enter each layer
    res_lrp(model, images, targets)            # AttnLRP with another rule for residual connections
    full_grad_plus(model, images, targets)     # the inputs and the biases of all layers
    deep_lift(model, images, targets)          # for a CNN

AttnLRP:    Achtibat et al., 2024, https://arxiv.org/abs/2402.05602
ResLRP:     Berend et al., 2026, https://arxiv.org/abs/2609.17152
FullGrad+:  Mehri et al., 2025 (LibraGrad), https://arxiv.org/abs/2411.16760
DeepLIFT:   Shrikumar et al., 2017, https://arxiv.org/abs/1704.02685

The gradient of a deep network is noisy, because its nonlinear parts have steep slopes. These methods replace the
slopes, and then take gradient × input like any saliency method. The network's own forward pass runs inside `rules`,
where some of its modules compute the same values in a form that has the wanted gradient.
"""

import contextlib
import functools

import torch
from torch import nn
from torch.nn import functional as F

from model import Attention, Block
from vit_cifar10.explain.maps import differentiable, is_large, target_logits

GAMMA, LARGE_GAMMA = 0.1, 1.0  # of ResLRP, for small ViTs and for large ones; see docs/explanations.md


def attn_lrp(model, images, targets=None):
    """AttnLRP of a ViT: how much each patch adds to the target's logit.

    A linear layer divides the relevance of its output in proportion to what each input contributed (the rule LRP-0).
    Layer normalization is linear if its standard deviation is a constant. A GELU passes all relevance on to its input,
    and a product of two matrices half of it to each. Only the softmax keeps its gradient.

    The relevance of all patches adds up to the logit, except for the part of the biases, positions, class token and
    registers, and of the softmax, which is not linear either.

    Args:
        images: normalized floats (B, 3, H, W).
        targets: int64 (B,), the classes to explain; the default is the predicted classes.

    Returns:
        (B, grid, grid), positive where a patch speaks for the class and negative where it speaks against the class.
    """
    return attn_lrp_by_layer(model, images, targets)[0]


def attn_lrp_by_layer(model, images, targets=None, gamma=0.0):
    """AttnLRP in the tokens that enter each layer of a ViT: (depth, B, grid, grid).

    The first map is that of `attn_lrp`: there, relevance is followed on to the pixels. From layer to layer, it gathers
    in the class token, if there is one, which has no place in the maps. The relevance of all tokens that enter a layer
    adds up to the logit, except for the part of later biases and of the softmax.

    Args:
        gamma: 0 divides relevance at residual connections as AttnLRP does. For more, see `res_lrp`.
    """
    entering = []
    block = functools.partial(residual_block, entering, gamma)
    with differentiable(model, images) as inputs, rules(model, {**ATTN_LRP, Block: block}):
        logits = target_logits(model(inputs), targets)
        values = [inputs, *entering[1:]]
        gradients = torch.autograd.grad(logits, values)
        image, *tokens = (gradient * value.detach() for gradient, value in zip(gradients, values, strict=True))
        return torch.stack([sum_over_patches(image, model.grid_size), *(patch_sums(model, each) for each in tokens)])


def res_lrp(model, images, targets=None, gamma=None):
    """ResLRP of a ViT: AttnLRP, with a rule for the sums z = a + b at the residual connections.

    Where a layer takes back much of what has been there, a and b are large, have opposite signs and nearly cancel.
    AttnLRP then turns little relevance of z into much for a and much against it for b, or the reverse. ResLRP counts
    (1 + gamma) times the one that has the sign of z, which limits the relevance of each to (1 + 1 / gamma) times that
    of z. The two still add up to the relevance of z.

    Args:
        gamma: 0 is AttnLRP. The default is `GAMMA` or, for images of `LARGE` pixels or more, that of the paper.

    Returns:
        (B, grid, grid) as in `attn_lrp`.
    """
    return res_lrp_by_layer(model, images, targets, gamma)[0]


def res_lrp_by_layer(model, images, targets=None, gamma=None):
    """ResLRP in the tokens that enter each layer of a ViT: (depth, B, grid, grid), as in `attn_lrp_by_layer`."""
    if gamma is None:
        gamma = LARGE_GAMMA if is_large(model) else GAMMA
    return attn_lrp_by_layer(model, images, targets, gamma)


def full_grad_plus(model, images, targets=None):
    """FullGrad+ of a ViT with LibraGrad's backward pass: what each token and each bias adds to the target's logit.

    It is the sum of gradient × input over the tokens that enter all layers and, at the place of each token, over the
    biases of all layers. The gradient treats as constants the standard deviation of a layer norm, the attention weights
    and the factor by which a GELU multiplies its input. The network is then linear: the tokens that enter a layer and
    all biases from there on add up to the logit. Biases after the pooling belong to no patch, and are left out.

    Returns:
        (B, grid, grid) as in `attn_lrp`, but the sum over all layers is about `depth` times as large.
    """
    terms = []  # pairs of tokens, whose gradient is needed, and of what this gradient is multiplied by

    def enter(module, x):
        terms.append((x, x.detach()))
        return type(module).forward(module, x)

    def add_bias(rule, module, x):
        output = rule(module, x)
        if terms and output.ndim == 3 and output.shape[1] == terms[0][0].shape[1]:  # between first block and pooling
            terms.append((output, module.bias.detach()))
        return output

    table = {
        Block: enter,
        nn.LayerNorm: functools.partial(add_bias, layer_norm),
        nn.Linear: functools.partial(add_bias, nn.Linear.forward),
        nn.GELU: gelu,
        Attention: constant_attention,
    }
    with differentiable(model, images) as inputs, rules(model, table):
        logits = target_logits(model(inputs), targets)
        gradients = torch.autograd.grad(logits, [tokens for tokens, _ in terms])
        return sum(patch_sums(model, gradient * factor) for gradient, (_, factor) in zip(gradients, terms, strict=True))


def deep_lift(model, images, targets=None):
    """DeepLIFT (the rescale rule) of a CNN: how much each cell adds to the target's logit, compared to a reference.

    The reference is an image in the data set's mean color, which the network classifies, too. A ReLU or GELU passes
    relevance on by the slope between its two outputs, not by its derivative. The relevance of all cells adds up to the
    difference of the two logits. The rule for max pooling, which keeps this sum, is the one of the packages SHAP and
    Captum.

    Returns:
        (B, grid, grid) as in `attn_lrp`. A cell has 4 x 4 pixels.
    """
    with differentiable(model, images) as inputs, rules(model, DEEP_LIFT):
        logits = model(torch.cat([inputs, torch.zeros_like(inputs)]))  # the mean color is 0 in normalized images
        (gradient,) = torch.autograd.grad(target_logits(logits[: len(images)], targets), inputs)
        return sum_over_patches(gradient * inputs.detach(), model.grid_size)


@contextlib.contextmanager
def rules(model, table):
    """Replace the forward pass of some modules. `table` is {module type: function of the module and its input}."""
    replaced = [(module, table[type(module)]) for module in model.modules() if type(module) in table]
    for module, rule in replaced:
        module.forward = functools.partial(rule, module)
    try:
        yield
    finally:
        for module, _ in replaced:
            del module.forward


def sum_over_patches(relevance, grid):
    """Relevance of each value of an image (B, 3, H, W) -> relevance of each patch (B, grid, grid).

    The cells of a CNN have no common size if their number does not divide the image. Each pixel then belongs to the
    cell that nearest-neighbor interpolation assigns to it, as where patches are removed.
    """
    cells = torch.arange(grid, device=relevance.device, dtype=torch.float32)[None, None]
    places = F.interpolate(cells, relevance.shape[-1], mode="nearest")[0, 0].long()  # the cell of each row or column
    belongs = F.one_hot(places, grid).to(relevance.dtype)  # (W, grid)
    return belongs.T @ relevance.sum(dim=1) @ belongs


def patch_sums(model, relevance):
    """Relevance of each value of the tokens (B, N, D) -> relevance of each patch (B, grid, grid)."""
    return relevance.sum(dim=2)[:, model.num_prefix_tokens :].unflatten(1, (model.grid_size, model.grid_size))


# AttnLRP, ResLRP and FullGrad+


def residual_block(entering, gamma, module, x):
    """A block that appends its input to `entering`, and adds its branches with `residual_sum`."""
    entering.append(x)
    x = residual_sum(x, module.drop_path1(module.attn(module.norm1(x))), gamma)
    return residual_sum(x, module.drop_path2(module.mlp(module.norm2(x))), gamma)


def residual_sum(stream, branch, gamma):
    """The sum of two tensors, where the one with the sign of the sum gets (1 + gamma) times its share of relevance."""
    if not gamma:
        return stream + branch
    total = (stream + branch).detach()
    weights = [1 + gamma * (part.detach() * total > 0) for part in (stream, branch)]
    weighted = weights[0] * stream.detach() + weights[1] * branch.detach()
    scale = torch.where(total == 0, 1.0, total / weighted)  # keeps the value of the sum
    return stream * (weights[0] * scale) + branch * (weights[1] * scale)


def layer_norm(module, x):
    std = (x.var(dim=-1, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
    return (x - x.mean(dim=-1, keepdim=True)) / std * module.weight + module.bias


def gelu(module, x):
    slope = torch.where(x == 0, 0.5, F.gelu(x, approximate=module.approximate) / x).detach()
    return x * slope


def attention(module, x):
    heads, _ = module.mix(x, rule=half_gradient)
    return module.merge(heads)


def half_gradient(x):
    return x / 2 + (x / 2).detach()


def constant_attention(module, x):
    query, key, value = module.project(x)
    weights = (query @ key.transpose(-2, -1) * module.scale).softmax(dim=-1)
    return module.merge(weights.detach() @ value)


# DeepLIFT: each batch holds the images first, and then one reference for each image


NEAR = 1e-3  # a difference of inputs
TIE = 1e-5  # a difference of values, relative to the largest one of the whole layer


def activation(module, x):
    """An activation passes relevance on by the slope between its two outputs, and between near values by their mean's.

    Between near values, rounding would make the slope of a smooth activation meaningless.
    """
    function = type(module).forward.__get__(module)  # `module.forward` is this rule
    output, reference_output = function(x).chunk(2)
    image, reference = x.chunk(2)
    difference = image - reference
    with torch.enable_grad():
        middle = ((image + reference) / 2).detach().requires_grad_()
        (derivative,) = torch.autograd.grad(function(middle).sum(), middle)
    slope = torch.where(difference.abs() < NEAR, derivative, (output - reference_output) / difference).detach()
    return torch.cat([reference_output + difference * slope, reference_output])


def max_pool(module, x):
    """Max pooling: a rising maximum is due to the image's largest value, a falling one to the reference's largest."""
    outputs = F.max_pool2d(x, module.kernel_size)
    places = first_largest(x, outputs, module.kernel_size)
    (image, reference), (output, reference_output) = x.chunk(2), outputs.chunk(2)
    larger = torch.maximum(output, reference_output)
    changed = reference_output
    for place, change in zip(places.chunk(2), (larger - reference_output, output - larger), strict=True):
        difference = _take(image, place) - _take(reference, place)
        slope = torch.where(difference == 0, 0.0, change / difference).detach()
        changed = changed + difference * slope
    return torch.cat([changed, reference_output])


def first_largest(x, outputs, side):
    """The place of the first value in each window of max pooling that is its maximum, except for rounding errors.

    In the reference and in saturated parts of an image, whole windows have one value. Without the tolerance, rounding
    would choose among them, and so move relevance to other cells.

    Args:
        x: (B, C, H, W). `outputs`: its maxima, (B, C, h, w), in windows of `side` x `side`.

    Returns:
        int64 (B, C, h, w), indices into the flattened H x W.
    """
    height, width = outputs.shape[-2:]
    windows = x.unfold(2, side, side).unfold(3, side, side).flatten(4)  # (B, C, h, w, side * side)
    tolerance = TIE * x.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    is_largest = windows >= (outputs - tolerance)[..., None]
    order = torch.arange(side**2, 0, -1, device=x.device)  # of several ones, `argmax` could return any
    within = (is_largest * order).argmax(dim=-1)
    row = torch.arange(height, device=x.device)[:, None] * side + within // side
    column = torch.arange(width, device=x.device) * side + within % side
    return row * x.shape[-1] + column


def _take(x, places):
    return x.flatten(2).gather(2, places.flatten(2)).view_as(places)


ATTN_LRP = {nn.LayerNorm: layer_norm, nn.GELU: gelu, Attention: attention}
DEEP_LIFT = {nn.ReLU: activation, nn.GELU: activation, nn.MaxPool2d: max_pool}
