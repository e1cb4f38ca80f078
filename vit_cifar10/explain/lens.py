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

    A head adds a vector to each token. Without the later layers, which react to it, this vector would only pass through
    the final norm, the pooling and the head. The norm's standard deviation is the one of the whole sum.

    Args:
        images: normalized floats (B, 3, H, W).
        targets: int64 (B,), one class for each image.
    """
    x = model.embed(images)
    mixed = []
    for block in model.blocks:
        heads, _ = block.attn.mix(block.norm1(x))
        mixed.append(heads.transpose(1, 2))  # (B, N, heads, D / heads)
        x = block(x)
    normalized, norm = (model.pool(x), model.fc_norm) if model.pools_first else (x, model.norm)
    std = (normalized.var(dim=-1, unbiased=False) + norm.eps).sqrt()[..., None, None]  # (B, 1 or 2 or N, 1, 1)
    direction = model.head.weight[targets].unflatten(1, (-1, model.embed_dim)) * norm.weight  # (B, 1 or 2, D)
    contributions = []
    for values, block in zip(mixed, model.blocks, strict=True):
        read = model.pool(values) / std if model.pools_first else model.pool(values / std)  # (B, 1 or 2, heads, ...)
        kernel = block.attn.proj.weight.unflatten(1, values.shape[2:])  # (D, heads, D / heads)
        outputs = torch.einsum("bthk,dhk->bthd", read, kernel)
        outputs = outputs - outputs.mean(dim=-1, keepdim=True)
        contributions.append(torch.einsum("bthd,btd->bh", outputs, direction))
    return torch.stack(contributions)
