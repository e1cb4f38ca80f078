"""How far explanations can be trusted, measured on the network itself.

Deletion and insertion ask whether the prediction depends on the patches that a map marks as relevant. Deletion removes
them, most relevant first: the probability of the predicted class should fall early. Insertion restores them on an empty
image: the probability should rise early (Petsiuk et al., 2018, https://arxiv.org/abs/1806.07421).

Randomization asks whether a map depends on what the network has learned. The weights are replaced with random ones,
from the head back to the embedding, and the map should change (Adebayo et al., 2018, https://arxiv.org/abs/1810.03292).

Three baselines, which do not depend on the network, show what a map must beat: random order, the image's edges, and the
distance from its center.
"""

import copy
import math

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from model import build_model
from vit_cifar10.data.dataset import normalize
from vit_cifar10.explain.methods import (
    attention_maps,
    attention_rollout,
    attention_to_patches,
    grad_cam,
    gradient_rollout,
)

BASELINES = ("random", "edges", "centre")
FRACTIONS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the patches; closer together where the prediction changes most
FILLS = ("mean", "blur")  # what replaces a removed patch: the mean color of the data set, or the blurred image
CURVES = ("deletion", "insertion")
CLASS_BLIND = ("attention", "rollout")  # methods whose map is the same for every class


def relevance_maps(model, inputs, targets):
    """The relevance maps of normalized images (B, 3, H, W) for the classes `targets` (B,): {method: (B, grid, grid)}.

    The Grad-CAM map of a CNN is interpolated to the grid.
    """
    cam = grad_cam(model, inputs, targets)
    if not model.has_attention:
        grid = model.grid_size
        return {"Grad-CAM": F.interpolate(cam[:, None], (grid, grid), mode="bilinear")[:, 0]}
    maps = attention_maps(model, inputs)
    return {
        "attention": attention_to_patches(maps[-1], model.global_pool),
        "rollout": attention_rollout(maps, global_pool=model.global_pool),
        "gradient rollout": gradient_rollout(model, inputs, targets),
        "Grad-CAM": cam,
    }


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
        "centre": closeness.expand(len(inputs), -1, -1),
    }


def patch_ranks(relevance, generator):
    """The rank of every patch, 0 for the most relevant, int64 (B, grid, grid). Ties are broken at random."""
    flat = relevance.flatten(1)
    shuffle = torch.rand(flat.shape, generator=generator).argsort(dim=1).to(flat.device)
    order = flat.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    return shuffle.gather(1, order).argsort(dim=1).view_as(relevance)


def fill_images(inputs, fill):
    """The pixels that replace removed patches of normalized images: the mean color, which is 0, or a blurred copy."""
    if fill == "mean":
        return torch.zeros_like(inputs)
    sigma = inputs.shape[-1] / 8
    return tvf.gaussian_blur(inputs, kernel_size=2 * math.ceil(1.5 * sigma) + 1, sigma=sigma)


@torch.inference_mode()
def target_probability(model, inputs, targets):
    """The probability of the classes `targets` (B,) for normalized images (B, 3, H, W): (B,)."""
    return model(inputs).softmax(dim=1).gather(1, targets[:, None])[:, 0]


def removal_curve(model, inputs, targets, ranks, filled, kind):
    """The probability of the target classes (B,) while patches are removed or restored.

    Args:
        inputs: normalized images (B, 3, H, W).
        ranks: (B, grid, grid), from `patch_ranks`.
        filled: images (B, 3, H, W) whose pixels replace removed patches.
        kind: "deletion" removes the most relevant patches, "insertion" restores them.

    Returns:
        (B, len(FRACTIONS) - 2), for all fractions except 0 and 1, at which the order makes no difference.
    """
    pixel_ranks = F.interpolate(ranks[:, None].float(), inputs.shape[-2:], mode="nearest")
    first, rest = (filled, inputs) if kind == "deletion" else (inputs, filled)
    counts = [round(fraction * ranks[0].numel()) for fraction in FRACTIONS[1:-1]]
    values = [target_probability(model, torch.where(pixel_ranks < count, first, rest), targets) for count in counts]
    return torch.stack(values, dim=1)


