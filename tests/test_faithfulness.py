"""Removal and randomization on networks with a known answer; every number against plain loops or a library."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from scipy import ndimage, stats
from torch import nn

from model import build_model
from vit_cifar10.data.dataset import Split, normalize
from vit_cifar10.explain import faithfulness, removal
from vit_cifar10.explain.methods import Method
from vit_cifar10.explain.removal import BASELINES, FILLS, FRACTIONS, RemovalTest


def random_split(count=12):
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return Split(images, torch.zeros(count, dtype=torch.int64), (), torch.full((3,), 0.5), torch.full((3,), 0.25))


def random_model(config):
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


class TwoPatches(nn.Module):
    """Two classes, each with the mean brightness of one patch of a 4 x 4 grid as logit: the second and the fourth."""

    grid_size = 4

    def parts_from_head_to_input(self):
        return [("everything", ("",))]

    def forward(self, images):
        return 20 * torch.stack([images[:, :, :8, 8:16].mean((1, 2, 3)), images[:, :, :8, 24:].mean((1, 2, 3))], dim=1)


def mark(place, count=2):
    """Maps (count, 4, 4) that are 1 at one patch, and 0 elsewhere."""
    return nn.functional.one_hot(torch.full((count,), place), 16).view(-1, 4, 4).float()


def two_bright_patches():
    """Images on which TwoPatches predicts class 0, with class 1 as the runner-up."""
    inputs = torch.zeros(2, 3, 32, 32)
    inputs[:, :, :8, 8:16], inputs[:, :, :8, 24:] = 1.0, 0.9
    return inputs


def test_removing_by_rank_finds_the_decisive_patch():
    inputs, generator = two_bright_patches(), torch.Generator().manual_seed(0)
    test = RemovalTest(TwoPatches(), inputs, torch.zeros(2, dtype=torch.int64), generator)
    best, worst = (faithfulness.patch_ranks(sign * mark(1), generator) for sign in (1, -1))
    assert (best[0, 0, 1], worst[0, 0, 1]) == (0, 15)
    both, only_other = torch.tensor([2.0, 0]).softmax(0)[0].item(), torch.tensor([0, 18.0]).softmax(0)[0].item()
    deletion = test.curve(best, "mean", "deletion")[0]
    assert deletion[:2].tolist() == pytest.approx([both, only_other])
    late = test.curve(worst, "mean", "deletion")[0, -2:].tolist()  # the patch is removed last
    assert late[0] >= both - 1e-6
    assert late[1] == pytest.approx(0.5)
    insertion = test.curve(best, "mean", "insertion")[0]
    assert insertion[:2].tolist() == pytest.approx([0.5, 1.0], abs=1e-3)
    assert insertion[-1] == pytest.approx(both)


def test_class_sensitivity_rewards_maps_of_the_right_class():
    inputs = two_bright_patches()
    runner_up = torch.ones(2, dtype=torch.int64)
    maps = {"right": torch.stack([mark(1), mark(3)], 1), "blind": torch.stack([mark(1), mark(1)], 1)}
    curves = faithfulness.measure_runner_up(TwoPatches(), inputs, runner_up, maps, torch.Generator().manual_seed(0))
    own, other = faithfulness.areas(curves.numpy())[0, 0]
    assert own > 0.5 > other
    assert abs(np.diff(faithfulness.areas(curves.numpy())[:, 1])).max() < 0.2


@pytest.mark.filterwarnings("ignore:__array_wrap__")
@pytest.mark.parametrize(("size", "fraction"), [(32, 0.1), (32, 0.5), (32, 0.95), (96, 0.9)])
def test_road_matches_the_grad_cam_package(size, fraction):
    images = torch.randn(2, 3, size, size).cumsum(2) / 3
    removed = (torch.arange(64) < 64 * fraction).view(1, 1, 8, 8).expand(2, -1, -1, -1)  # one large hole is hardest
    removed = removed.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    ours = removal.impute(images, removed)
    for image in range(2):
        expected = NoisyLinearImputer(noise=0)(images[image], (~removed[image, 0]).float())
        torch.testing.assert_close(ours[image], expected, atol=removal.ROAD_NOISE / 5, rtol=0)
    assert not removal.impute(images, torch.ones_like(removed)).any()


def test_fills_and_baselines_match_scipy():
    inputs = torch.randn(3, 3, 32, 32)
    fills = removal.make_fills(inputs, torch.Generator().manual_seed(0))
    everywhere = torch.ones(3, 1, 32, 32, dtype=torch.bool)
    assert not fills["mean"](everywhere).any()
    blurred = ndimage.gaussian_filter(inputs.numpy(), sigma=4, radius=6, axes=(2, 3), mode="mirror")
    np.testing.assert_allclose(fills["blur"](everywhere).numpy(), blurred, atol=1e-5)
    assert fills["ROAD"](everywhere).std().item() == pytest.approx(0.01, rel=0.1)
    maps = removal.baseline_maps(inputs, 4, torch.Generator())
    gray = inputs.mean(1).numpy()
    edges = np.stack([np.hypot(*(ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1))) for image in gray])
    np.testing.assert_allclose(maps["edges"], edges.reshape(3, 4, 8, 4, 8).mean(axis=(2, 4)), atol=1e-4)
    assert maps["center"][0].argmax() in (5, 6, 9, 10)


def test_the_tables_report_what_the_maps_deserve():
    """On a network with a known answer, with a perfect method, one that ignores the class, and a reversed one."""

    def explain(sign, is_blind):
        def map_of_classes(_model, images, targets):
            first, second = mark(1, len(images)), mark(3, len(images))
            return sign * (first if is_blind else torch.where(targets[:, None, None] == 0, first, second))

        return map_of_classes

    perfect, blind, reversed_ = explain(1, False), explain(1, True), explain(-1, False)
    methods = {
        "gradient rollout": Method("gradient rollout", perfect),
        "blind": Method("blind", blind, is_class_blind=True),
        "reversed": Method("reversed", reversed_),
        "masks": Method("masks", perfect),
    }
    inputs = two_bright_patches()
    measured = faithfulness.measure_batch(TwoPatches(), None, methods, inputs, randomize=False)
    measured["randomized"] = torch.tensor([0.3, 0.2, 0.1]).view(1, 1, 3, 1).repeat(2, 3, 1, 1) * torch.tensor(
        [3.0, 1.0]
    )
    rows = {row["method"]: row for row in faithfulness.method_rows(measured, methods)}
    assert rows["gradient rollout"]["class_sensitivity"] > 0.3
    assert rows["reversed"]["class_sensitivity"] < -0.3
    assert rows["blind"]["class_sensitivity"] is None
    assert [rows[name]["randomized"] for name in ("gradient rollout", "reversed")] == pytest.approx([0.3, 0.1])
    assert rows["masks"]["randomized"] is rows["masks"]["agreement"] is None
    assert rows["gradient rollout"]["agreement"] == pytest.approx(1)
    assert rows["reversed"]["agreement"] == pytest.approx(-1)
    areas = {(row["method"], row["fill"], row["kind"]): row for row in faithfulness.area_rows(measured, methods)}
    assert areas["reversed", "mean", "deletion"]["gain_high"] < 0
    over_baseline = [areas[name, "mean", "deletion"]["gain_over_baseline"] for name in ("gradient rollout", "reversed")]
    assert over_baseline[0] >= 0 > over_baseline[1]


def test_curves_are_normalized_by_the_ends_of_each_image():
    curve = np.array([0.9, 0.95, 0.5, 0.3, 0.05, 0.1])
    curves = np.stack([curve, 0.5 + 0.1 * curve])[:, None, None, None]  # the second one falls by 0.08 only
    curves = np.concatenate([curves, curves[..., ::-1]], axis=3)  # deletion and insertion
    scaled = faithfulness.normalize_curves(curves)
    np.testing.assert_allclose(scaled[0, 0, 0, 0], [1, 1, 0.5, 0.25, 0, 0])
    np.testing.assert_allclose(scaled[0, 0, 0, 1], [0, 0, 0.25, 0.5, 1, 1])
    assert np.isnan(scaled[1]).all()


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
    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2} if kind == "vit" else {"width": 8}
    config = {"model": kind, **sizes}
    model = random_model(config)
    split = random_split(6)
    inputs = normalize(split.images, split.mean, split.std)
    methods = faithfulness.measured_methods(model, samples=20)
    measured = faithfulness.measure_batch(model, None, methods, inputs, seed=3, randomize=False)
    assert {name: tuple(values.shape[1:]) for name, values in measured.items()} == faithfulness.row_shapes(
        model, methods
    )
    rows = {(row["method"], row["fill"], row["kind"]): row for row in faithfulness.area_rows(measured, methods)}
    place = faithfulness.measured_maps(methods).index("edges")
    with torch.no_grad():
        targets = model(inputs).argmax(1)
    side = {"vit": 8, "cnn": 4}[kind]  # pixels of a patch, or of a cell
    generator = torch.Generator().manual_seed(3)
    order = removal.baseline_maps(inputs, 32 // side, generator)["edges"].flatten(1).argsort(1, descending=True)
    fills = removal.make_fills(inputs, generator)
    for fill, fill_name in enumerate(FILLS):
        expected = {"deletion": np.zeros((6, 6)), "insertion": np.zeros((6, 6))}
        for at, fraction in enumerate(FRACTIONS):
            chosen = torch.zeros(6, 1, 32, 32, dtype=torch.bool)
            for image in range(6):
                for patch in order[image][: round(fraction * order.shape[1])].tolist():
                    row, column = (patch // (32 // side) * side, patch % (32 // side) * side)
                    chosen[image, 0, row : row + side, column : column + side] = True
            for name, removed in (("deletion", chosen), ("insertion", ~chosen)):
                with torch.no_grad():
                    answers = model(fills[fill_name](removed)).softmax(1)
                expected[name][:, at] = answers[torch.arange(6), targets].numpy()
        for kind_at, (name, values) in enumerate(expected.items()):
            np.testing.assert_allclose(measured["curves"][:, place, fill, kind_at], values, atol=1e-5)
            assert rows["edges", fill_name, name]["area"] == pytest.approx(trapezoid(values).mean(), abs=1e-5)
        gain = trapezoid(expected["insertion"] - expected["deletion"]).mean()
        assert rows["edges", fill_name, "SRG"]["area"] == pytest.approx(gain, abs=1e-5)


def trapezoid(curves):
    return sum(
        (curves[:, at] + curves[:, at + 1]) / 2 * (FRACTIONS[at + 1] - FRACTIONS[at])
        for at in range(len(FRACTIONS) - 1)
    )


def test_gains_are_paired_and_positive_if_better():
    methods = dict.fromkeys(("gradient rollout", "other"))
    curves = np.random.RandomState(0).uniform(size=(50, 5, 3, 2, 6)).astype(np.float32)  # two methods, three baselines
    curves[..., 0, :] += np.linspace(1, 0, 6, dtype=np.float32)
    curves[:, 1] = curves[:, 0] + 0.1  # better for insertion, worse for deletion, in every image
    rows = faithfulness.area_rows({"curves": torch.from_numpy(curves)}, methods)
    for row in rows:
        if row["method"] == "other":
            gain = {"insertion": 0.1, "deletion": -0.1, "SRG": 0}[row["kind"]]
            assert [row[f"gain{end}"] for end in ("", "_low", "_high")] == pytest.approx([gain] * 3, abs=1e-5)
        best = min if row["kind"] == "deletion" else max
        baselines = [other for other in rows if other["method"] in BASELINES]
        of_column = [one for one in baselines if (one["fill"], one["kind"]) == (row["fill"], row["kind"])]
        assert row["best_baseline"] == best(of_column, key=lambda one: one["area"])["method"]
    flat = np.full((1, 5, 3, 2, 6), 0.5, dtype=np.float32)
    assert np.isnan(faithfulness.normalize_curves(flat)).all()
    scaled = faithfulness.normalize_curves(curves)
    assert (np.nanmin(scaled), np.nanmax(scaled)) == (0, 1)


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
    methods = faithfulness.measured_methods(model)
    split = random_split()
    inputs = normalize(split.images, split.mean, split.std)

    def untrained(seed):
        torch.manual_seed(seed)
        return build_model(config).state_dict()

    correlations = faithfulness.measure_randomization(model, untrained, methods, inputs)
    assert correlations.shape == (12, faithfulness.DRAWS, len(methods), 5)
    assert (correlations[..., 0] == 1).all()
    assert not torch.equal(correlations[:, 0], correlations[:, 1])
    attention = list(methods).index("attention")
    torch.testing.assert_close(
        correlations[:, :, attention, 1], torch.ones(12, 3).double()
    )  # it does not depend on the head
    assert correlations[..., -1].mean((0, 1)).abs().max() < 0.6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_interval_over_draws_matches_scipy():
    values = np.array([0.1, -0.2, 0.3])
    columns = faithfulness.draws_columns("x", values)
    expected = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert (columns["x_low"], columns["x_high"]) == pytest.approx(expected, rel=1e-3)
