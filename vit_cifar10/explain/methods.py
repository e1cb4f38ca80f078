"""Why it decided: attention, rollout, gradient rollout and Grad-CAM.

    maps = attention_maps(model, images)             # (depth, B, heads, N, N): every layer and head of a ViT
    attention_to_patches(maps, "token")              # (depth, B, grid, grid): what each layer looks at
    attention_rollout(maps)                          # (B, grid, grid): what reaches the output through all layers
    gradient_rollout(model, images, targets)         # (B, grid, grid): the same, for one class
    grad_cam(model, images, targets)                 # (B, h, w): for one class, of a CNN or a ViT

Images are normalised floats (B, 3, H, W) on any device; `targets`, int64 (B,), are the classes to explain, by default
those predicted. Maps are raw relevance in float32, whatever the precision of the training; scaling them is the
picture's business. A network is left as it was found: its mode, its gradients, and without hooks.
"""

import contextlib
import math

import torch

from vit_cifar10.utils.device import eval_mode

HEAD_FUSIONS = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}


@torch.no_grad()
def attention_maps(model, images):
    """Attention weights of every layer and head of a ViT.

    Returns:
        (depth, B, heads, N, N); row i is where token i looks, and sums to 1. The class token, if any, is the first.
    """
    with eval_mode(model), torch.autocast(images.device.type, enabled=False):
        _, attentions = model.forward_with_attention(images.float())
    return torch.stack(attentions)


def attention_to_patches(maps, global_pool="token"):
    """Mean over heads of the attention that the class token, or under "avg" every patch, pays to each patch.

    Args:
        maps: (..., heads, N, N).

    Returns:
        (..., grid, grid); what is missing to a sum of 1 goes to the class token.
    """
    return _to_grid(maps.mean(dim=-3), global_pool)


def attention_rollout(maps, head_fusion="mean", discard_ratio=0.0, global_pool="token"):
    """Attention rollout (Abnar and Zuidema, 2020): attention multiplied through the layers, residuals counted half.

    It says what reaches the output, not what speaks for a class.

    Args:
        maps: (depth, B, heads, N, N).
        head_fusion: "mean", "max" or "min" over the heads.
        discard_ratio: share of each image's weights, the smallest, that is dropped; attention to the class token
            never is.
        global_pool: the network's; "token" reads the class token's row, "avg" the mean of the patches' rows.

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
    """Gradient rollout of a ViT (Chefer et al., 2021, "Generic Attention-model Explainability", self-attention).

    Through the layers R <- R + mean over heads of (dA * A)+ R, from R = 1, where A is a layer's attention and dA the
    gradient of the target's logit by it: attention counts where more of it would raise the logit.

    Returns:
        (B, grid, grid), of what the head reads: the class token, or under "avg" the mean of the patches.
    """
    return gradient_rollout_by_layer(model, images, targets)[-1]


def gradient_rollout_by_layer(model, images, targets=None):
    """`gradient_rollout` from the input up to every layer: (depth, B, grid, grid)."""
    with _differentiable(model, images) as inputs:
        logits, attentions = model.forward_with_attention(inputs)
        gradients = torch.autograd.grad(_target_logits(logits, targets), attentions)
        relevance, by_layer = torch.eye(attentions[0].shape[-1], device=images.device), []
        for weights, gradient in zip(attentions, gradients, strict=True):
            relevance = relevance + (gradient * weights.detach()).relu().mean(dim=1) @ relevance
            by_layer.append(_to_grid(relevance, model.global_pool))
    return torch.stack(by_layer)


def grad_cam(model, images, targets=None, layer=None):
    """Grad-CAM (Selvaraju et al., 2017): a layer's channels, weighted by how much each raises the target's logit.

    Args:
        layer: the module whose output is explained, (B, C, h, w) or tokens (B, N, C); by default the CNN's last
            ReLU (before its BatchNorm, a channel's zero means nothing) or the first norm of the ViT's last block.

    Returns:
        (B, h, w), never negative; 0 everywhere if nothing speaks for the class. The ViT's class token is left out.
    """
    if layer is None:
        layer = model.grad_cam_layer
    outputs = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with _differentiable(model, images) as inputs:
            logits = model(inputs)
            (gradient,) = torch.autograd.grad(_target_logits(logits, targets), outputs)
    finally:
        hook.remove()
    activation = outputs[0].detach()
    if activation.ndim == 3:  # tokens
        side = math.isqrt(activation.shape[1] - model.num_prefix_tokens)
        activation, gradient = (
            tokens[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, (side, side))
            for tokens in (activation, gradient)
        )
    return (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).relu()


def explain_layers(model, image, head_fusion="mean", discard_ratio=0.0):
    """Everything a ViT's attention shows of one normalised image (1, 3, H, W), layer by layer.

    Returns:
        Arrays {"attention", "rollout", "gradient rollout": (depth, grid, grid)}, the last for the predicted class and
        both rollouts from the input up to the layer; and the attention of every head, (depth, heads, grid, grid).
    """
    maps = attention_maps(model, image)
    by_layer = {
        "attention": attention_to_patches(maps, model.global_pool),
        "rollout": rollout_by_layer(maps, head_fusion, discard_ratio, model.global_pool),
        "gradient rollout": gradient_rollout_by_layer(model, image),
    }
    heads = attention_to_patches(maps.unsqueeze(3), model.global_pool)
    return {name: values[:, 0].cpu().numpy() for name, values in by_layer.items()}, heads[:, 0].cpu().numpy()


@contextlib.contextmanager
def _differentiable(model, images):
    """Inputs through which gradients flow in float32, in evaluation mode, even where they are switched off outside."""
    no_autocast = torch.autocast(images.device.type, enabled=False)
    with eval_mode(model), no_autocast, torch.inference_mode(False), torch.enable_grad():
        yield images.detach().clone().float().requires_grad_()


def _target_logits(logits, targets):
    """The sum of each image's target logit; the images do not see each other, so its gradient is each one's own."""
    targets = (
        logits.argmax(dim=1) if targets is None else targets.to(logits.device).clone()
    )  # may come from inference mode
    return logits.gather(1, targets[:, None]).sum()


def _discard(fused, ratio):
    """(B, N, N) without the smallest `ratio` of each image's weights to patches."""
    prefix = _prefix_tokens(fused)
    to_patches = fused[:, :, prefix:].flatten(1)
    dropped = int(to_patches.shape[1] * ratio)
    if not dropped:
        return fused
    smallest = to_patches.argsort(dim=1, stable=True)[:, :dropped]
    kept = to_patches.scatter(1, smallest, 0.0).view_as(fused[:, :, prefix:])
    return torch.cat([fused[:, :, :prefix], kept], dim=2)


def _prefix_tokens(maps):
    """1 if there is a class token in maps (..., N, N), else 0: the patches alone are a square number of tokens."""
    return maps.shape[-1] - math.isqrt(maps.shape[-1]) ** 2


def _to_grid(relevance, global_pool):
    """(..., N, N) -> (..., grid, grid): the row that the head reads, without the class token's column."""
    prefix = _prefix_tokens(relevance)
    to_patches = relevance[..., prefix:]
    row = to_patches[..., 0, :] if global_pool == "token" else to_patches[..., prefix:, :].mean(dim=-2)
    side = math.isqrt(row.shape[-1])
    return row.unflatten(-1, (side, side))
