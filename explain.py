"""Why it decided: the attention of a Vision Transformer, layer by layer, and what flows through it.

    maps = attention_maps(model, images)          # (depth, B, heads, N, N)
    attention_to_patches(maps, "token")           # (depth, B, grid, grid): what each layer looks at
    attention_rollout(maps)                       # (B, grid, grid): what reaches the output through all layers

Maps are raw relevance; scaling them is the picture's business.
"""

import math

import torch

from evaluate import evaluating


@torch.no_grad()
def attention_maps(model, images):
    """Attention weights of every layer and head of a ViT for normalised images (B, 3, H, W).

    Returns:
        float32 (depth, B, heads, N, N); row i is where token i looks, and sums to 1. Token 0 is the class token.
    """
    with evaluating(model), torch.autocast(images.device.type, enabled=False):
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

    Args:
        maps: (depth, B, heads, N, N); the first layers alone give the rollout up to there.
        head_fusion: "mean", "max" or "min" over the heads.
        discard_ratio: share of each image's weights, the smallest, that is dropped; attention to the class token
            never is.
        global_pool: the network's; "token" reads the class token's row, "avg" the mean of the patches' rows.

    Returns:
        (B, grid, grid).
    """
    fuse = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}[head_fusion]
    identity = torch.eye(maps.shape[-1], device=maps.device)
    rollout = identity.expand(maps.shape[1], -1, -1)
    for layer in maps:
        fused = _discard(fuse(layer, dim=1), discard_ratio)
        mixed = 0.5 * fused + 0.5 * identity
        rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
    return _to_grid(rollout, global_pool)


def _discard(fused, ratio):
    """(B, N, N) without the smallest `ratio` of each image's weights to patches."""
    dropped = int(fused[0, :, 1:].numel() * ratio)
    if not dropped:
        return fused
    to_patches = fused[:, :, 1:].flatten(1)
    smallest = to_patches.argsort(dim=1, stable=True)[:, :dropped]
    kept = to_patches.scatter(1, smallest, 0.0).view_as(fused[:, :, 1:])
    return torch.cat([fused[:, :, :1], kept], dim=2)


def _to_grid(relevance, global_pool):
    """(..., N, N) -> (..., grid, grid): the row that the head reads, without the class token's column."""
    row = relevance[..., 0, 1:] if global_pool == "token" else relevance[..., 1:, 1:].mean(dim=-2)
    side = math.isqrt(row.shape[-1])
    return row.unflatten(-1, (side, side))
