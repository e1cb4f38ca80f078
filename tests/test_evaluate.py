import numpy as np
import pytest
import torch
from sklearn import metrics

from dataset import Split
from evaluate import class_scores, confusion_matrix, predict, scores
from model import SimpleCNN


@pytest.fixture
def measured():
    labels = torch.randint(0, 7, (500,))
    labels[labels == 6] = 5  # a class without images
    logits = torch.randn(500, 7) + 2 * torch.nn.functional.one_hot(labels, 7)
    logits[:, 3] -= 100  # a class never predicted
    return logits, labels


def test_scores_are_scikit_learns(measured):
    logits, labels = measured
    ours = scores(logits, labels)
    probabilities = logits.double().softmax(1).numpy()
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(labels, logits.argmax(1)))
    assert ours["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(7)))
    expected = -np.log(probabilities[np.arange(500), labels]).mean()
    assert ours["loss"] == pytest.approx(expected, rel=1e-5)


def test_confusion_matrix_and_class_scores_are_scikit_learns(measured):
    logits, labels = measured
    matrix = confusion_matrix(logits, labels)
    predicted = logits.argmax(1)
    assert (matrix.numpy() == metrics.confusion_matrix(labels, predicted, labels=range(7))).all()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(7), zero_division=0
    )
    ours = class_scores(matrix)
    for name, theirs in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose(ours[name].numpy(), theirs)


def test_predict_covers_every_image_in_order_and_leaves_the_mode():
    images = torch.randint(0, 256, (25, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.zeros(25, dtype=torch.int64), (), torch.full((3,), 0.5), torch.full((3,), 0.25))
    model = SimpleCNN().train()
    logits = predict(model, split, batch_size=10)
    assert model.training
    model.eval()
    one_by_one = torch.cat([model((image[None] / 255 - 0.5) / 0.25) for image in images])
    torch.testing.assert_close(logits, one_by_one, atol=1e-5, rtol=1e-4)
