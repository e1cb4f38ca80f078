"""The accuracy of networks on corrupted images, all networks on the same bytes, and under attack.

    measured = measure_robustness(runs, test)     # a `Measured` per run; can be stopped, and continues where it was
    rows = robustness_rows(measured)              # plain numbers
    write_robustness(folder, rows, measured)      # a table and a picture

The corruptions are those in data/corruptions.py. The attack is projected gradient descent (PGD; Madry et al., 2018,
https://arxiv.org/abs/1706.06083) on each network, in float32 and without rounding to whole pixel values.

After each batch, output/<run>/robustness.pt holds what has been measured so far. A later call with the same weights,
images and settings continues from it, also in a comparison with other runs.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from vit_cifar10.data.corruptions import CORRUPTIONS
from vit_cifar10.data.dataset import Split, hash_images
from vit_cifar10.evaluation.metrics import retained_accuracy, retained_difference
from vit_cifar10.plots.robustness import save_robustness
from vit_cifar10.runs.checkpoint import Network
from vit_cifar10.runs.run import ROBUSTNESS_FILE
from vit_cifar10.runs.schema import ROBUSTNESS, check
from vit_cifar10.runs.untrusted import load_untrusted
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.tensors import save_tensors

PROTOCOL = 1  # change it with anything that changes what is measured, so that earlier measurements are not continued
BATCH = 50  # images that are corrupted at once, and measured between two saves
SEED = 20_190_328
CLEAN, PGD, MEAN = "none", "PGD", "mean of the ten kinds"
PGD_STEPS = 10  # each of a quarter of the largest change
PGD_UNIT = "largest change of a value"
PGD_LEVELS = {f"{level:g}/255": level / 255 for level in (0.5, 1, 2)}


def conditions():
    """All that is measured, clean images first: [(kind, level), ...]."""
    corrupted = [(kind, level) for kind, corruption in CORRUPTIONS.items() for level in corruption.strengths]
    return [(CLEAN, ""), *corrupted, *((PGD, level) for level in PGD_LEVELS)]


@dataclasses.dataclass
class Measured:
    """What was measured of a run.

    Attributes:
        split: the clean images, with the network's labels.
        path: the file to continue from; None if there is to be none.
        correct: {condition: uint8 (N,)}, for each of `conditions` whether the network's predictions are correct.
    """

    name: str
    network: Network
    split: Split
    path: Path | None
    correct: dict

    def accuracies(self, kind, level):
        """For each image: whether the prediction is correct, or how often, float64 (N,)."""
        if kind != MEAN:
            return self.correct[kind, level].double()
        values = [self.correct[condition] for condition in conditions() if is_in_cifar_c(condition[0])]
        return torch.stack(values).double().mean(dim=0)

    def save(self):
        if self.path:
            correct = {" ".join(condition): values for condition, values in self.correct.items()}
            save_tensors(self.path, {**self.key, "correct": correct})

    @functools.cached_property
    def key(self):
        """What earlier measurements must have been made with, so that they can be used."""
        table = {kind: corruption.strengths for kind, corruption in CORRUPTIONS.items()}
        settings = json.dumps([PROTOCOL, BATCH, SEED, PGD_STEPS, PGD_LEVELS, table])
        return {
            "checkpoint_sha256": self.network.sha256,
            "test_sha256": hash_images(self.split),
            "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        }


def is_in_cifar_c(kind):
    return kind in CORRUPTIONS and CORRUPTIONS[kind].in_cifar_c


# Measuring


def measure_robustness(runs, test):
    """Test runs under all `conditions` on the images of a split, or only what is missing in their robustness.pt.

    Args:
        runs: `TrainedRun`s whose networks take images of this size.

    Raises:
        UserError: the images do not have a network's classes, its logits are not finite, or a file cannot be written.
    """
    measured = [start_from_earlier(run, test) for run in runs]
    missing = sum(
        cost(condition) * (len(test) - len(m.correct[condition])) for m in measured for condition in conditions()
    )
    with tqdm(total=missing, unit="pass", unit_scale=True, disable=None) as bar:
        for condition in conditions():
            bar.set_description(" ".join(condition).strip())
            for start in range(0, len(test), BATCH):
                behind = [m for m in measured if len(m.correct[condition]) <= start]
                if behind:
                    corrupted = corrupt(test.images[start : start + BATCH], condition, start)
                for one in behind:
                    add_batch(one, condition, corrupted, start)
                    bar.update(cost(condition) * len(corrupted))
    return measured


def start_from_earlier(run, test):
    """A `Measured` with what an earlier test has measured of the same weights and images with the same settings."""
    path = run.run.output_folder / ROBUSTNESS_FILE if run.has_record else None
    measured = Measured(run.name, run.network, run.network.normalized_for(test), path, {})
    empty = {condition: torch.zeros(0, dtype=torch.uint8) for condition in conditions()}
    measured.correct = empty | (load_correct(measured) if path else {})
    return measured


def load_correct(measured):
    """The batches of each condition in robustness.pt, {condition: uint8 (n,)}; {} if they do not fit. It may be
    untrusted.
    """
    try:
        saved = load_untrusted(measured.path)
        check(saved, ROBUSTNESS)
    except (UserError, ValueError):
        return {}
    correct = {condition: saved["correct"].get(" ".join(condition)) for condition in conditions()}
    correct = {condition: values for condition, values in correct.items() if values is not None}
    images = len(measured.split)
    fits = all(
        values.dtype == torch.uint8
        and values.ndim == 1
        and (len(values) == images or len(values) in range(0, images, BATCH))
        for values in correct.values()
    )
    return correct if fits and all(saved[name] == value for name, value in measured.key.items()) else {}


def cost(condition):
    """About how many forward passes a condition takes for each image."""
    return 3 * PGD_STEPS if condition[0] == PGD else 1


def corrupt(images, condition, start):
    """The images as all networks see them, uint8 (B, 3, H, W). An attack starts from the clean ones."""
    kind, level = condition
    return CORRUPTIONS[kind].apply(images.cpu(), level, SEED + start) if kind in CORRUPTIONS else images


def add_batch(measured, condition, images, start):
    """Measure whether the network classifies a batch, which begins at the image `start`, correctly, and save that."""
    network, labels = measured.network, measured.split.labels[start : start + len(images)]
    if condition[0] == PGD:
        stood = measured.correct[weaker(condition)][start : start + len(images)]
        correct, _ = attack(network, images, labels, stood.bool(), condition[1], start)
    else:
        correct = network.logits(images).argmax(dim=1) == labels
    measured.correct[condition] = torch.cat([measured.correct[condition], correct.to("cpu", torch.uint8)])
    measured.save()


def weaker(condition):
    """The condition before an attack: one with a smaller change or, before the first one, clean images."""
    earlier = [(CLEAN, ""), *((PGD, level) for level in PGD_LEVELS)]
    return earlier[earlier.index(condition) - 1]


def attack(network, images, labels, stood, level, start):
    """Try to change the predictions for images by changing no pixel value by more than a level of `PGD_LEVELS`.

    The changes begin at random. An image whose prediction becomes wrong is not changed further.

    Args:
        images: uint8 (B, 3, H, W).
        labels: int64 (B,), on the network's device.
        stood: bool (B,), the images to attack. The others are wrong already, with smaller changes or none, which are
            allowed here, too.
        start: the index of the first image, which decides the random numbers.

    Returns:
        Whether the predictions are still correct, bool (B,), and the changed pixels, float (B, 3, H, W) in [0, 1].
    """
    random = np.random.RandomState(zlib.crc32(f"{PGD} {level} {SEED + start}".encode()))
    largest, original = PGD_LEVELS[level], images.to(network.device) / 255
    noise = torch.from_numpy(random.uniform(-largest, largest, images.shape)).float().to(network.device)
    pixels, places = original.clone(), stood.to(network.device).nonzero().flatten()
    changed = project(original + noise, original, largest)
    for step in range(PGD_STEPS + 1):
        pixels[places] = changed[places]
        inputs = changed[places].requires_grad_()
        logits = network.model((inputs - network.mean[:, None, None]) / network.std[:, None, None])
        network.check_finite(logits)
        stands = logits.argmax(dim=1) == labels[places]
        if step < PGD_STEPS and stands.any():
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[places], reduction="sum"), inputs)
            moved = inputs.detach() + largest / 4 * gradient.sign()
            changed[places] = project(moved, original[places], largest)
        places = places[stands]
        if not len(places):
            break
    correct = torch.zeros(len(images), dtype=torch.bool)
    correct[places.cpu()] = True
    return correct, pixels


def project(pixels, original, largest):
    """The nearest pixels in [0, 1] that differ by at most `largest` from the original ones."""
    return pixels.clamp(original - largest, original + largest).clamp(0, 1)


# Tables and the picture


def robustness_rows(measured):
    """One row per condition and run, in plain numbers: accuracies are fractions, and so are differences.

    `retained` is the accuracy divided by that on the clean images, and `difference` how much more of it a run retains
    than the first run, all with 95 % intervals. They are None where the accuracy on the clean images is 0.
    """
    first, rows = measured[0], []
    for kind, level in [*conditions(), (MEAN, "")]:
        for one in measured:
            values, clean = one.accuracies(kind, level), one.accuracies(CLEAN, "")
            row = {"corruption": kind, "level": level, "run": one.name, "images": len(values)}
            row |= {"accuracy": values.mean().item(), **interval("retained", *retained_accuracy(values, clean))}
            if one is first:
                compared = (None, (None, None))
            else:
                other = first.accuracies(kind, level), first.accuracies(CLEAN, "")
                compared = retained_difference((values, clean), other)
            rows.append({**row, **interval("difference", *compared)})
    return rows


def interval(name, value, ends):
    return {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def write_robustness(folder, rows, measured):
    """Write robustness.csv and robustness.png, with an image that all networks classify correctly as the example."""
    with atomic_write(folder / "robustness.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    index = int(torch.stack([one.correct[CLEAN, ""] for one in measured]).sum(dim=0).argmax())
    found = {(row["corruption"], row["level"], row["run"]): row for row in rows}
    panels = []
    for kind in [*CORRUPTIONS, PGD]:
        levels = [level for other, level in conditions() if other == kind]
        curves = {
            one.name: [
                [found[kind, level, one.name][f"retained{end}"] for level in levels] for end in ("", "_low", "_high")
            ]
            for one in measured
        }
        images = [example(measured[0], index, condition) for condition in [(CLEAN, ""), *((kind, x) for x in levels)]]
        unit = CORRUPTIONS[kind].unit if kind in CORRUPTIONS else PGD_UNIT
        panels.append((kind, unit, levels, curves, images))
    accuracies = {one.name: found[CLEAN, "", one.name]["accuracy"] for one in measured}
    save_robustness(panels, accuracies, len(measured[0].split), folder / "robustness.png")


def example(measured, index, condition):
    """A test image as it is under a condition, uint8 (H, W, 3); the attack is on the network of `measured`."""
    start = index - index % BATCH
    images = measured.split.images[start : start + BATCH]
    corrupted = corrupt(images, condition, start)[index - start]
    if condition[0] == PGD:
        labels = measured.split.labels[start : start + BATCH]
        everything = torch.ones(len(images), dtype=torch.bool)
        _, pixels = attack(measured.network, images, labels, everything, condition[1], start)
        corrupted = (255 * pixels[index - start]).round().to(torch.uint8)
    return corrupted.permute(1, 2, 0).cpu().numpy()
