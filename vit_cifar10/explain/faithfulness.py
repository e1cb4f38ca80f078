"""How far an explanation can be trusted, measured on the network itself.

Two questions. Does the prediction hang on the patches that a map calls relevant? They are removed, most relevant
first, and the probability of the predicted class should fall early (deletion); or they are put back alone, and it
should rise early (insertion; Petsiuk et al., 2018). And does a map hang on what the network has learned? Its weights
are replaced by random ones, from the head down, and the map should change (Adebayo et al., 2018).

Every method stands beside three maps that know nothing of the network: chance, the image's edges, and its centre.
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
FRACTIONS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the patches, dense where decisions turn
FILLS = ("mean", "blur")  # what takes a removed patch's place: the data set's mean, or the image itself, blurred
CURVES = ("deletion", "insertion")
CLASS_BLIND = ("attention", "rollout")


def relevance_maps(model, inputs, targets):
    """Each method's map of normalised images (B, 3, H, W) for classes (B,): name -> (B, grid, grid)."""
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
    """Maps that do not know the network: chance, mean strength of the edges in a patch, nearness to the centre."""
    grey = inputs.mean(dim=1, keepdim=True)
    sobel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]], device=inputs.device)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    strength = sum(F.conv2d(padded, kernel[None, None]).square() for kernel in (sobel, sobel.T)).sqrt()
    along = torch.linspace(-1, 1, grid, device=inputs.device)
    nearness = (-(along[:, None].square() + along.square()) / (2 * 0.5**2)).exp()
    return {
        "random": torch.rand(len(inputs), grid, grid, generator=generator).to(inputs.device),
        "edges": F.adaptive_avg_pool2d(strength, grid)[:, 0],
        "centre": nearness.expand(len(inputs), -1, -1),
    }


def patch_ranks(relevance, generator):
    """Place of every patch in the order of removal, 0 the most relevant: int64 (B, grid, grid); ties by chance."""
    flat = relevance.flatten(1)
    shuffle = torch.rand(flat.shape, generator=generator).argsort(dim=1).to(flat.device)
    order = flat.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    return shuffle.gather(1, order).argsort(dim=1).view_as(relevance)


def fill_images(inputs, fill):
    """What stands in for removed patches of normalised images: their mean, which is 0, or a blurred copy."""
    if fill == "mean":
        return torch.zeros_like(inputs)
    sigma = inputs.shape[-1] / 8
    return tvf.gaussian_blur(inputs, kernel_size=2 * math.ceil(1.5 * sigma) + 1, sigma=sigma)


@torch.inference_mode()
def target_probability(model, inputs, targets):
    """Probability of the classes (B,) of normalised images (B, 3, H, W): (B,)."""
    return model(inputs).softmax(dim=1).gather(1, targets[:, None])[:, 0]


def removal_curve(model, inputs, targets, ranks, filled, kind):
    """Probability of the target classes (B,) between a whole image and an empty one.

    Args:
        inputs: normalised images (B, 3, H, W).
        ranks: (B, grid, grid) from `patch_ranks`.
        filled: images (B, 3, H, W) whose pixels take the place of removed ones.
        kind: "deletion" or "insertion"; exactly k patches, the most relevant ones, are removed or put back.

    Returns:
        (B, len(FRACTIONS) - 2): for the fractions but 0 and 1, where every order gives the same.
    """
    pixel_ranks = F.interpolate(ranks[:, None].float(), inputs.shape[-2:], mode="nearest")
    first, rest = (filled, inputs) if kind == "deletion" else (inputs, filled)
    counts = [round(fraction * ranks[0].numel()) for fraction in FRACTIONS[1:-1]]
    values = [target_probability(model, torch.where(pixel_ranks < count, first, rest), targets) for count in counts]
    return torch.stack(values, dim=1)


@torch.inference_mode()
def remove_each_patch(model, image, grid):
    """Probabilities (grid * grid, C) of one normalised image (1, 3, H, W) with each patch, alone, made the mean."""
    is_removed = torch.eye(grid * grid, device=image.device).view(-1, 1, grid, grid)
    is_removed = F.interpolate(is_removed, image.shape[-2:], mode="nearest").bool()
    removed = torch.where(is_removed, fill_images(image, "mean"), image)
    return torch.cat([model(part).softmax(dim=1) for part in removed.split(250)])


def measure_removal(model, split, batch_size=125, seed=0, progress=iter):
    """Deletion and insertion curves of every method and baseline on the images of a split.

    Returns:
        {(method, fill, kind): (N, len(FRACTIONS)) array} of the probability of the predicted class.
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
    """Area under each image's curve, (N,) in [0, 1]: low is good for deletion, high for insertion."""
    return {key: np.trapezoid(values, FRACTIONS, axis=1) for key, values in curves.items()}


def bootstrap_interval(values, seed=0, resamples=2000, level=0.95):
    """Percentile bootstrap interval of the mean of `values`, (N,): (low, high)."""
    random = np.random.RandomState(seed)
    means = values[random.randint(0, len(values), (resamples, len(values)))].mean(axis=1)
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist())


def summarize(curves):
    """Rows for a table: the mean area of every method, fill and kind with its 95 % bootstrap interval."""
    rows = []
    for (method, fill, kind), values in areas(curves).items():
        low, high = bootstrap_interval(values)
        rows.append(
            {"method": method, "fill": fill, "kind": kind, "area": values.mean().item(), "low": low, "high": high}
        )
    return rows


def measure_randomization(model, config, split, seed=0):
    """How much each method's maps keep their order when the network's parts are replaced by untrained ones, in turn.

    Args:
        config: the network's, for `build_model`.

    Returns:
        {method: [correlation, ...]}: mean Spearman rank correlation with the maps of the trained network after each
        of the network's `parts_from_output`, and before them 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = build_model(config).state_dict()
    inputs = normalize(split.images, split.mean, split.std)
    with torch.inference_mode():
        targets = model(inputs).argmax(dim=1)
    original = relevance_maps(model, inputs, targets)
    changed = copy.deepcopy(model)
    weights = changed.state_dict()
    correlations = {method: [1.0] for method in original}
    for _, prefixes in model.parts_from_output():
        for name, value in untrained.items():
            if name.startswith(prefixes):
                weights[name].copy_(value)
        for method, relevance in relevance_maps(changed, inputs, targets).items():
            correlations[method].append(rank_correlation(original[method], relevance).mean().item())
    return correlations


def rank_correlation(one, other):
    """Spearman's rank correlation of maps (B, h, w), image by image: (B,); 0 where a map is the same everywhere."""
    one, other = _ranks(one.flatten(1)), _ranks(other.flatten(1))
    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1)


def _ranks(values):
    """Ranks (B, P), ties sharing their mean."""
    lower = (values[:, None, :] < values[:, :, None]).double().sum(dim=2)
    equal = (values[:, None, :] == values[:, :, None]).double().sum(dim=2)
    return lower + equal / 2
