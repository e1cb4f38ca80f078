"""Relevance maps: which patches matter to a network's prediction. One small function per method.

    maps = attention_maps(model, images)             # (depth, B, heads, N, N): every layer and head of a ViT
    attention_to_patches(maps, "token")              # (depth, B, grid, grid): where each layer looks
    attention_rollout(maps)                          # (B, grid, grid): what reaches the output through all layers
    gradient_rollout(model, images, targets)         # (B, grid, grid): the attention that raises a class's logit
    grad_cam(model, images, targets)                 # (B, h, w): the channels that raise a class's logit, CNN or ViT

Attention rollout:  Abnar and Zuidema, 2020, https://arxiv.org/abs/2005.00928
Gradient rollout:   Chefer et al., 2021, https://arxiv.org/abs/2103.15679
Grad-CAM:           Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391

Two signed methods are in propagation.py, one that needs hundreds of forward passes in masks.py, and the table of all
methods in methods.py.

`images` are normalized floats (B, 3, H, W) on any device. `targets`, int64 (B,), are the classes to explain; the
default is the predicted classes. Maps are float32 and not scaled, regardless of the training precision. No function
changes the network: its mode and gradients stay the same, and no hook remains.
"""

import contextlib
import math

import torch

from vit_cifar10.utils.device import eval_mode
from vit_cifar10.utils.methods import LARGE

HEAD_FUSIONS = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}


def images_at_once(images):
    """How many images of this size fit into memory at once: 250 with 32 x 32 pixels, 5 with 224 x 224."""
    return max(1, 256_000 // (images.shape[-2] * images.shape[-1]))


def is_large(model):
    """Whether a network is a ViT for images of `LARGE` pixels a side or more, as those of the newer papers are."""
    return model.kind == "vit" and model.patch_embed.img_size >= LARGE


@torch.no_grad()
def attention_maps(model, images):
    """The attention weights of every layer and head of a ViT.

    Returns:
        (depth, B, heads, N, N). Row i holds the attention from token i to every token, and sums to 1. The class token,
        if there is one, is the first token, and the patches are the last ones.
    """
    with eval_mode(model), torch.autocast(images.device.type, enabled=False):
        _, attentions = model.forward_with_attention(images.float())
    return torch.stack(attentions)


def attention_to_patches(maps, global_pool="token"):
    """The attention that the output token pays to each patch, averaged over the heads.

    The output token is what the network's head reads: the class token or, with `global_pool` "avg", the mean of the
    patches or, with "distilled", the mean of the class token and the distillation token.

    Args:
        maps: (..., heads, N, N).

    Returns:
        (..., grid, grid). The rest of the attention, up to a sum of 1, goes to the class token and registers.
    """
    return _to_grid(maps.mean(dim=-3), global_pool)


def attention_rollout(maps, head_fusion="mean", discard_ratio=0.0, global_pool="token"):
    """Attention rollout: the product of all layers' attention, each mixed with the residual connection in equal parts.

    It shows how much of each patch reaches the output. It is the same for every class.

    Args:
        maps: (depth, B, heads, N, N), from `attention_maps`.
        head_fusion: "mean", "max" or "min": how to combine the heads of a layer.
        discard_ratio: in each layer, set this fraction of the image's weights, the smallest ones, to 0. Attention to
            the class token and to registers is always kept.
        global_pool: what the network's head reads, "token", "avg" or "distilled"; see `attention_to_patches`.

    Returns:
        (B, grid, grid).
    """
    return rollout_by_layer(maps, head_fusion, discard_ratio, global_pool)[-1]


def rollout_by_layer(maps, head_fusion="mean", discard_ratio=0.0, global_pool="token"):
    """`attention_rollout` from the input up to every layer: (depth, B, grid, grid)."""
    fuse = HEAD_FUSIONS[head_fusion]
    identity = torch.eye(maps.shape[-1], device=maps.device)
    rollout, by_layer = identity, []
    with torch.autocast(maps.device.type, enabled=False):
        for layer in maps:
            mixed = 0.5 * _discard(fuse(layer, dim=1), discard_ratio) + 0.5 * identity
            rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
            by_layer.append(_to_grid(rollout, global_pool))
    return torch.stack(by_layer)


def gradient_rollout(model, images, targets=None):
    """Gradient rollout of a ViT (Chefer et al., 2021, the rules for self-attention).

    The relevance R starts as the identity. Every layer adds R <- R + mean over heads of (dA * A)+ R, where A is the
    attention and dA the gradient of the target's logit with respect to it. Attention counts only where more of it would
    raise the logit. The initial identity is left out of the result: in the mean over patches ("avg"), it would add the
    same constant to every patch and hide the rest.

    Returns:
        (B, grid, grid), the relevance of each patch to the output token; see `attention_to_patches`.
    """
    return gradient_rollout_by_layer(model, images, targets)[-1]


def gradient_rollout_by_layer(model, images, targets=None):
    """`gradient_rollout` from the input up to every layer: (depth, B, grid, grid)."""
    with differentiable(model, images) as inputs:
        logits, attentions = model.forward_with_attention(inputs)
        gradients = torch.autograd.grad(target_logits(logits, targets), attentions)
        identity = torch.eye(attentions[0].shape[-1], device=images.device)
        relevance, by_layer = identity, []
        for weights, gradient in zip(attentions, gradients, strict=True):
            relevance = relevance + (gradient * weights.detach()).relu().mean(dim=1) @ relevance
            by_layer.append(_to_grid(relevance, model.global_pool) - _to_grid(identity, model.global_pool))
    return torch.stack(by_layer)


def grad_cam(model, images, targets=None, layer=None, relu=True):
    """Grad-CAM: the sum of a layer's channels, each weighted by how much it raises the target's logit.

    Args:
        layer: the module whose output is explained, (B, C, h, w) or tokens (B, N, C). The default is the network's
            `grad_cam_layer`: the last ReLU of the CNN (before BatchNorm, a zero would have no meaning), or the first
            norm of the last block of the ViT.
        relu: whether to set negative values to 0, as in the paper.

    Returns:
        (B, h, w), with `relu` at least 0, and 0 everywhere if no channel is evidence for the class. The ViT's class
        token and registers are left out.

    Raises:
        ValueError: the logit does not depend on the patches that `layer` returns. With a class token, this is the case
            after the last attention: what follows changes the class token only.
    """
    is_default = layer is None
    layer = model.grad_cam_layer if is_default else layer
    outputs = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with differentiable(model, images) as inputs:
            logits = model(inputs)
            (gradient,) = torch.autograd.grad(target_logits(logits, targets), outputs)
    finally:
        hook.remove()
    activation = outputs[0].detach()
    if activation.ndim == 3:  # tokens
        side = math.isqrt(activation.shape[1])
        activation, gradient = (
            tokens[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side)) for tokens in (activation, gradient)
        )
    if not is_default and not gradient.any():
        raise ValueError("no gradient reaches the patches at this layer, so Grad-CAM would be 0; choose an earlier one")
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1)
    return cam.relu() if relu else cam


