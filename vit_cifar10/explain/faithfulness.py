"""How far explanations can be trusted, measured on the network itself.

    methods = measured_methods(model)
    measured = measure_batch(model, untrained, methods, inputs, seed=0)   # a dict of tensors with one row per image
    area_rows(measured, methods), method_rows(measured, methods)          # the rows of the two tables

Deletion and insertion ask whether the prediction depends on the patches that a map marks as relevant. Deletion removes
them, most relevant first: the probability of the predicted class should fall early. Insertion restores them on an empty
image: the probability should rise early (Petsiuk et al., 2018, https://arxiv.org/abs/1806.07421). Their difference is
the symmetric relevance gain (SRG), which depends less on how removed patches are filled (Blücher et al., 2024,
https://arxiv.org/abs/2401.06654): insertion removes the same patches as deletion, but the least relevant first.

Class sensitivity asks whether the map of a class is about this class. Patches are restored in the order of the map of
the runner-up, the second most probable class, and in the order of the map of the predicted class. The first order
should raise the probability of the runner-up more.

Randomization asks whether a map depends on what the network has learned. The weights are replaced with random ones,
from the head back to the embedding, and the map should change (Adebayo et al., 2018, https://arxiv.org/abs/1810.03292).

Three baselines, which do not depend on the network, show what a map must beat: random order, the image's edges, and the
distance from its center. Differences are taken image by image, because images differ more than methods do.
"""

import copy
import functools
import time

import numpy as np
import torch
from torch.nn import functional as F

from vit_cifar10.explain.maps import grad_cam
from vit_cifar10.explain.methods import Method, masks_method, methods_for
from vit_cifar10.explain.removal import BASELINES, CURVES, FILLS, FRACTIONS, RemovalTest, baseline_maps, patch_ranks
from vit_cifar10.utils.device import synchronize

PROTOCOL = 1  # raised whenever something is measured in another way, so that old measurements are not continued
DRAWS, T_QUANTILE = 3, 4.303  # draws of random weights, and Student's t for a 95 % interval from as many values
LEAST_DROP = 0.1  # normalized areas leave out images whose probability falls by less than this without any patch
SRG = "SRG"
AREAS = (*CURVES, SRG)  # the kinds of rows of each map and fill
REFERENCES = ("gradient rollout", "Grad-CAM")  # the first one that is measured is what other methods are compared to


def measured_methods(model, samples=None):
    """The methods to measure, {name: Method}. With `samples`, `masks` with this number of masks is one of them.

    Most values of Grad-CAM's map are 0, and the order of these patches is random. The map before the ReLU is therefore
    measured too.
    """
    methods = {method.name: method for method in methods_for(model).values() if not method.is_slow}
    methods["Grad-CAM, no ReLU"] = Method("Grad-CAM, no ReLU", grad_cam, is_signed=True, options={"relu": False})
    if samples:
        methods["masks"] = masks_method(samples)
    return methods


def measured_maps(methods):
    """The names of the maps whose curves are measured: methods and baselines."""
    return [*methods, *BASELINES]


def class_methods(methods):
    """The names of the methods whose maps depend on the class."""
    return [name for name, method in methods.items() if not method.is_class_blind]


def quick_methods(methods):
    """The names of the methods that are fast enough for randomization: all except `masks`."""
    return [name for name in methods if name != "masks"]


def reference_of(methods):
    """The name of the method that the others are compared to."""
    return next(name for name in REFERENCES if name in methods)


def row_shapes(model, methods):
    """The shapes of one image's rows in the result of `measure_batch`: {name: shape}."""
    stages = 1 + len(model.parts_from_head_to_input())
    return {
        "curves": (len(measured_maps(methods)), len(FILLS), len(CURVES), len(FRACTIONS)),
        "runner_up": (len(class_methods(methods)), 2, len(FRACTIONS)),
        "randomized": (DRAWS, len(quick_methods(methods)), stages),
        "agreement": (len(methods) if "masks" in methods else 0,),
        "seconds": (len(methods),),
    }


# Measuring