@torch.inference_mode()
def remove_each_patch(model, image, grid):
    """The probabilities (grid * grid, C) of one normalized image (1, 3, H, W) after each single patch is removed.

    A removed patch has the mean color.
    """
    is_removed = torch.eye(grid * grid, device=image.device).view(-1, 1, grid, grid)
    is_removed = F.interpolate(is_removed, image.shape[-2:], mode="nearest").bool()
    removed = torch.where(is_removed, fill_images(image, "mean"), image)
    return torch.cat([model(part).softmax(dim=1) for part in removed.split(250)])


def measure_removal(model, split, batch_size=125, seed=0, progress=iter):
    """The deletion and insertion curves of every method and baseline for the N images of a split.

    Returns:
        {(method, fill, kind): (N, len(FRACTIONS))}, the probability of the predicted class.
    """
    grid = model.grid_size
    generator = torch.Generator().manual_seed(seed)
    curves = {}
    for start in progress(range(0, len(split), batch_size)):
        inputs = normalize(split.images[start : start + batch_size], split.mean, split.std)
        with torch.inference_mode():
            targets = model(inputs).argmax(dim=1)
        maps = relevance_maps(model, inputs, targets) | baseline_maps(inputs, grid, generator)
        ranks = {method: patch_ranks(relevance, generator) for method, relevance in maps.items()}
        whole = target_probability(model, inputs, targets)[:, None]
        for fill in FILLS:
            filled = fill_images(inputs, fill)
            empty = target_probability(model, filled, targets)[:, None]
            for method in maps:
                for kind in CURVES:
                    between = removal_curve(model, inputs, targets, ranks[method], filled, kind)
                    ends = (whole, empty) if kind == "deletion" else (empty, whole)
                    curve = torch.cat([ends[0], between, ends[1]], dim=1)
                    curves.setdefault((method, fill, kind), []).append(curve.cpu().numpy())
    return {key: np.concatenate(parts) for key, parts in curves.items()}


def areas(curves):
    """The area under each image's curve, (N,) in [0, 1]. Lower is better for deletion, higher for insertion."""
    return {key: np.trapezoid(values, FRACTIONS, axis=1) for key, values in curves.items()}


def bootstrap_interval(values, seed=0, resamples=2000, level=0.95):
    """The percentile bootstrap interval (low, high) of the mean of `values`, (N,)."""
    random = np.random.RandomState(seed)
    means = values[random.randint(0, len(values), (resamples, len(values)))].mean(axis=1)
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist())


def summarize(curves):
    """The rows of faithfulness.csv: the mean area of each method, fill and kind, with its 95 % bootstrap interval."""
    rows = []
    for (method, fill, kind), values in areas(curves).items():
        low, high = bootstrap_interval(values)
        rows.append(
            {"method": method, "fill": fill, "kind": kind, "area": values.mean().item(), "low": low, "high": high}
        )
    return rows


def measure_randomization(model, config, split, seed=0):
    """How similar each method's maps remain while the network's parts are replaced, one by one, with untrained ones.

    Args:
        config: the network's configuration, for `build_model`.

    Returns:
        {method: [correlation, ...]}, the mean Spearman rank correlation with the maps of the trained network: first 1,
        then one value after each of the network's `parts_from_head_to_input` is replaced.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = build_model(config).state_dict()
    inputs = normalize(split.images, split.mean, split.std)
    with torch.inference_mode():
        targets = model(inputs).argmax(dim=1)
    original = relevance_maps(model, inputs, targets)
    randomized = copy.deepcopy(model)
    weights = randomized.state_dict()
    correlations = {method: [1.0] for method in original}
    for _, prefixes in model.parts_from_head_to_input():
        for name, value in untrained.items():
            if name.startswith(prefixes):
                weights[name].copy_(value)
        for method, relevance in relevance_maps(randomized, inputs, targets).items():
            correlations[method].append(rank_correlation(original[method], relevance).mean().item())
    return correlations


def rank_correlation(one, other):
    """Spearman's rank correlation of two maps (B, h, w) for each image, (B,); 0 if a map is constant."""
    one, other = _ranks(one.flatten(1)), _ranks(other.flatten(1))
    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1)


def _ranks(values):
    """The ranks of values (B, P); ties get their mean rank."""
    lower = (values[:, None, :] < values[:, :, None]).double().sum(dim=2)
    equal = (values[:, None, :] == values[:, :, None]).double().sum(dim=2)
    return lower + equal / 2
