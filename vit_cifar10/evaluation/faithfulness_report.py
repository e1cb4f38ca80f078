"""Measure how far a network's explanations can be trusted. It can be stopped, and continues where it was.

    measured = measure_faithfulness(network, test, folder)    # see explain/faithfulness.py
    tables = write_faithfulness(measured, network, folder)
    print_faithfulness(*tables, measured.methods)

After each batch, output/<run>/faithfulness.pt holds what has been measured so far. A later call with the same weights,
images and methods continues from it. The files in output/<run>/ are `FAITHFULNESS_FILES` in runs/run.py.
"""

import csv
import dataclasses

import torch
from tqdm import tqdm

from vit_cifar10.data.dataset import hash_images, normalize
from vit_cifar10.explain import faithfulness
from vit_cifar10.plots.explanations import BASELINE_LABELS, save_faithfulness
from vit_cifar10.runs.schema import FAITHFULNESS, check
from vit_cifar10.runs.untrusted import load_untrusted
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.tensors import save_tensors
from vit_cifar10.utils.text import printable

BATCH = 25  # images that are measured between two saves
RANDOMIZED = 4 * BATCH  # images for which the weights are randomized, the most expensive measurement


@dataclasses.dataclass
class MeasuredFaithfulness:
    """What was measured: the methods, and the tensors of `faithfulness.measure_batch` for all images."""

    methods: dict
    tensors: dict


def measure_faithfulness(network, test, folder, samples=None):
    """Measure all methods on the images of a split, or only the images that are missing in faithfulness.pt.

    Args:
        samples: number of masks for the method `masks`; None leaves this slow method out.
    """
    model, untrained = network.model, network.untrained_weights
    methods = faithfulness.measured_methods(model, samples)
    key = {
        "protocol": faithfulness.PROTOCOL,
        "checkpoint_sha256": network.sha256,
        "test_sha256": hash_images(test),
        "methods": list(methods),
        "samples": samples,
    }
    shapes = faithfulness.row_shapes(model, methods)
    path = folder / "faithfulness.pt"
    measured = load_measured(path, key, shapes, len(test))
    done = len(measured["curves"])
    if done:
        print(f"{done} of the images have been measured before")
    elif path.exists():
        print(printable(f"{path} holds other weights, images or methods, and will be replaced"))
    with tqdm(total=len(test), initial=done, desc="removing patches", unit="image", disable=None) as bar:
        for start in range(done, len(test), BATCH):
            inputs = normalize(test.images[start : start + BATCH], test.mean, test.std)
            batch = faithfulness.measure_batch(
                model, untrained, methods, inputs, seed=start, randomize=start < RANDOMIZED
            )
            measured = {name: torch.cat([measured[name], batch[name]]) for name in shapes}
            save_tensors(path, {**key, **measured})
            bar.update(len(inputs))
    return MeasuredFaithfulness(methods, measured)


def load_measured(path, key, shapes, images):
    """What an earlier test has measured of the same weights, images and methods; empty tensors if there is nothing.

    The file may be untrusted.
    """
    try:
        saved = load_untrusted(path)
        check(saved, FAITHFULNESS)
        done = saved["seconds"].numel() // shapes["seconds"][0]  # images
        rows = {name: min(done, RANDOMIZED) if name == "randomized" else done for name in shapes}
        fits = all(
            saved[name].dtype == torch.float32 and tuple(saved[name].shape) == (rows[name], *shape)
            for name, shape in shapes.items()
        )
        is_whole = done == images or (done < images and done % BATCH == 0)
        if fits and is_whole and all(saved[name] == value for name, value in key.items()):
            return {name: saved[name] for name in shapes}
    except (UserError, ValueError):
        pass
    return {name: torch.zeros(0, *shape) for name, shape in shapes.items()}