def measure_batch(model, untrained, methods, inputs, seed=0, randomize=True):
    """Everything that is measured on a batch of images.

    Args:
        untrained: a function of a seed that returns the state dict of an untrained network.
        methods: {name: Method}, from `measured_methods`.
        inputs: normalized images (B, 3, H, W).
        seed: seed of random orders, ties and noise.
        randomize: whether to measure randomization, the most expensive part.

    Returns:
        A dict of float32 tensors on the CPU with one row per image; see `row_shapes`:
        curves, from `measure_removal`, of methods and baselines; runner_up, from `measure_runner_up`; randomized, from
        `measure_randomization`, without rows unless `randomize`; agreement, the rank correlation of each method's map
        with the map of `masks`, if that is measured; seconds, the time to explain one class of one image.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        logits = model(inputs)
        classes = logits.topk(min(2, logits.shape[1]), dim=1).indices  # the prediction and the runner-up
    maps, seconds = explain_classes(model, methods, inputs, classes)
    of_predicted = {name: both[:, 0] for name, both in maps.items()}
    with_baselines = of_predicted | baseline_maps(inputs, model.grid_size, generator)
    by_class = {name: maps[name] for name in class_methods(methods)}
    quick = {name: methods[name] for name in quick_methods(methods)}
    agreement = torch.zeros(len(inputs), 0)
    if "masks" in methods:
        agreement = torch.stack(
            [rank_correlation(map_, of_predicted["masks"]) for map_ in of_predicted.values()], dim=1
        )
    measured = {
        "curves": measure_removal(model, inputs, classes[:, 0], with_baselines, generator),
        "runner_up": measure_runner_up(model, inputs, classes[:, -1], by_class, generator),
        "randomized": measure_randomization(model, untrained, quick, inputs if randomize else inputs[:0]),
        "agreement": agreement,
        "seconds": seconds.expand(len(inputs), -1),
    }
    return {name: values.float().cpu() for name, values in measured.items()}


def explain_classes(model, methods, inputs, classes):
    """The maps of K classes (B, K) of each image, and the time each method needs.

    Returns:
        {name: (B, K, grid, grid)}, interpolated to the grid if a method has a coarser one; and the seconds to explain
        one class of one image, (methods,).
    """
    maps, seconds = {}, []
    for name, method in methods.items():
        synchronize(inputs.device)
        start = time.perf_counter()
        relevance = method.for_classes(model, inputs, classes)
        synchronize(inputs.device)
        computed = 1 if method.is_class_blind or method.explains_all_classes else classes.shape[1]
        seconds.append((time.perf_counter() - start) / (len(inputs) * computed))
        if relevance.shape[-1] != model.grid_size:
            relevance = F.interpolate(relevance, (model.grid_size, model.grid_size), mode="bilinear")
        maps[name] = relevance
    return maps, torch.tensor(seconds)


def measure_removal(model, inputs, targets, maps, generator):
    """The deletion and insertion curves of maps {name: (B, grid, grid)}, with every fill.

    Returns:
        (B, maps, fills, deletion and insertion, fractions), the probability of the classes `targets` (B,).
    """
    test = RemovalTest(model, inputs, targets, generator)
    curves = []
    for relevance in maps.values():
        ranks = patch_ranks(relevance, copy_of(generator))  # one map's ties do not depend on the other maps
        by_fill = [torch.stack([test.curve(ranks, fill, kind) for kind in CURVES], dim=1) for fill in FILLS]
        curves.append(torch.stack(by_fill, dim=1))
    return torch.stack(curves, dim=1)


def copy_of(generator):
    """A generator in the same state."""
    return torch.Generator().set_state(generator.get_state())


def measure_runner_up(model, inputs, runner_up, maps, generator):
    """The insertion curves of the runner-up's probability, by its own map and by the predicted class's map.

    Args:
        runner_up: int64 (B,), the second most probable classes.
        maps: {name: (B, 2, grid, grid)}, of the predicted class and of the runner-up.

    Returns:
        (B, maps, 2, fractions). Removed patches have the mean color.
    """
    test = RemovalTest(model, inputs, runner_up, generator)
    curves = []
    for relevance in maps.values():
        orders = [patch_ranks(relevance[:, place], copy_of(generator)) for place in (-1, 0)]
        curves.append(torch.stack([test.curve(ranks, "mean", "insertion") for ranks in orders], dim=1))
    return torch.stack(curves, dim=1)


def measure_randomization(model, untrained, methods, inputs):
    """How similar maps remain while the network's parts are replaced, one by one, with untrained ones.

    Returns:
        (B, DRAWS, methods, 1 + parts), Spearman's rank correlation of each image's map with the trained network's map:
        first 1, then one value after each of the network's `parts_from_head_to_input` is replaced.
    """
    parts = model.parts_from_head_to_input()
    if not len(inputs):
        return torch.zeros(0, DRAWS, len(methods), 1 + len(parts))
    with torch.inference_mode():
        targets = model(inputs).argmax(dim=1)
    original = [method.explain(model, inputs, targets) for method in methods.values()]
    draws = []
    for seed in range(DRAWS):
        randomized, stages = copy.deepcopy(model), [torch.ones(len(inputs), len(methods))]
        weights, new = randomized.state_dict(), untrained(seed)
        for _, prefixes in parts:
            for name, value in new.items():
                if name.startswith(prefixes):
                    weights[name].copy_(value)
            changed = [method.explain(randomized, inputs, targets) for method in methods.values()]
            stages.append(torch.stack(list(map(rank_correlation, original, changed)), dim=1).cpu())
        draws.append(torch.stack(stages, dim=2))
    return torch.stack(draws, dim=1)


def rank_correlation(one, other):
    """Spearman's rank correlation of two maps (B, h, w) for each image, (B,); 0 if a map is constant."""
    one, other = (_ranks(maps.flatten(1).cpu().contiguous()) for maps in (one, other))  # float64 is not on every device
    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1)


