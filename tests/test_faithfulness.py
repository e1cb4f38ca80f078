"""Removal and randomization on networks with a known answer; every number against plain loops or a library."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from model import build_model
from vit_cifar10.data.dataset import Split, normalize
from vit_cifar10.explain import faithfulness
from vit_cifar10.explain.faithfulness import BASELINES, FILLS, FRACTIONS


def random_split(count=12):
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return Split(images, torch.zeros(count, dtype=torch.int64), (), torch.full((3,), 0.5), torch.full((3,), 0.25))


def random_model(config):
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


class OnePatch(nn.Module):
    """Class 1 if the patch in row 2, column 3 of an 8 x 8 grid is bright, else class 0."""

    def forward(self, images):
        brightness = 20 * images[:, :, 8:12, 12:16].mean(dim=(1, 2, 3))
        return torch.stack([-brightness, brightness], dim=1)


def test_removing_by_rank_finds_the_decisive_patch():
    inputs = torch.full((2, 3, 32, 32), 0.5)
    targets = torch.tensor([1, 1])
    relevance = torch.zeros(2, 8, 8)
    relevance[0, 2, 3], relevance[1, 2, 3] = 1, -1  # the best map, and the worst
    ranks = faithfulness.patch_ranks(relevance, torch.Generator().manual_seed(0))
    assert (ranks[0, 2, 3], ranks[1, 2, 3]) == (0, 63)
    empty = torch.zeros_like(inputs)
    deletion = faithfulness.removal_curve(OnePatch(), inputs, targets, ranks, empty, "deletion")
    insertion = faithfulness.removal_curve(OnePatch(), inputs, targets, ranks, empty, "insertion")
    torch.testing.assert_close(deletion[0], torch.full((4,), 0.5))
    torch.testing.assert_close(insertion[0], torch.ones(4))
    torch.testing.assert_close(deletion[1], torch.ones(4))
    torch.testing.assert_close(insertion[1], torch.full((4,), 0.5))


def test_ranks_are_a_permutation_ordered_by_relevance_with_random_ties():
    relevance = torch.randint(0, 5, (50, 4, 4)).float()
    ranks = faithfulness.patch_ranks(relevance, torch.Generator().manual_seed(1))
    again = faithfulness.patch_ranks(relevance, torch.Generator().manual_seed(1))
    other = faithfulness.patch_ranks(relevance, torch.Generator().manual_seed(2))
    assert torch.equal(ranks, again)
    assert not torch.equal(ranks, other)
    for one, values in zip(ranks.flatten(1), relevance.flatten(1), strict=True):
        assert one.sort().values.tolist() == list(range(16))
        in_order = values[one.argsort()]
        assert torch.equal(in_order, values.sort(descending=True).values)
    flat = faithfulness.patch_ranks(torch.zeros(4000, 2, 2), torch.Generator().manual_seed(3))
    assert flat.float().mean(0).flatten().tolist() == pytest.approx([1.5] * 4, abs=0.1)


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_curves_and_areas_match_plain_loops(kind):
    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2} if kind == "vit" else {}
    model = random_model({"model": kind, **sizes})
    split = random_split()
    curves = faithfulness.measure_removal(model, split, batch_size=5)
    methods = {"vit": ("attention", "rollout", "gradient rollout", "Grad-CAM"), "cnn": ("Grad-CAM",)}[kind]
    assert {key[0] for key in curves} == {*methods, *BASELINES}
    inputs = normalize(split.images, split.mean, split.std)
    with torch.no_grad():
        probabilities = model(inputs).softmax(1)
    targets = probabilities.argmax(1)
    side = {"vit": 8, "cnn": 4}[kind]  # pixels of a patch, or of a cell
    for fill in FILLS:
        filled = faithfulness.fill_images(inputs, fill)
        relevance = faithfulness.baseline_maps(inputs, 32 // side, torch.Generator())["edges"]
        for image in range(len(split)):
            order = relevance[image].flatten().argsort(descending=True).tolist()
            expected = {"deletion": [], "insertion": []}
            for fraction in FRACTIONS:
                removed, restored = inputs[image].clone(), filled[image].clone()
                for patch in order[: round(fraction * len(order))]:
                    row, column = (patch // (32 // side) * side, patch % (32 // side) * side)
                    pixels = (slice(None), slice(row, row + side), slice(column, column + side))
                    removed[pixels] = filled[image][pixels]
                    restored[pixels] = inputs[image][pixels]
                with torch.no_grad():
                    both = model(torch.stack([removed, restored])).softmax(1)[:, targets[image]]
                expected["deletion"].append(both[0].item())
                expected["insertion"].append(both[1].item())
            for name, values in expected.items():
                np.testing.assert_allclose(curves["edges", fill, name][image], values, atol=1e-5)
                area = sum(
                    (a + b) / 2 * (y - x)
                    for a, b, x, y in zip(values, values[1:], FRACTIONS, FRACTIONS[1:], strict=False)
                )
                assert faithfulness.areas(curves)["edges", fill, name][image] == pytest.approx(area, abs=1e-5)


def test_bootstrap_interval_matches_scipy():
    values = np.random.RandomState(0).gamma(2.0, size=300)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=2000).confidence_interval
    assert faithfulness.bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_rank_correlation_matches_scipy():
    one, other = torch.randint(0, 6, (2, 5, 4, 4)).float()
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one.flatten(1), other.flatten(1), strict=True)]
    assert faithfulness.rank_correlation(one, other).tolist() == pytest.approx(expected)
    assert faithfulness.rank_correlation(one, torch.ones_like(one)).tolist() == [0.0] * 5


def test_randomization_reaches_every_weight_and_does_not_change_the_network():
    config = {"model": "vit", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = random_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in (config, {"model": "cnn"}):
        prefixes = [prefix for _, stage in build_model(kind).parts_from_head_to_input() for prefix in stage]
        assert all(name.startswith(tuple(prefixes)) for name in build_model(kind).state_dict())
    correlations = faithfulness.measure_randomization(model, config, random_split())
    assert all(len(values) == 5 and values[0] == 1 for values in correlations.values())
    assert correlations["attention"][1] == pytest.approx(1)  # attention does not depend on the head
    assert all(abs(values[-1]) < 0.6 for values in correlations.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
