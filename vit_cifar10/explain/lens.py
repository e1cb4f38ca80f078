"""When a ViT decides, which patches say so, and which heads move the decision.

logit_lens(model, images)                      # (depth + 1, B, C): what the head would say after each layer
patch_logits(model, images, targets)           # (depth, B, grid, grid): what it would say of each patch
head_contributions(model, images, targets)     # (depth, B, heads): what each head adds to a class's logit

All read the stream of tokens between the layers with the network's own head. The first two are the "logit lens"
(nostalgebraist, 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru), the last the direct logit attribution of
"A Mathematical Framework for Transformer Circuits" (Elhage et al., 2021, https://transformer-circuits.pub/2021/framework).
"""

import torch

from vit_cifar10.utils.device import eval_mode


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
def patch_logits(model, images, targets=None):
    """The logits (depth, B, grid, grid) of a class in each patch after each layer of a ViT with `global_pool` "avg".

    Their mean over the patches is the logit of the logit lens, and after the last layer that of the network. This is
    exact because all between the mean and the logit is linear if the final norm, which comes after the mean, divides
    each patch by the standard deviation of the mean. A norm before the mean divides each patch by its own.

    Args:
        images: normalized floats (B, 3, H, W).
        targets: int64 (B,), the classes to explain; the default is the predicted classes.
    """
    norm = model.fc_norm if model.pools_first else model.norm
    with eval_mode(model), torch.autocast(images.device.type, enabled=False):
        x, streams = model.embed(images.float()), []
        for block in model.blocks:
            x = block(x)
            streams.append(x[:, model.num_prefix_tokens :])
        targets = model.forward_head(model.norm(x)).argmax(dim=1) if targets is None else targets
        stream = torch.stack(streams)  # (depth, B, patches, D)
        centered = stream - stream.mean(dim=-1, keepdim=True)
        read = stream.mean(dim=2, keepdim=True) if model.pools_first else stream
        normalized = centered / (read.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        tokens = normalized * norm.weight + norm.bias
        logits = (tokens @ model.head.weight[targets].unsqueeze(2))[..., 0] + model.head.bias[targets, None]
    return logits.unflatten(2, (model.grid_size, model.grid_size))


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
