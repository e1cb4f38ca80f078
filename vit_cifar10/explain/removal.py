"""What a network predicts when patches of an image are removed or restored, and maps that do not depend on a network.

Removed patches are replaced in one of three ways: with the mean color of the data set, with a blurred copy of the
image, or with noisy linear imputation, the "ROAD" fill, whose patches have no outline that would reveal the removal
(Rong et al., 2022, https://arxiv.org/abs/2202.00449).
"""

import math

import torch
from torch.nn import functional as F

from vit_cifar10.explain.maps import images_at_once

BASELINES = ("random", "edges", "center")
FRACTIONS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the patches; closer together where the prediction changes most
FILLS = ("mean", "blur", "ROAD")
CURVES = ("deletion", "insertion")
ROAD_NOISE = 0.01  # standard deviation, in normalized images


def baseline_maps(inputs, grid, generator):
    """Maps that do not depend on the network: {baseline: (B, grid, grid)}.

    They are random values, the mean strength of the edges in a patch, and closeness to the center of the image.
    """
    gray = inputs.mean(dim=1, keepdim=True)
    sobel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]], device=inputs.device)
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    strength = sum(F.conv2d(padded, kernel[None, None]).square() for kernel in (sobel, sobel.T)).sqrt()
    offset = torch.linspace(-1, 1, grid, device=inputs.device)
    closeness = (-(offset[:, None].square() + offset.square()) / (2 * 0.5**2)).exp()
    return {
        "random": torch.rand(len(inputs), grid, grid, generator=generator).to(inputs.device),
        "edges": F.adaptive_avg_pool2d(strength, grid)[:, 0],
        "center": closeness.expand(len(inputs), -1, -1),
    }


def at_pixels(patches, size):
    """Values of patches (N, grid, grid) -> the same values at each of their pixels (N, 1, H, W), float32."""
    return F.interpolate(patches[:, None].float(), size, mode="nearest")


def patch_ranks(relevance, generator):
    """The rank of every patch, 0 for the most relevant, int64 (B, grid, grid). Ties are broken at random."""
    flat = relevance.flatten(1)
    shuffle = torch.rand(flat.shape, generator=generator).argsort(dim=1).to(flat.device)
    order = flat.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    return shuffle.gather(1, order).argsort(dim=1).view_as(relevance)


def make_fills(inputs, generator):
    """The ways to replace removed pixels of normalized images (B, 3, H, W).

    Returns:
        {fill: function}. A function takes bool (B, 1, H, W), True for removed pixels, and returns the changed images.
    """
    from torchvision.transforms.v2.functional import gaussian_blur  # only here because the import takes seconds

    sigma = inputs.shape[-1] / 8
    blurred = gaussian_blur(inputs, kernel_size=2 * math.ceil(1.5 * sigma) + 1, sigma=sigma)
    noise = ROAD_NOISE * torch.randn(inputs.shape, generator=generator).to(inputs.device)
    return {
        "mean": lambda removed: torch.where(removed, 0.0, inputs),  # normalized images have the mean 0
        "blur": lambda removed: torch.where(removed, blurred, inputs),
        "ROAD": lambda removed: impute(inputs, removed) + noise * removed,
    }


def impute(images, removed, tolerance=1e-5):
    """Replace removed pixels so that each is the weighted mean of its eight neighbors.

    The direct neighbors have twice the weight of the diagonal ones, and neighbors outside the image none. The linear
    system of all removed pixels is symmetric and positive definite, so it is solved with conjugate gradients. If no
    pixel is left, all become 0.

    Args:
        images: (B, C, H, W).
        removed: bool (B, 1, H, W).
        tolerance: largest error of any equation. The error of the result is some hundred times larger.

    Returns:
        (B, C, H, W).
    """
    removed = removed.expand_as(images)
    rows, columns = (2 * torch.eye(side, device=images.device) for side in images.shape[-2:])
    for band in (rows, columns):  # 2 on the diagonal, 1 next to it
        band.diagonal(1).fill_(1), band.diagonal(-1).fill_(1)

    def sum_neighbors(values):
        return (rows @ values @ columns - 4 * values) / 12  # much faster than a convolution with one channel

    total = sum_neighbors(torch.ones_like(images))
    solution = torch.zeros_like(images)
    residual = torch.where(removed, sum_neighbors(torch.where(removed, 0.0, images)), 0.0)
    direction, size = residual, residual.square().sum(dim=(2, 3), keepdim=True)
    for _ in range(20 * max(images.shape[-2:])):  # more than are ever needed, unless rounding stops the progress
        if residual.abs().max() < tolerance:
            break
        product = torch.where(removed, total * direction - sum_neighbors(direction), 0.0)
        step = size / (direction * product).sum(dim=(2, 3), keepdim=True).clamp(min=1e-30)
        solution, residual = solution + step * direction, residual - step * product
        previous, size = size, residual.square().sum(dim=(2, 3), keepdim=True)
        direction = residual + size / previous.clamp(min=1e-30) * direction
    return torch.where(removed, solution, images)


class RemovalTest:
    """Removes patches from a batch of images, or restores them, in any order, and records a class's probability.

    Args:
        inputs: normalized images (B, 3, H, W).
        targets: int64 (B,), one class for each image.
        generator: a torch.Generator for the noise of ROAD.
    """

    def __init__(self, model, inputs, targets, generator):
        self.model, self.inputs, self.targets = model, inputs, targets
        self.fills = make_fills(inputs, generator)
        self.ends = {}

    def curve(self, ranks, fill, kind):
        """The probability after each of `FRACTIONS` of the patches is removed or restored: (B, len(FRACTIONS)).

        Args:
            ranks: (B, grid, grid), from `patch_ranks`.
            fill: one of `FILLS`.
            kind: "deletion" removes the most relevant patches, "insertion" restores them.
        """
        counts = [round(fraction * ranks[0].numel()) for fraction in FRACTIONS[1:-1]]
        first = torch.stack([ranks < count for count in counts])
        if fill not in self.ends:  # the same for all ranks
            self.ends[fill] = self.probabilities(torch.stack([ranks < 0, ranks >= 0]), fill).split(1, dim=1)
        whole, empty = self.ends[fill]
        if kind == "deletion":
            return torch.cat([whole, self.probabilities(first, fill), empty], dim=1)
        return torch.cat([empty, self.probabilities(~first, fill), whole], dim=1)

    @torch.inference_mode()
    def probabilities(self, removed, fill):
        """The probability of the target without patches, for K sets of them: bool (K, B, grid, grid) -> (B, K)."""
        count, size = len(removed), self.inputs.shape[-2:]
        masks = at_pixels(removed.flatten(0, 1), size).bool().chunk(count)
        logits = self.model(torch.cat([self.fills[fill](mask) for mask in masks]))
        return logits.softmax(dim=1).gather(1, self.targets.repeat(count)[:, None]).view(count, -1).T


@torch.inference_mode()
def remove_each_patch(model, image, grid):
    """The probabilities (grid * grid, C) of one normalized image (1, 3, H, W) after each single patch is removed.

    A removed patch has the mean color.
    """
    is_removed = torch.eye(grid * grid, device=image.device).view(-1, grid, grid)
    is_removed = at_pixels(is_removed, image.shape[-2:]).bool()
    return torch.cat(
        [model(torch.where(part, 0.0, image)).softmax(dim=1) for part in is_removed.split(images_at_once(image))]
    )
