"""Several runs side by side: their records, what was measured on the same test images, and how sure the difference is.

runs = [load_run(path, "model", "output") for path in paths]
table = [summarize(run) for run in runs]            # a dict of plain numbers a run
pairs = compare_pairs(runs)                         # McNemar's test of each two
"""

import csv
import dataclasses
import itertools
import json
import statistics
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import VisionTransformer, build_model
from vit_cifar10.evaluation import full_test as results
from vit_cifar10.evaluation.metrics import mcnemar, paired_difference
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import count_parameters
from vit_cifar10.utils.errors import UserError

# What may differ between runs that are one recipe with several seeds.
NOT_THE_RECIPE = {"seed", "run_name", "overwrite", "num_test_images", *checkpoint.CIRCUMSTANCES}
MAY_CHANGE = {"overwrite", *checkpoint.LENGTH, *checkpoint.CIRCUMSTANCES}  # when a run is resumed
GROUP_COLUMNS = ("accuracy", "final_accuracy", "weighted_f1", "calibration_error", "train_seconds")


@dataclasses.dataclass
class Run:
    """One trained network with its record; `measured` is its full test, once it is made, a `results.Measured`.

    `output_folder` is None where the record of that name is another run's. `notes` says what is missing, a line each.
    `is_finished` is whether it has all its epochs, as far as is known; `is_cut`, whether `rows` lacks the last of them.
    """

    name: str
    checkpoint_path: Path
    output_folder: Path | None
    network: checkpoint.Network
    flags: dict
    rows: list
    train_images: int | None
    notes: list
    is_finished: bool = True
    is_cut: bool = False
    measured: results.Measured = None

    @property
    def results(self):
        return self.measured and self.measured.results

    @property
    def planned_epochs(self):
        return self.flags.get("epochs", 0)

    @property
    def dataset(self):
        return self.network.saved["dataset"]

    def recipe(self, but=()):
        """What runs of several seeds have in common, as a string, without the flags in `but`."""
        saved = self.network.saved
        flags = {key: value for key, value in self.flags.items() if key not in NOT_THE_RECIPE | set(but)}
        place = self.flags.get("data_path") if self.dataset == "folder" else None  # another folder has other images
        recipe = [saved["model_config"], self.dataset, place, self.network.classes, flags]
        return json.dumps(recipe, sort_keys=True, default=str)

    @property
    def kind(self):
        """The network as one would say it."""
        config = self.network.saved["model_config"]
        if config["model"] == "cnn":
            return "CNN"
        return f"ViT {config.get('depth', 12)} x {config.get('embed_dim', 192)}, patch {config.get('patch_size', 4)}"


def load_run(path, model_path, output_path, device):
    """A run from its folder under model/ or output/, a checkpoint in it, or its bare name.

    Raises:
        UserError: there is no checkpoint to be found, or it is damaged.
    """
    place = find_checkpoint(Path(path), Path(model_path))
    network = checkpoint.load_network(place, device)
    folder = Path(output_path) / network.name
    rows, cut, config, notes = read_record(folder)
    flags = network.saved["recipe"]
    if config and not is_of(flags, config["flags"]):
        note = f"{folder} is the record of another run than {place}; it is left out"
        return Run(network.name, place, None, network, flags, [], None, [note])
    if config:  # the kept weights may be from before a resume to more epochs
        flags = {**flags, **{flag: config["flags"].get(flag) for flag in checkpoint.LENGTH}}
    run = Run(network.name, place, folder, network, flags, rows, config.get("train_images"), notes, is_cut=cut)
    if rows and not cut and rows[-1]["epoch"] < run.planned_epochs:
        run.is_finished = False
        notes.append(f"{run.name} is unfinished: it has {rows[-1]['epoch']} of {run.planned_epochs} epochs")
    return run


def is_of(recipe, flags):
    """Whether the flags in a record are those of a network's recipe, but for what a resume may change."""
    ours, theirs = ({key: value for key, value in each.items() if key not in MAY_CHANGE} for each in (recipe, flags))
    return ours == theirs


