"""A full test: scores, pictures, and the logits of every test image for a later comparison.

    test = network.normalized_for(network.load_test_images("./data"))
    tested = run_full_test(network, checkpoint_path, test)
    print_scores(tested.results)
    write_full_test(tested, network, test, folder)
    load_full_test(folder, network, checkpoint_path, test)   # an earlier test with these weights and images, or None

The files in output/<run>/ are `TEST_FILES` in runs/run.py.
"""

import dataclasses
import json

import torch
from tqdm import tqdm

from vit_cifar10.data.dataset import hash_images
from vit_cifar10.evaluation.metrics import NUM_VIEWS, all_scores, predict, predict_views, scores
from vit_cifar10.plots.scores import save_confusion_matrix, save_mistakes, save_reliability
from vit_cifar10.runs.schema import LOGITS, check
from vit_cifar10.runs.untrusted import load_untrusted
from vit_cifar10.utils.device import evaluation_batch_size
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.tensors import save_tensors
from vit_cifar10.utils.text import printable, shorten

MISTAKES, NAMED_MISTAKES = 25, 5
SCORES, MEANS = ("precision", "recall", "f1"), ("macro", "weighted")


@dataclasses.dataclass
class FullTest:
    """A full test: the contents of test_results.json, and logits (N, C) and labels (N,) on the CPU."""

    results: dict
    logits: torch.Tensor
    labels: torch.Tensor


