"""Predictions of a network on a split, and the metrics computed from them.

logits = predict(model, test)                       # float (N, C), in the order of the images
scores(logits, test.labels)                         # {"loss": ..., "accuracy": ..., "top5": ...}
matrix = confusion_matrix(logits, test.labels)      # a row per true class, a column per predicted class
class_scores(matrix)                                # precision, recall, F1 and number of images per class
all_scores(logits, test.labels)                     # all of these metrics and the calibration, as plain values
mcnemar(one_correct, other_correct)                 # is the difference between two networks significant?
paired_difference(only_one, only_other, count)      # the difference in accuracy and its 95 % interval
"""

import dataclasses
import math

import torch
from torch.nn import functional as F

from vit_cifar10.data.dataset import batches, normalize
from vit_cifar10.utils.device import autocast, eval_mode, evaluation_batch_size


@torch.inference_mode()
def predict(model, split, batch_size=None, precision="fp32", after_batch=lambda: None):
    """Compute the logits, float32 (N, C), of all images of a split, on the split's device.

    The network runs in evaluation mode and then returns to its earlier mode. `after_batch()` is called after every
    batch and may raise an exception to stop. Without `batch_size`, it fits the device.
    """
    batch_size = batch_size or evaluation_batch_size(split.images.device)
    logits, done = None, 0
    with eval_mode(model), autocast(split.images.device, precision):
        for images, _ in batches(split, batch_size):
            batch = model(normalize(images, split.mean, split.std))
            if logits is None:  # one tensor for all: small ones would fragment the memory between the batches
                logits = batch.new_empty(len(split), batch.shape[1], dtype=torch.float32)
            logits[done : done + len(batch)] = batch
            done += len(batch)
            after_batch()
    return logits


def predict_views(model, split, *arguments, **options):
    """Predict with and without test-time augmentation. All arguments are passed to `predict`.

    Returns:
        {name: values}, all float32 (N, C). "logits" are from `predict`. "flip" and "six_views" are the logarithms of
        mean class probabilities: of each image and its mirror image, and of six views, as in airbench94. They are the
        image, the image moved by one pixel up and to the left, or down and to the right, and the mirror images of
        these three. The two that are not moved count as much as the four others.
    """

    def log_probabilities(down, right, mirrored):
        images = shift(split.images, down, right)
        view = dataclasses.replace(split, images=images.flip(3) if mirrored else images)
        return predict(model, view, *arguments, **options).log_softmax(dim=1)

    logits = predict(model, split, *arguments, **options)
    flip = mean_of_logs(logits.log_softmax(dim=1), log_probabilities(0, 0, True))
    moved = mean_of_logs(*(log_probabilities(step, step, mirrored) for step in (-1, 1) for mirrored in (False, True)))
    return {"logits": logits, "flip": flip, "six_views": mean_of_logs(flip, moved)}


NUM_VIEWS = 6  # forward passes of `predict_views` for each image


def mean_of_logs(*log_probabilities):
    """The logarithm of the mean of probabilities, from their logarithms."""
    return torch.stack(log_probabilities).logsumexp(dim=0) - math.log(len(log_probabilities))


def shift(images, down, right):
    """Move uint8 (N, 3, H, W) by at most a pixel. The border that is left shows the mirrored image."""
    if down == right == 0:
        return images
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    height, width = images.shape[-2:]
    return padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def scores(logits, labels):
    """Mean cross-entropy in nats, and top-1 and top-5 accuracy in [0, 1]."""
    is_label = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(dim=1) == labels).sum().item() / len(labels),
        "top5": is_label.any(dim=1).sum().item() / len(labels),
    }


def confusion_matrix(logits, labels):
    """Count the images of class i that are predicted as class j, int64 (C, C) on the CPU."""
    num_classes = logits.shape[1]
    pairs = labels * num_classes + logits.argmax(dim=1)
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).cpu()


def class_scores(matrix):
    """Precision, recall, F1 and support (number of images) of each class, (C,) tensors.

    As in scikit-learn with `zero_division=0`, a score whose denominator is 0 is 0.
    """
    correct = matrix.diag().double()
    support, predicted = matrix.sum(dim=1), matrix.sum(dim=0)
    return {
        "precision": correct / predicted.clamp(min=1),
        "recall": correct / support.clamp(min=1),
        "f1": 2 * correct / (support + predicted).clamp(min=1),
        "support": support,
    }


def mean_scores(by_class):
    """Average `class_scores` over the classes, with equal weights ("macro") or weighted by support ("weighted").

    Classes without images are left out of both.
    """
    support = by_class["support"].double()
    weights = {"macro": (support > 0).double(), "weighted": support}
    return {
        kind: {name: ((by_class[name] * weight).sum() / weight.sum()).item() for name in ("precision", "recall", "f1")}
        for kind, weight in weights.items()
    }


