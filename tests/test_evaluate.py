"""The metrics, compared with scikit-learn, SciPy and plain loops."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from model import SimpleCNN
from vit_cifar10.data.dataset import Split
from vit_cifar10.evaluation.metrics import (
    all_scores,
    calibration,
    mcnemar,
    paired_difference,
    predict,
    predict_views,
    wilson_interval,
)

pytestmark = pytest.mark.quick


@pytest.fixture
def predictions():
    """Logits and labels of 500 images: class 6 has no images and class 3 is never predicted."""
    labels = torch.randint(0, 7, (500,))
    labels[labels == 6] = 5
    logits = torch.randn(500, 7) + 2 * torch.nn.functional.one_hot(labels, 7)
    logits[:, 3] -= 100
    return logits, labels


def test_report_matches_scikit_learn(predictions):
    logits, labels = predictions
    ours = all_scores(logits, labels)
    probabilities = logits.double().softmax(1).numpy()
    predicted = logits.argmax(1)
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert ours["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(7)))
    assert ours["loss"] == pytest.approx(-np.log(probabilities[np.arange(500), labels]).mean(), rel=1e-5)
    assert ours["confusion_matrix"] == metrics.confusion_matrix(labels, predicted, labels=range(7)).tolist()
    theirs = metrics.classification_report(labels, predicted, labels=range(7), zero_division=0, output_dict=True)
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    for ours_name, name in names.items():
        expected = [theirs[str(label)][name] for label in range(7)]
        assert ours["by_class"][ours_name] == pytest.approx(expected)
    tested = labels.unique().tolist()  # the means leave out a class without images
    assert len(tested) == 6
    theirs = metrics.classification_report(labels, predicted, labels=tested, zero_division=0, output_dict=True)
    for mean in ("macro", "weighted"):
        for ours_name in ("precision", "recall", "f1"):
            assert ours[mean][ours_name] == pytest.approx(theirs[f"{mean} avg"][names[ours_name]])
    assert ours["images"] == 500


def test_calibration_matches_a_plain_loop(predictions):
    logits, labels = predictions
    ours = calibration(logits, labels)
    probabilities = logits.double().softmax(1).numpy()
    expected, images = 0.0, 0
    for bin_index in range(15):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels.tolist(), strict=True)
            if bin_index / 15 < row.max() <= (bin_index + 1) / 15
        ]
        images += len(inside)
        assert ours["images"][bin_index] == len(inside)
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            assert (ours["confidence"][bin_index], ours["accuracy"][bin_index]) == pytest.approx((confidence, accuracy))
            expected += abs(confidence - accuracy) * len(inside) / 500
        else:
            assert ours["confidence"][bin_index] is ours["accuracy"][bin_index] is None
    assert images == 500
    assert ours["error"] == pytest.approx(expected)
    assert 0.01 < expected < 0.5


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (7, 10), (9123, 10000)])
def test_wilson_interval_matches_scipy(correct, count):
    theirs = stats.binomtest(correct, count).proportion_ci(method="wilson")
    assert wilson_interval(correct / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@pytest.mark.parametrize("counts", [(3, 12), (12, 3), (7, 7), (0, 0), (0, 5), (400, 520)])
def test_mcnemar_matches_the_binomial_test_of_scipy(counts):
    same = [[True, True], [False, False]] * 9
    correct = torch.tensor([[True, False]] * counts[0] + [[False, True]] * counts[1] + same)
    only_one, only_other, p = mcnemar(*correct.T)
    assert (only_one, only_other) == counts
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("fractions", "count"), [((0.05, 0.18), 1000), ((0.02, 0.03), 300), ((0.3, 0.3), 60)])
def test_the_interval_of_a_difference_covers_the_true_difference_in_95_percent_of_the_cases(fractions, count):
    draws = np.random.default_rng(0).multinomial(count, (*fractions, 1 - sum(fractions)), size=5000)
    intervals = [paired_difference(one, other, count) for one, other, _ in draws.tolist()]
    differences = np.array([difference for difference, _ in intervals])
    assert differences.mean() == pytest.approx(fractions[0] - fractions[1], abs=0.003)
    is_covered = [low <= fractions[0] - fractions[1] <= high for _, (low, high) in intervals]
    assert 0.94 < np.mean(is_covered) < 0.965


def test_predict_returns_all_images_in_order_and_keeps_the_mode():
    images = torch.randint(0, 256, (25, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.zeros(25, dtype=torch.int64), (), torch.full((3,), 0.5), torch.full((3,), 0.25))
    model = SimpleCNN().train()
    logits = predict(model, split, batch_size=10)
    assert model.training
    model.eval()
    one_by_one = torch.cat([model((image[None] / 255 - 0.5) / 0.25) for image in images])
    torch.testing.assert_close(logits, one_by_one, atol=1e-5, rtol=1e-4)


def test_views_average_the_probabilities_of_moved_and_mirror_images():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.zeros(5, dtype=torch.int64), (), torch.full((3,), 0.5), torch.full((3,), 0.25))
    model = SimpleCNN().eval()
    views = predict_views(model, split)
    torch.testing.assert_close(views["logits"], predict(model, split))
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)], mode="reflect")
    expected = {"flip": 0, "six_views": 0}
    for place, flip_weight, weight in ((1, 1 / 2, 1 / 4), (0, 0, 1 / 8), (2, 0, 1 / 8)):
        moved = torch.from_numpy(padded[:, :, place : place + 32, place : place + 32])
        for view in (moved, moved.flip(3)):
            probabilities = model((view / 255 - 0.5) / 0.25).softmax(1)
            expected["flip"] += flip_weight * probabilities
            expected["six_views"] += weight * probabilities
    for name, probabilities in expected.items():
        torch.testing.assert_close(views[name].exp(), probabilities, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(views["flip"].exp(), views["logits"].softmax(1), atol=1e-4)
