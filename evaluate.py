"""How good it is: logits over a split, and the scores that follow from them.

logits = predict(model, test)                       # float (N, C), in the order of the images
scores(logits, test.labels)                         # {"loss": ..., "accuracy": ..., "top5": ...}
matrix = confusion_matrix(logits, test.labels)      # rows are true classes, columns predicted ones
class_scores(matrix)                                # precision, recall, F1 and number of images of each class
"""

import contextlib

import torch
from torch.nn import functional as F

from dataset import batches, normalize
from runtime import autocast


@contextlib.contextmanager
def evaluating(model):
    """The network in evaluation mode, and afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


@torch.inference_mode()
def predict(model, split, batch_size=1000, precision="fp32"):
    """Logits, float32 (N, C), of every image of a split, on its device; the network is left in the mode it was in."""
    logits = []
    with evaluating(model), autocast(split.images.device, precision):
        for images, _ in batches(split, batch_size):
            logits.append(model(normalize(images, split.mean, split.std)).float())
    return torch.cat(logits)


def scores(logits, labels):
    """Mean cross-entropy in nats, and the shares of images whose label is the first, or among the first five."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": ranked[:, 0].float().mean().item(),
        "top5": ranked.any(dim=1).float().mean().item(),
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
