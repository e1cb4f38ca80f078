"""What a full test leaves: its numbers, its pictures, and every image's logits, for a later comparison.

output/<run>/  test_results.json, test_logits.pt, confusion_matrix.png, reliability.png, mistakes.png

measured = measure(network, checkpoint_path, test)
write(measured, network, test, folder)
load(folder, network, checkpoint_path, test)        # the same again, if it was of these weights and images
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from vit_cifar10.evaluation.metrics import predict, predict_with_flip, report, scores
from vit_cifar10.plots.scores import save_confusion_matrix, save_mistakes, save_reliability
from vit_cifar10.plots.style import shorten
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import replacing, save_tensors

FILES = ("test_results.json", "test_logits.pt", "confusion_matrix.png", "reliability.png", "mistakes.png")
MISTAKES = 25


@dataclasses.dataclass
class Measured:
    """A full test: what test_results.json holds, and logits (N, C) and labels (N,) on the CPU."""

    results: dict
    logits: torch.Tensor
    labels: torch.Tensor


def measure(network, checkpoint_path, test, batch_size=1000, tta=False):
    """A full test of a network from a checkpoint on a split of images.

    With `tta`, the scores of images averaged with their mirror images stand beside the others, under "flip".
    """
    batches = (1 + tta) * -(-len(test) // batch_size)
    with tqdm(total=batches, desc=f"testing {network.name}", unit="batch", leave=False, disable=None) as bar:
        if tta:
            logits, averaged = predict_with_flip(network.model, test, batch_size, after_batch=bar.update)
        else:
            logits = predict(network.model, test, batch_size, after_batch=bar.update)
    results = {
        "checkpoint": str(checkpoint_path),
        "checkpoint_sha256": fingerprint(checkpoint_path),
        "test_sha256": fingerprint_images(test),
        "dataset": network.saved["dataset"],
        "epoch": network.saved["epoch"],
        "classes": network.classes,
        **report(logits, test.labels),
    }
    if tta:
        results["flip"] = scores(averaged, test.labels)
    return Measured(results, logits.cpu(), test.labels.cpu())


def write(measured, network, test, folder):
    """Write all of `FILES` to a folder."""
    with replacing(folder / "test_results.json") as partial:
        partial.write_text(json.dumps(measured.results, indent=2) + "\n")
    same = {key: measured.results[key] for key in ("checkpoint_sha256", "test_sha256")}
    save_tensors(folder / "test_logits.pt", {"logits": measured.logits, "labels": measured.labels, **same})
    draw(measured, network, test, folder)


def draw(measured, network, test, folder):
    """The pictures of a full test, into `folder`."""
    results, classes = measured.results, network.classes
    title = f"{shorten(network.name)}: test accuracy {100 * results['accuracy']:.2f} %"
    save_confusion_matrix(results["confusion_matrix"], classes, folder / "confusion_matrix.png", title)
    save_reliability(results["calibration"], folder / "reliability.png", title)
    confidence, predicted = measured.logits.softmax(dim=1).max(dim=1)
    chosen = surest_mistakes(confidence, predicted != measured.labels)
    names = [shorten(name, 18) for name in classes]
    captions = [
        f"label: {names[measured.labels[index]]}\ntaken for {names[predicted[index]]}, {100 * confidence[index]:.0f} %"
        for index in chosen
    ]
    images = test.images[chosen].permute(0, 2, 3, 1).cpu().numpy()
    title = f"{shorten(network.name)}: the mistakes it is surest of"
    save_mistakes(images, captions, folder / "mistakes.png", title)


def surest_mistakes(confidence, is_wrong):
    """Indices of up to `MISTAKES` images that are named wrong, the most confident first; (N,) each."""
    wrong = is_wrong.nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()


def load(folder, network, checkpoint_path, test=None):
    """An earlier full test of this very checkpoint, on these very images if they are given; None if there was none.

    Only the logits are taken from the file, and everything else is worked out from them.
    """
    try:
        saved = torch.load(folder / "test_logits.pt", weights_only=True)
        logits, labels = saved["logits"].float(), saved["labels"].long()
        is_same = saved["checkpoint_sha256"] == fingerprint(checkpoint_path) and isinstance(saved["test_sha256"], str)
        fits = logits.shape == (len(labels), len(network.classes)) and logits.isfinite().all()
        if not (is_same and fits) or (test and saved["test_sha256"] != fingerprint_images(test)):
            return None
        same = {"test_sha256": saved["test_sha256"], "epoch": network.saved["epoch"]}
        return Measured({**same, **report(logits, labels)}, logits, labels)
    except Exception:  # whatever is wrong with what an earlier test has left, it is made anew
        return None


def fingerprint(checkpoint_path):
    """SHA-256 of a checkpoint, or of the best one in a run's folder."""
    path = Path(checkpoint_path)
    path = path / "best.pt" if path.is_dir() else path
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path") from error


def fingerprint_images(split):
    """SHA-256 of a split's labels and images."""
    digest = hashlib.sha256(split.labels.cpu().numpy())
    digest.update(split.images.cpu().contiguous().numpy())
    return digest.hexdigest()
