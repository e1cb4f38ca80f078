"""How good it is: logits over a split, and the scores that follow from them.

logits = predict(model, test)                       # float (N, C), in the order of the images
scores(logits, test.labels)                         # {"loss": ..., "accuracy": ..., "top5": ...}
matrix = confusion_matrix(logits, test.labels)      # rows are true classes, columns predicted ones
class_scores(matrix)                                # precision, recall, F1 and number of images of each class
report(logits, test.labels)                         # all of it, and calibration, as plain numbers
mcnemar(one_is_right, other_is_right)               # how likely two networks differ as much by chance
paired_difference(only_one, only_other, images)     # by how much they differ, and its interval
"""

import dataclasses
import math

import torch
from torch.nn import functional as F

from vit_cifar10.data.dataset import batches, normalize
from vit_cifar10.utils.device import autocast, eval_mode


@torch.inference_mode()
def predict(model, split, batch_size=1000, precision="fp32", after_batch=lambda: None):
    """Logits, float32 (N, C), of every image of a split, on its device; the network is left in the mode it was in.

    `after_batch()` is called between batches, and may raise to give it up.
    """
    logits = []
    with eval_mode(model), autocast(split.images.device, precision):
        for images, _ in batches(split, batch_size):
            logits.append(model(normalize(images, split.mean, split.std)).float())
            after_batch()
    return torch.cat(logits)


def predict_with_flip(model, split, *arguments, **options):
    """`predict`, and the same as the mean of an image's and its mirror image's probabilities, as their logarithms."""
    logits = predict(model, split, *arguments, **options)
    mirrored = predict(model, dataclasses.replace(split, images=split.images.flip(3)), *arguments, **options)
    both = torch.stack([logits.log_softmax(dim=1), mirrored.log_softmax(dim=1)])
    return logits, both.logsumexp(dim=0) - math.log(2)


def scores(logits, labels):
    """Mean cross-entropy in nats, and the shares of images whose label is the first, or among the first five."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(dim=1) == labels).sum().item() / len(labels),
        "top5": ranked.any(dim=1).sum().item() / len(labels),
    }


def confusion_matrix(logits, labels):
    """Counts, int64 (C, C) on the CPU: images of class i that were taken for class j."""
    num_classes = logits.shape[1]
    pairs = labels * num_classes + logits.argmax(dim=1)
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).cpu()


def class_scores(matrix):
    """Precision, recall, F1 and support of each class, (C,) tensors; 0 where a class was never predicted or seen."""
    correct = matrix.diag().double()
    support, predicted = matrix.sum(dim=1), matrix.sum(dim=0)
    return {
        "precision": correct / predicted.clamp(min=1),
        "recall": correct / support.clamp(min=1),
        "f1": 2 * correct / (support + predicted).clamp(min=1),
        "support": support,
    }


def mean_scores(by_class):
    """Means of `class_scores` over the classes, which count alike ("macro") or as often as they occur ("weighted")."""
    support = by_class["support"].double()
    weights = {"macro": torch.ones_like(support), "weighted": support}
    return {
        kind: {name: ((by_class[name] * weight).sum() / weight.sum()).item() for name in ("precision", "recall", "f1")}
        for kind, weight in weights.items()
    }


def calibration(logits, labels, bins=15):
    """How far the confidence in the predicted class can be believed (Guo et al., 2017).

    Returns:
        `error`, the expected calibration error in [0, 1]: how far confidence and accuracy lie apart in a bin of like
        confidence, on the mean over all images; and for each bin of equal width `confidence` and `accuracy`, means
        that are None where the bin is empty, and `images`.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (0, 1/15], ..., as in the paper
    images = place.bincount(minlength=bins)
    sums = [place.bincount(values.double(), minlength=bins) for values in (confidence, predicted == labels)]
    mean_confidence, accuracy = (total / images.clamp(min=1) for total in sums)
    error = ((mean_confidence - accuracy).abs() * images).sum() / images.sum()
    is_empty = images == 0

    def known(values):
        return [None if empty else value for value, empty in zip(values.tolist(), is_empty.tolist(), strict=True)]

    return {
        "error": error.item(),
        "confidence": known(mean_confidence),
        "accuracy": known(accuracy),
        "images": images.tolist(),
    }


def wilson_interval(share, count, z=1.959964):
    """The 95 % interval (low, high) of a share of `count` independent draws (Wilson, 1927)."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(one_is_right, other_is_right):
    """McNemar's exact test of two networks on the same images, bool (N,) each.

    Returns:
        Images that only the one gets right, images that only the other does, and the probability that two equally
        good networks differ at least as much.
    """
    only_one = (one_is_right & ~other_is_right).sum().item()
    only_other = (other_is_right & ~one_is_right).sum().item()
    discordant, fewer = only_one + only_other, min(only_one, only_other)
    terms = [
        math.lgamma(discordant + 1) - math.lgamma(k + 1) - math.lgamma(discordant - k + 1) - discordant * math.log(2)
        for k in range(fewer + 1)
    ]
    return only_one, only_other, min(1.0, 2 * math.fsum(map(math.exp, terms)))


def paired_difference(only_one, only_other, count, z=1.959964):
    """How much larger the share of `count` images is that one network gets right than that of another.

    Args:
        only_one, only_other: images that only the one, or the other, gets right.

    Returns:
        The difference in [-1, 1], and its 95 % interval (low, high) by Bonett and Price (2012).
    """
    one, other = (only_one + 1) / (count + 2), (only_other + 1) / (count + 2)
    half = z * math.sqrt((one + other - (one - other) ** 2) / (count + 2))
    return (only_one - only_other) / count, (max(-1.0, one - other - half), min(1.0, one - other + half))


def report(logits, labels):
    """All that a full test tells, as numbers, strings and lists.

    `loss`, `accuracy`, `top5` of `scores`, `accuracy_interval`, `images`, `by_class` of `class_scores`, `macro` and
    `weighted` means, `calibration`, `confusion_matrix`.
    """
    matrix = confusion_matrix(logits, labels)
    by_class = class_scores(matrix)
    totals = scores(logits, labels)
    return {
        **totals,
        "accuracy_interval": list(wilson_interval(totals["accuracy"], len(labels))),
        "images": len(labels),
        "by_class": {name: values.tolist() for name, values in by_class.items()},
        **mean_scores(by_class),
        "calibration": calibration(logits, labels),
        "confusion_matrix": matrix.tolist(),
    }