@contextlib.contextmanager
def differentiable(model, images):
    """Yield a float32 copy of the images that requires gradients, with the network in evaluation mode.

    Gradients are computed in float32 even under `torch.inference_mode`, `torch.no_grad` or autocast.
    """
    no_autocast = torch.autocast(images.device.type, enabled=False)
    with eval_mode(model), no_autocast, torch.inference_mode(False), torch.enable_grad():
        yield images.detach().clone().float().requires_grad_()


def target_logits(logits, targets):
    """The sum of the images' target logits. Images do not interact, so each one gets the gradient of its own logit."""
    # the copy is needed because autograd refuses tensors created in inference mode
    targets = logits.argmax(dim=1) if targets is None else targets.to(logits.device).clone()
    return logits.gather(1, targets[:, None]).sum()


def _discard(fused, ratio):
    """Attention (B, N, N) with the smallest fraction `ratio` of each image's weights to patches set to 0."""
    prefix = _prefix_tokens(fused)
    to_patches = fused[:, :, prefix:].flatten(1)
    dropped = int(to_patches.shape[1] * ratio)
    if not dropped:
        return fused
    smallest = to_patches.argsort(dim=1, stable=True)[:, :dropped]
    kept = to_patches.scatter(1, smallest, 0.0).view_as(fused[:, :, prefix:])
    return torch.cat([fused[:, :, :prefix], kept], dim=2)


def _prefix_tokens(maps):
    """The number of class tokens and registers in maps (..., N, N).

    N tells it: the number of patches is a square, and `VisionTransformer` accepts too few registers to reach the next.
    """
    return maps.shape[-1] - math.isqrt(maps.shape[-1]) ** 2


def _to_grid(relevance, global_pool):
    """(..., N, N) -> (..., grid, grid): the row of the output token, without the columns before the patches."""
    prefix = _prefix_tokens(relevance)
    rows = {"token": slice(0, 1), "distilled": slice(0, 2), "avg": slice(prefix, None)}[global_pool]
    row = relevance[..., rows, prefix:].mean(dim=-2)
    side = math.isqrt(row.shape[-1])
    return row.unflatten(-1, (side, side))
