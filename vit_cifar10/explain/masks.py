"""A reference for all other methods, which costs hundreds of forward passes for each image: random masks.

    mask_maps(model, images, samples=512)     # (B, C, grid, grid): how much each patch adds to each class's score

The image is classified again and again, each time without a random half of its patches. A linear model is then fitted
that predicts the network's logits from the patches that were left. It is a relative of LIME (Ribeiro et al., 2016,
https://arxiv.org/abs/1602.04938) and of KernelSHAP (Lundberg and Lee, 2017, https://arxiv.org/abs/1705.07874).
"""

import torch

from vit_cifar10.explain.maps import images_at_once
from vit_cifar10.explain.removal import at_pixels
from vit_cifar10.utils.choices import SAMPLES
from vit_cifar10.utils.device import eval_mode

RIDGE = 1 / 16  # strength of the regularization per mask


@torch.inference_mode()
def mask_maps(model, images, samples=SAMPLES, seed=0):
    """The coefficients of a ridge regression of each class's logit on the patches that are left.

    Masks come in pairs, where each one removes what the other one leaves. All images share the same masks. Removed
    patches have the data set's mean color.

    Args:
        images: normalized floats (B, 3, H, W).
        samples: number of masks, at least 2.

    Returns:
        (B, C, grid, grid): by how much a patch raises (> 0) or lowers (< 0) the logit of each class, averaged over
        what else is left of the image.
    """
    grid = model.grid_size
    generator = torch.Generator().manual_seed(seed)
    half = (torch.rand(-(-samples // 2), grid * grid, generator=generator) < 0.5).float()
    masks = torch.cat([half, 1 - half])[:samples].to(images.device)  # (samples, patches): 1 for a patch that is left
    centered = masks - masks.mean(dim=0)
    ridge = RIDGE * samples * torch.eye(grid * grid, device=images.device)
    fit = torch.linalg.solve(centered.T @ centered + ridge, centered.T)  # (patches, samples)
    parts = masks.view(-1, grid, grid).split(images_at_once(images))  # enlarged one at a time, which saves memory
    maps = []
    with eval_mode(model), torch.autocast(images.device.type, enabled=False):
        for image in images.float():
            logits = torch.cat([model(image * at_pixels(part, image.shape[-2:])) for part in parts])  # (samples, C)
            maps.append((fit @ (logits - logits.mean(dim=0))).T)
    return torch.stack(maps).unflatten(2, (grid, grid))