def _ranks(values):
    """The ranks of values (B, P), float64; ties get their mean rank."""
    in_order = values.sort(dim=1).values
    return (torch.searchsorted(in_order, values) + torch.searchsorted(in_order, values, right=True)).double() / 2


# Tables


def areas(curves):
    """The area under each curve (..., fractions), in [0, 1]. Lower is better for deletion, higher for insertion."""
    return np.trapezoid(curves, FRACTIONS, axis=-1)


def with_srg(values):
    """Areas (..., deletion and insertion) with the symmetric relevance gain as a third one."""
    return np.concatenate([values, np.diff(values, axis=-1)], axis=-1)


def normalize_curves(curves):
    """Curves (N, maps, fills, kinds, fractions), scaled so that each image's own ends are 0 and 1, and clipped to this
    range.

    Images whose probability falls by less than `LEAST_DROP` when all patches are removed become NaN.
    """
    whole, empty = curves[:, :1, :, :1, :1], curves[:, :1, :, :1, -1:]  # all curves have the same ends
    drop = np.where(whole - empty < LEAST_DROP, np.nan, whole - empty)
    return ((curves - empty) / drop).clip(0, 1)


def mean_curves(measured, methods):
    """The mean curve of each map, fill and kind with its 95 % bootstrap interval over images.

    Returns:
        {(name, fill, kind): (mean, low, high), an array (3, fractions)}.
    """
    curves = measured["curves"].numpy()
    return {
        (name, fill, kind): np.stack([of_images.mean(axis=0), *bootstrap_interval(of_images)])
        for at, name in enumerate(measured_maps(methods))
        for fill_at, fill in enumerate(FILLS)
        for kind_at, kind in enumerate(CURVES)
        for of_images in [curves[:, at, fill_at, kind_at]]
    }


def mean_correlations(measured, methods):
    """The mean rank correlation (1 + parts,) of each method while parts are randomized: {name: array}."""
    return dict(zip(quick_methods(methods), measured["randomized"].mean(dim=(0, 1)).numpy(), strict=True))


