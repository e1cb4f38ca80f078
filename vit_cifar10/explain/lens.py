"""When a ViT decides, and which heads move the decision.

logit_lens(model, images)                      # (depth + 1, B, C): what the head would say after each layer
head_contributions(model, images, targets)     # (depth, B, heads): what each head adds to a class's logit

Both read the stream of tokens between the layers with the network's own head. The first is the "logit lens"
(nostalgebraist, 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru), the second the direct logit attribution of
"A Mathematical Framework for Transformer Circuits" (Elhage et al., 2021, https://transformer-circuits.pub/2021/framework).
"""

import torch


@torch.inference_mode()
def logit_lens(model, images):
    """The logits (depth + 1, B, C) that the final norm and the head compute from the tokens after each layer.

    The first ones are from the embedded image, and the last ones are the network's own.
    """
    x = model.embed(images)
    logits = [model.forward_head(model.norm(x))]
    for block in model.blocks:
        x = block(x)
        logits.append(model.forward_head(model.norm(x)))
    return torch.stack(logits)


@torch.inference_mode()
def head_contributions(model, images, targets):
    """How far the output of each head moves the logit of a class directly: (depth, B, heads).

    A head adds a vector to the tokens. Without the later layers, which react to it, this vector would only pass through
    the final norm and the head. The norm's standard deviation is the one of the whole sum.

    Args:
        images: normalized floats (B, 3, H, W).
        targets: int64 (B,), one class for each image.
    """
    x = model.embed(images)
    outputs = []
    for block in model.blocks:
        query, key, value = block.attn.project(block.norm1(x))
        weights = (query @ key.transpose(-2, -1) * block.attn.scale).softmax(dim=-1)
        mixed = _pool(model, (weights @ value).transpose(1, 2))  # (B, heads, D / heads)
        kernel = block.attn.proj.weight.unflatten(1, mixed.shape[1:])  # (D, heads, D / heads)
        outputs.append(torch.einsum("bhk,dhk->bhd", mixed, kernel))
        x = block(x)
    norm = model.norm if model.global_pool == "token" else model.fc_norm
    std = (_pool(model, x).var(dim=-1, unbiased=False) + norm.eps).sqrt()  # (B)
    direction = model.head.weight[targets] * norm.weight / std[:, None]  # (B, D)
    outputs = torch.stack(outputs)  # (depth, B, heads, D)
    return torch.einsum("lbhd,bd->lbh", outputs - outputs.mean(dim=-1, keepdim=True), direction)


def _pool(model, tokens):
    """What the network's head reads of (B, N, ...): the class token, or the mean of the patches."""
    return tokens[:, 0] if model.global_pool == "token" else tokens[:, model.num_prefix_tokens :].mean(dim=1)