def run_full_test(network, checkpoint_path, test, batch_size=None, tta=False):
    """Test a network, loaded from a checkpoint, on a split of images.

    With `tta`, the results also hold, under "flip" and "six_views", the scores of predictions averaged over views of
    each image; see `predict_views`. Without `batch_size`, it fits the device.
    """
    batch_size = batch_size or evaluation_batch_size(network.device)
    batches = (NUM_VIEWS if tta else 1) * -(-len(test) // batch_size)
    with tqdm(
        total=batches, desc=f"testing {shorten(network.name, 30)}", unit="batch", leave=False, disable=None
    ) as bar:
        if tta:
            averaged = predict_views(network.model, test, batch_size, after_batch=bar.update)
            logits = averaged.pop("logits")
        else:
            logits = predict(network.model, test, batch_size, after_batch=bar.update)
    network.check_finite(logits)
    results = {
        "checkpoint": str(checkpoint_path),
        "checkpoint_sha256": network.sha256,
        "test_sha256": hash_images(test),
        "dataset": network.dataset,
        **({"resize": network.resize} if test.files else {}),
        "epoch": network.saved["epoch"],
        "classes": network.classes,
        **all_scores(logits, test.labels),
    }
    if tta:
        results |= {views: scores(values, test.labels) for views, values in averaged.items()}
    return FullTest(results, logits.cpu(), test.labels.cpu())


def print_scores(results):
    """Print the contents of test_results.json."""
    print_class_scores(results)
    print_confusion_matrix(results)
    low, high = (100 * end for end in results["accuracy_interval"])
    print(
        f"\ntest accuracy {100 * results['accuracy']:.2f} % (95 % interval {low:.2f} to {high:.2f}),"
        f" top-5 {100 * results['top5']:.2f} %, loss {results['loss']:.4f},"
        f" calibration error {100 * results['calibration']['error']:.2f} %, {results['images']} images"
    )
    for views, name in (("flip", "mirror images"), ("six_views", "mirror and moved images (six views)")):
        if views in results:
            accuracy, loss = results[views]["accuracy"], results[views]["loss"]
            print(f"averaged with {name}: test accuracy {100 * accuracy:.2f} %, loss {loss:.4f}")


def print_class_scores(results):
    """Print precision, recall, F1 and number of images per class, and their means."""
    by_class, classes = results["by_class"], results["classes"]
    width = max(map(len, [*classes, "weighted mean"]))
    tested = [place for place, support in enumerate(by_class["support"]) if support]
    rows = [(classes[i], *(by_class[key][i] for key in SCORES), by_class["support"][i]) for i in tested]
    rows += [(f"{kind} mean", *(results[kind][key] for key in SCORES), results["images"]) for kind in MEANS]
    print(f"\n{'class':<{width}}  precision   recall       F1  images")
    for name, precision, recall, f1, images in rows:
        print(f"{name:<{width}}   {100 * precision:6.2f} % {100 * recall:6.2f} % {100 * f1:6.2f} %  {images:>6}")
    untested = len(classes) - len(tested)
    if untested:
        print(f"classes without test images, left out here and in the macro mean: {untested}")


def print_confusion_matrix(results):
    """Print the counts, one row per true class, unless there are too many classes for a terminal."""
    classes = results["classes"]
    if len(classes) > 12:
        return
    width = max(map(len, classes)) + 4
    numbers = "".join(f"{place:>6}" for place in range(len(classes)))
    print(f"\n{'true class':<{width}}  predicted class\n{'':<{width}}{numbers}")
    for place, (name, counts) in enumerate(zip(classes, results["confusion_matrix"], strict=True)):
        print(f"{place:>2} {name:<{width - 3}}" + "".join(f"{count:>6}" for count in counts))


def write_full_test(tested, network, test, folder):
    """Write all `TEST_FILES` to a folder."""
    with atomic_write(folder / "test_results.json") as partial:
        partial.write_text(json.dumps(tested.results, indent=2) + "\n", encoding="utf-8")
    hashes = {key: tested.results[key] for key in ("checkpoint_sha256", "test_sha256")}
    save_tensors(folder / "test_logits.pt", {"logits": tested.logits, "labels": tested.labels, **hashes})
    draw_full_test(tested, network, test, folder)


def draw_full_test(tested, network, test, folder):
    """Draw the confusion matrix, the reliability diagram and the most confident mistakes."""
    results, classes = tested.results, network.classes
    title = f"{shorten(network.name)}: test accuracy {100 * results['accuracy']:.2f} %"
    save_confusion_matrix(results["confusion_matrix"], classes, folder / "confusion_matrix.png", title)
    save_reliability(results["calibration"], folder / "reliability.png", shorten(network.name))
    confidence, predicted = tested.logits.softmax(dim=1).max(dim=1)
    chosen = most_confident_mistakes(confidence, predicted != tested.labels)
    names = [shorten(name, 18) for name in classes]
    captions = [
        f"label: {names[tested.labels[index]]}\npredicted: {names[predicted[index]]}, {100 * confidence[index]:.0f} %"
        for index in chosen
    ]
    if test.files:
        captions = [f"{shorten(test.files[index], 27)}\n{text}" for index, text in zip(chosen, captions, strict=True)]
    images = test.images[chosen].permute(0, 2, 3, 1).cpu().numpy()
    title = f"{shorten(network.name)}: its most confident mistakes"
    save_mistakes(images, captions, folder / "mistakes.png", title)


def print_mistakes(tested, test):
    """Print the files of the most confident mistakes on a user's own images."""
    confidence, predicted = tested.logits.softmax(dim=1).max(dim=1)
    chosen = most_confident_mistakes(confidence, predicted != tested.labels)[:NAMED_MISTAKES]
    if chosen:
        print("\nthe most confident mistakes:")
    for index in chosen:
        text = f"{100 * confidence[index]:6.2f} %  {test.classes[predicted[index]]}, not"
        print(f"{text} {test.classes[tested.labels[index]]}  {printable(test.files[index])}")


def most_confident_mistakes(confidence, is_wrong):
    """Indices of up to `MISTAKES` wrong predictions, the most confident first, from (N,) tensors."""
    wrong = is_wrong.nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()


def load_full_test(folder, network, checkpoint_path, test=None):
    """An earlier full test of this checkpoint, on these images if they are given, or None.

    Only the logits and labels are read from the file, which may be untrusted. The scores are computed from them again.
    """
    try:
        saved = load_untrusted(folder / "test_logits.pt")
        check(saved, LOGITS)
    except (UserError, ValueError):  # if anything is wrong with the file of an earlier test, the test is run again
        return None
    logits, labels = saved["logits"], saved["labels"]
    classes = len(network.classes)
    has_labels = (logits.dtype, labels.dtype) == (torch.float32, torch.int64) and labels.ndim == 1 and len(labels) > 0
    fits = has_labels and logits.shape == (len(labels), classes) and 0 <= labels.min() <= labels.max() < classes
    is_same = saved["checkpoint_sha256"] == network.sha256
    if test and is_same:
        is_same = saved["test_sha256"] == hash_images(test) and torch.equal(labels, test.labels.cpu())
    if not (fits and is_same):
        return None
    same = {"test_sha256": saved["test_sha256"], "epoch": network.saved["epoch"]}
    return FullTest({**same, **all_scores(logits, labels)}, logits, labels)