def area_rows(measured, methods):
    """One row for each map, fill and kind of area: deletion, insertion, and SRG, which is insertion minus deletion.

    Gains are differences of areas, image by image: to the method `reference_of(methods)`, and to the best baseline of
    this fill and kind. Positive gains are better for all kinds.

    Returns:
        A list of dicts: `area`, `normalized`, `gain` and `gain_over_baseline`, each with its 95 % bootstrap interval as
        `..._low` and `..._high`; see `measured_maps` for the names in `method`.
    """
    curves, names = measured["curves"].numpy(), measured_maps(methods)
    raw, scaled = (with_srg(areas(each)) for each in (curves, normalize_curves(curves)))  # (N, maps, fills, kinds)
    reference = names.index(reference_of(methods))
    rows = []
    for place, name in enumerate(names):
        for fill_place, fill in enumerate(FILLS):
            for kind_place, kind in enumerate(AREAS):
                of_all, sign = raw[:, :, fill_place, kind_place], -1 if kind == "deletion" else 1
                baseline = max(range(len(methods), len(names)), key=lambda at: sign * of_all[:, at].mean())
                values = {
                    "area": of_all[:, place],
                    "normalized": scaled[:, place, fill_place, kind_place],
                    "gain": sign * (of_all[:, place] - of_all[:, reference]),
                    "gain_over_baseline": sign * (of_all[:, place] - of_all[:, baseline]),
                }
                row = {"method": name, "fill": fill, "kind": kind}
                for quantity, of_images in values.items():
                    row |= interval_columns(quantity, of_images)
                counted = int((~np.isnan(values["normalized"])).sum())
                row |= {"reference": names[reference], "best_baseline": names[baseline]}
                rows.append(row | {"images": len(raw), "normalized_images": counted})
    return rows


def method_rows(measured, methods):
    """One row for each method: time, class sensitivity, randomization, and agreement with `masks`.

    Returns:
        A list of dicts: `milliseconds` for one class of an image; `class_sensitivity`, the difference of the areas from
        `measure_runner_up`; `randomized`, the rank correlation after all weights are random; and `agreement` with
        `masks`. The last three have 95 % intervals as `..._low` and `..._high`, over images or, for `randomized`, over
        draws. None where a quantity was not measured.
    """
    by_class = np.diff(areas(measured["runner_up"].numpy())[:, :, ::-1], axis=2)[:, :, 0]
    randomized = measured["randomized"].numpy()[..., -1].mean(axis=0)  # (draws, quick_methods)
    sensitive, quick = class_methods(methods), quick_methods(methods)
    rows = []
    for place, name in enumerate(methods):
        row = {"method": name, "milliseconds": 1000 * measured["seconds"][:, place].median().item()}
        row |= interval_columns("class_sensitivity", by_class[:, sensitive.index(name)] if name in sensitive else None)
        row |= draws_columns("randomized", randomized[:, quick.index(name)] if name in quick else None)
        has_agreement = measured["agreement"].shape[1] and name != "masks"
        row |= interval_columns("agreement", measured["agreement"][:, place].numpy() if has_agreement else None)
        rows.append(row | {"images": len(measured["curves"]), "randomized_images": len(measured["randomized"])})
    return rows


def interval_columns(name, values):
    """The mean of values (N,), without NaN, and its interval, as columns of a row. None if there are no values."""
    if values is not None:
        values = values[~np.isnan(values)]
    if values is None or not len(values):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    low, high = bootstrap_interval(values)
    return {name: values.mean().item(), f"{name}_low": low, f"{name}_high": high}


def draws_columns(name, values):
    """The same for `DRAWS` correlations, with an interval from Student's t distribution."""
    if values is None:
        return interval_columns(name, None)
    mean, half = values.mean().item(), T_QUANTILE * values.std(ddof=1).item() / DRAWS**0.5
    return {name: mean, f"{name}_low": max(-1.0, mean - half), f"{name}_high": min(1.0, mean + half)}


def bootstrap_interval(values, level=0.95):
    """The percentile bootstrap interval (low, high) of the mean of `values` over the images, (N, ...)."""
    means = resample_counts(len(values)) @ values / len(values)
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0).tolist())


@functools.lru_cache(maxsize=4)
def resample_counts(size, resamples=2000, seed=0):
    """How often each of `size` values is drawn in each resample: (resamples, size). It is the same for all columns."""
    random = np.random.RandomState(seed)
    return random.multinomial(size, np.full(size, 1 / size), resamples).astype(np.float32)