def write_faithfulness(tested, network, folder):
    """Write the tables and the picture to a folder. Return the rows of both tables."""
    areas = faithfulness.area_rows(tested.tensors, tested.methods)
    by_method = faithfulness.method_rows(tested.tensors, tested.methods)
    for name, rows in (("faithfulness.csv", areas), ("faithfulness_methods.csv", by_method)):
        with atomic_write(folder / name) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    save_faithfulness(
        folder / "faithfulness.png",
        faithfulness.FRACTIONS,
        faithfulness.mean_curves(tested.tensors, tested.methods),
        faithfulness.mean_correlations(tested.tensors, tested.methods),
        by_method,
        [name for name, _ in network.model.parts_from_head_to_input()],
        f"{network.name}: tests of its explanations on {len(tested.tensors['curves'])} test images",
    )
    return areas, by_method


def print_faithfulness(areas, by_method, methods):
    """Print the rows of both tables: areas and paired gains, one line per method, and what else was measured."""
    cells = {(row["method"], row["fill"], row["kind"]): row for row in areas}
    names, fills = (list(dict.fromkeys(row[key] for row in areas)) for key in ("method", "fill"))
    reference = areas[0]["reference"]
    probability = "mean probability of the predicted class along the curve, in %"
    explained = {
        "deletion": f"{probability}; lower is better",
        "insertion": f"{probability}; higher is better",
        "SRG": "insertion minus deletion (symmetric relevance gain), in points; higher is better",
    }
    for kind, explanation in explained.items():
        print(f"\n{kind}: {explanation}")
        print(f"in brackets: gain over {reference} in points, image by image, 95 % interval; above 0 is better\n")
        print(" " * 20 + "".join(f"{fill:<22}" for fill in fills).rstrip())
        for name in names:
            print(
                f"{BASELINE_LABELS.get(name, name):<20}"
                + "".join(f"{format_area(cells[name, fill, kind]):<22}" for fill in fills).rstrip()
            )
    print("\n* no clear gain over the best baseline: its 95 % interval is not above 0")
    columns = {"class_sensitivity": "class sensitivity (%)", "randomized": "randomized"}
    if "masks" in methods:
        columns["agreement"] = "agrees with masks"
    print(f"\n{'':<20}{'ms':>6}    " + "".join(f"{title:<23}" for title in columns.values()).rstrip())
    for row in by_method:
        values = "".join(f"{format_interval(row, key):<23}" for key in columns)
        print(f"{row['method']:<20}{row['milliseconds']:>6.1f}    {values}".rstrip())
    print("\nms: time for one class of one image")
    print(
        "class sensitivity: how much more the runner-up's map raises the runner-up than the predicted class's map does"
    )
    images = f"{by_method[0]['randomized_images']} images; intervals over {faithfulness.DRAWS} draws"
    print(f"randomized: rank correlation with the maps of networks with random weights; near 0 is good ({images})")
    if "masks" in methods:
        print("agrees with masks: rank correlation with the maps of masks")
    class_blind = " and ".join(name for name, method in methods.items() if method.is_class_blind)
    if class_blind:
        print(f"{class_blind} are the same for every class: they show where the network looks")


def format_area(row):
    """An area in %, with the interval of its gain over the reference, and a star unless it beats all baselines."""
    star = "" if row["method"] in faithfulness.BASELINES or row["gain_over_baseline_low"] > 0 else "*"
    text = f"{100 * row['area']:5.1f}{star}"
    if row["method"] == row["reference"]:
        return text
    return f"{text} [{100 * row['gain_low']:+.1f}, {100 * row['gain_high']:+.1f}]"


def format_interval(row, key):
    """A mean with its interval, or nothing if it was not measured."""
    if row[key] is None:
        return ""
    scale, digits = (100, 1) if key == "class_sensitivity" else (1, 2)
    mean, low, high = (f"{scale * row[name]:+.{digits}f}" for name in (key, f"{key}_low", f"{key}_high"))
    return f"{mean} [{low}, {high}]"
