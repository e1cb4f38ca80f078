"""What a full test leaves: its numbers, its pictures, and every image's logits, for a later comparison.

output/<run>/  test_results.json, test_logits.pt, confusion_matrix.png, reliability.png, mistakes.png
"""

import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

import figures
from evaluate import predict, predict_with_flip, report, scores
from runtime import UserError, replacing, save_tensors

FILES = ("test_results.json", "test_logits.pt", "confusion_matrix.png", "reliability.png", "mistakes.png")
MISTAKES = 25


def measure_network(network, checkpoint_path, test, folder, batch_size=1000, tta=False):
    """Measure a network on a test split, write all of `FILES` to `folder`, and return the results and the logits.

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
        "dataset": network.saved["dataset"],
        "epoch": network.saved["epoch"],
        "classes": network.classes,
        **report(logits, test.labels),
    }
    if tta:
        results["flip"] = scores(averaged, test.labels)
    logits = logits.cpu()
    with replacing(folder / "test_results.json") as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n")
    same = {"checkpoint_sha256": results["checkpoint_sha256"], "labels": test.labels.cpu()}
    save_tensors(folder / "test_logits.pt", {"logits": logits, **same})
    draw(network, results, logits, test, folder)
    return results, logits


def draw(network, results, logits, test, folder):
    """The pictures of a full test, into `folder`."""
    title = f"{network.name}: test accuracy {100 * results['accuracy']:.2f} %"
    classes = network.classes
    figures.save_confusion_matrix(results["confusion_matrix"], classes, folder / "confusion_matrix.png", title)
    figures.save_reliability(results["calibration"], folder / "reliability.png", title)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    chosen = surest_mistakes(confidence, predicted != test.labels.cpu())
    captions = [
        f"label: {classes[test.labels[index]]}\ntaken for {classes[predicted[index]]}, {100 * confidence[index]:.0f} %"
        for index in chosen
    ]
    images = test.images[chosen].permute(0, 2, 3, 1).cpu().numpy()
    figures.save_mistakes(images, captions, folder / "mistakes.png", f"{network.name}: the mistakes it is surest of")


def surest_mistakes(confidence, is_wrong):
    """Indices of up to `MISTAKES` images that are named wrong, the most confident first; (N,) each."""
    wrong = is_wrong.nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()


def load_results(folder, checkpoint_path, labels=None):
    """Results, logits and labels of an earlier full test of this very checkpoint, on images of `labels` if given.

    None if there was no such test.
    """
    try:
        results = json.loads((folder / "test_results.json").read_text())
        saved = torch.load(folder / "test_logits.pt", weights_only=True)
        is_same = results["checkpoint_sha256"] == saved["checkpoint_sha256"] == fingerprint(checkpoint_path)
        if not is_same or not (labels is None or torch.equal(saved["labels"], labels)):
            return None
        return results, saved["logits"], saved["labels"]
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