def read_record(folder):
    """A run's metrics and whether the last were cut off, its config.json or {}, and what is missing, a line each."""
    rows, cut, config, notes = [], False, {}, []
    path = folder / "metrics.csv"
    try:
        rows, cut = read_metrics(path)
        if cut:
            notes.append(f"the last line of {path} is cut off and left out")
        elif not rows:
            notes.append(f"{path} is empty; it has no curves")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        notes.append(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); it has no curves")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        counts = (config["train_images"], config["flags"]["epochs"])
        if not all(isinstance(count, int) and count > 0 for count in counts):
            raise ValueError("these are no counts")
    except (OSError, ValueError, KeyError, TypeError):
        notes.append(f"{path} cannot be read; the number of training images is not known")
        config = {}
    return rows, cut, config, notes


def find_checkpoint(path, model_path):
    """The checkpoint that a user means by `path`."""
    same_name = model_path / path.name
    for file in (path, path / "best.pt", same_name / "best.pt"):
        if file.is_file():
            return file
    if path.is_dir():
        raise UserError(f"{path} is no run: it holds no best.pt, and there is no {same_name / 'best.pt'}")
    raise UserError(f"there is no run {path}; name its folder under {model_path}, or a checkpoint")


def read_metrics(path):
    """The rows of a metrics.csv, numbers or None, and whether its last line was cut off, as by a crash."""
    text = path.read_text()
    lines = text.splitlines()
    cut = bool(lines) and not text.endswith("\n")
    rows = list(csv.DictReader(lines[:-1] if cut else lines))
    numbers = [{key: float(value) if value else None for key, value in row.items()} for row in rows]
    for row in numbers:
        row["epoch"] = int(row["epoch"])
    return numbers, cut


def measure(run, test, batch_size):
    """Fill in a run's full test: an earlier one of this checkpoint on these images, or one made now.

    Without test images (None) only the former will do, and nothing is filled in if there is none.

    Raises:
        UserError: the images are not of the network's classes, or what was measured could not be written down.
    """
    adopted = test and run.network.adopt(test)
    if run.output_folder:
        run.measured = results.load(run.output_folder, run.network, run.checkpoint_path, adopted)
    if test and not run.measured:
        run.measured = results.measure(run.network, run.checkpoint_path, adopted, batch_size)
        if run.output_folder:
            results.write(run.measured, run.network, adopted, run.output_folder)


def forward_flops(config):
    """Floating-point operations of matrix products and convolutions for one image."""
    with torch.device("meta"):
        model = build_model(config)
        images = torch.empty(1, config.get("in_chans", 3), config["img_size"], config["img_size"])
    if isinstance(model, VisionTransformer):
        for block in model.blocks:
            block.attn.fused_attn = False  # the counter does not know every fused kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images)
    return counter.get_total_flops()


def summarize(run):
    """A run as plain numbers, None where they are not known. Shares are of 1."""
    saved, rows, measured = run.network.saved, run.rows, run.results or {}
    seconds = [row.get("train_seconds") for row in rows]
    rates = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    return {
        "run": run.name,
        "network": run.kind,
        "dataset": saved["dataset"],
        "parameters": count_parameters(run.network.model),
        "flops": forward_flops(saved["model_config"]),
        "train_images": run.train_images,
        "epochs": rows[-1]["epoch"] if rows else None,
        "kept_epoch": saved["epoch"],
        "planned_epochs": run.planned_epochs,
        "train_seconds": sum(seconds) if seconds and None not in seconds and not run.is_cut else None,
        "images_per_second": statistics.median(rates) if rates else None,
        "test_images": measured.get("images"),
        "accuracy": measured.get("accuracy"),
        "accuracy_low": measured.get("accuracy_interval", [None])[0],
        "accuracy_high": measured.get("accuracy_interval", [None])[-1],
        "final_accuracy": rows[-1].get("test_accuracy") if rows and has_whole_test(run) else None,
        "loss": measured.get("loss"),
        "weighted_f1": measured.get("weighted", {}).get("f1"),
        "calibration_error": measured.get("calibration", {}).get("error"),
    }


def has_whole_test(run):
    """Whether the run's epochs were measured on all test images, as its full test is."""
    return run.flags.get("num_test_images") is None


def compare_pairs(runs):
    """Each two measured runs with the same test images: by how much they differ, and McNemar's test; plain values."""
    pairs = []
    for one, other in itertools.combinations([run for run in runs if run.measured], 2):
        if same_images(one, other):
            right = [run.measured.logits.argmax(dim=1) == run.measured.labels for run in (one, other)]
            only_one, only_other, p_value = mcnemar(*right)
            difference, (low, high) = paired_difference(only_one, only_other, len(right[0]))
            pairs.append(
                {
                    "one": one.name,
                    "other": other.name,
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "only_one": only_one,
                    "only_other": only_other,
                    "p": p_value,
                }
            )
    return pairs