def calibration(logits, labels, bins=15):
    """Compare the confidence in the predicted class with the accuracy (Guo et al., 2017).

    Images are sorted by confidence into `bins` intervals of equal width.

    Returns:
        `error`: the expected calibration error in [0, 1], which is the mean over all images of the absolute difference
            between the accuracy and the mean confidence of the image's bin.
        `confidence`, `accuracy`: the means in each bin, a list of numbers, None for an empty bin.
        `accuracy_interval`: the ends of the accuracy's `wilson_interval` in each bin, None for an empty bin.
        `images`: the number of images in each bin.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    bin_index = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (0, 1/15], ..., as in the paper
    images = bin_index.bincount(minlength=bins)
    sums = [bin_index.bincount(values.double(), minlength=bins) for values in (confidence, predicted == labels)]
    mean_confidence, accuracy = (total / images.clamp(min=1) for total in sums)
    error = ((mean_confidence - accuracy).abs() * images).sum() / images.sum()
    is_empty = images == 0

    def none_if_empty(values):
        return [None if empty else value for value, empty in zip(values.tolist(), is_empty.tolist(), strict=True)]

    counted = zip(accuracy.tolist(), images.tolist(), strict=True)
    return {
        "error": error.item(),
        "confidence": none_if_empty(mean_confidence),
        "accuracy": none_if_empty(accuracy),
        "accuracy_interval": [list(wilson_interval(*pair)) if pair[1] else None for pair in counted],
        "images": images.tolist(),
    }


def wilson_interval(fraction, count, z=1.959964):
    """The 95 % score interval (low, high) for a fraction of `count` independent trials (Wilson, 1927)."""
    center = (fraction + z**2 / (2 * count)) / (1 + z**2 / count)
    half_width = z / (1 + z**2 / count) * math.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return max(0.0, center - half_width), min(1.0, center + half_width)


def mcnemar(one_correct, other_correct):
    """McNemar's exact test of two networks on the same images.

    Args:
        one_correct, other_correct: bool (N,), whether each network's prediction is correct.

    Returns:
        The number of images that only the first network gets right, the number that only the second gets right, and
        the two-sided p-value: the probability that two equally accurate networks differ at least this much.
    """
    only_one = (one_correct & ~other_correct).sum().item()
    only_other = (other_correct & ~one_correct).sum().item()
    discordant, fewer = only_one + only_other, min(only_one, only_other)
    terms = [
        math.lgamma(discordant + 1) - math.lgamma(k + 1) - math.lgamma(discordant - k + 1) - discordant * math.log(2)
        for k in range(fewer + 1)
    ]
    return only_one, only_other, min(1.0, 2 * math.fsum(map(math.exp, terms)))


def paired_difference(only_one, only_other, count, z=1.959964):
    """The difference in accuracy of two networks on the same `count` images.

    Args:
        only_one, only_other: the numbers of images that only the first or only the second network gets right.

    Returns:
        The first accuracy minus the second, in [-1, 1], and its 95 % interval (low, high) by Bonett and Price (2012).
    """
    one, other = (only_one + 1) / (count + 2), (only_other + 1) / (count + 2)
    half_width = z * math.sqrt((one + other - (one - other) ** 2) / (count + 2))
    low, high = one - other - half_width, one - other + half_width
    return (only_one - only_other) / count, (max(-1.0, low), min(1.0, high))


def retained_accuracy(corrupted, clean, z=1.959964):
    """The fraction of a network's accuracy that is left on corrupted images.

    Args:
        corrupted, clean: float64 (N,), for each image whether, or how often, the prediction for it is correct.

    Returns:
        The first accuracy divided by the second, and its 95 % interval (low, high), which takes into account that both
        are measured on the same images: that of a ratio estimator (Cochran, 1977). As in `paired_difference`, two
        images are added, one right only before and one right only after the corruption, so that an accuracy of 0 has
        an interval, too. None where the accuracy on clean images is 0.
    """
    if not clean.any():
        return None, (None, None)
    center, parts = _linearized_ratio(corrupted, clean, added=(1, 0))
    return (corrupted.mean() / clean.mean()).item(), _interval(center, parts, z, low=0.0)


def retained_difference(one, other, z=1.959964):
    """How much more of its accuracy one network retains than another one, on the same images.

    Args:
        one, other: the arguments of `retained_accuracy` for each network.

    Returns:
        The first fraction minus the second, and its paired 95 % interval (low, high). None where one is unknown.
    """
    (fraction, _), (other_fraction, _) = retained_accuracy(*one), retained_accuracy(*other)
    if fraction is None or other_fraction is None:
        return None, (None, None)
    (center, parts), (other_center, other_parts) = (
        _linearized_ratio(*values, added=added) for values, added in ((one, (1, 0)), (other, (0, 1)))
    )
    return fraction - other_fraction, _interval(center - other_center, parts - other_parts, z)


def _linearized_ratio(corrupted, clean, added):
    """The ratio of two means with two images added, and what each image contributes to its error, (N + 2,)."""
    corrupted, clean = (
        torch.cat([values, torch.tensor(ends, dtype=torch.float64)])
        for values, ends in ((corrupted, added), (clean, added[::-1]))
    )
    ratio = corrupted.mean() / clean.mean()
    return ratio.item(), (corrupted - ratio * clean) / clean.mean()


def _interval(center, parts, z, low=-math.inf):
    half_width = z * (parts.std() / math.sqrt(len(parts))).item()
    return max(low, center - half_width), center + half_width


def all_scores(logits, labels):
    """Compute all metrics of a full test, as plain numbers, lists and dicts.

    Returns:
        `loss`, `accuracy` and `top5` from `scores`; `accuracy_interval` from `wilson_interval`; `images`, their number;
        `by_class` from `class_scores`; `macro` and `weighted` from `mean_scores`; `calibration`; `confusion_matrix`.
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