def same_images(one, other):
    """Whether two measured runs saw the same test images, be it in two sizes."""
    if (one.dataset, one.network.classes) != (other.dataset, other.network.classes):
        return False
    if not torch.equal(one.measured.labels, other.measured.labels):
        return False
    has_one_size = one.network.image_size == other.network.image_size
    return not has_one_size or one.results["test_sha256"] == other.results["test_sha256"]


def group_images(runs):
    """Measured runs that saw the same test images, together: lists of runs, in the order of their first."""
    groups = []
    for run in filter(lambda run: run.measured, runs):
        known = next((group for group in groups if same_images(group[0], run)), None)
        if known is None:
            groups.append([run])
        else:
            known.append(run)
    return groups


def group_seeds(runs):
    """Finished runs that differ in their seed alone, together: lists of runs, in the order of their first."""
    groups = {}
    for run in runs:
        seed, others = run.flags.get("seed"), groups.setdefault(run.recipe(), [])
        if not run.is_finished or any(other.flags.get("seed") == seed for other in others):
            groups[run.name] = [run]  # the same seed again says nothing of others
        else:
            others.append(run)
    return [group for group in groups.values() if group]


def summarize_group(rows):
    """Mean and sample deviation over several seeds' rows, {column: (mean, deviation)}, of what all of them know."""
    known = {column: [row[column] for row in rows] for column in GROUP_COLUMNS}
    return {
        column: (statistics.mean(values), statistics.stdev(values))
        for column, values in known.items()
        if None not in values
    }


def most_unlike(runs):
    """The two runs whose disagreements are worth a look: the best ViT and the best CNN, or else the best two.

    None where fewer than two have been measured on the same images.
    """
    measured = sorted((run for run in runs if run.measured), key=lambda run: -run.results["accuracy"])
    pairs = [pair for pair in itertools.combinations(measured, 2) if same_images(*pair)]
    mixed = [pair for pair in pairs if pair[0].kind[:3] != pair[1].kind[:3]]
    return next(iter([*mixed, *pairs]), None)


def disagreements(one, other, count=4):
    """Indices of images that `one` gets right and `other` wrong, where both are surest of it, the surest first."""
    labels, logits = one.measured.labels, [run.measured.logits for run in (one, other)]
    confidence, predicted = zip(*(values.softmax(dim=1).max(dim=1) for values in logits), strict=True)
    chosen = (predicted[0] == labels) & (predicted[1] != labels)
    indices = chosen.nonzero().flatten()
    together = (confidence[0] + confidence[1])[indices]
    return indices[together.argsort(descending=True, stable=True)][:count].tolist()


def sample_sizes(runs):
    """Test accuracies of finished runs that differ in their number of training images.

    Runs that differ in anything else but the seed are another curve; only in their epochs they may differ too, if they
    make about as many steps.

    Returns:
        {network: {images: [(accuracy, low, high), ...]}}, shares with their 95 % intervals.
    """
    known = [run for run in runs if run.measured and run.train_images and run.is_finished]
    curves = []
    for alike in grouped(known, lambda run: run.recipe(but={"num_train_images", *checkpoint.LENGTH})):
        as_long = grouped(alike, lambda run: run.recipe(but={"num_train_images"}))
        counts = [count for part in as_long for count in {run.train_images for run in part}]
        steps = [count_steps(run) for run in alike]
        is_one = len(counts) == len(set(counts)) and max(steps) <= 1.25 * min(steps)
        curves += [alike] if is_one else as_long
    sizes = {}
    for members in curves:
        by_size = {}
        for run in members:
            found = (run.results["accuracy"], *run.results["accuracy_interval"])
            by_size.setdefault(run.train_images, []).append(found)
        name = members[0].kind
        epochs = sorted({run.planned_epochs for run in members})
        name += f", {epochs[0]:,} to {epochs[-1]:,} epochs" if len(epochs) > 1 else ""
        sizes[name if name not in sizes else f"{name} ({members[0].name})"] = by_size
    return sizes


def count_steps(run):
    """Updates of the weights in all of a run's epochs."""
    batch = min(run.flags.get("batch_size", 1), run.train_images)
    return run.planned_epochs * (run.train_images // batch)


def grouped(runs, key):
    """Lists of runs with the same key, in the order of their first."""
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())
