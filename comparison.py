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

import checkpoint
from evaluate import mcnemar, paired_difference
from model import VisionTransformer, build_model
from record import count_parameters
from results import load_results, measure_network
from runtime import UserError

# What may differ between runs that are one recipe with several seeds.
NOT_THE_RECIPE = {"seed", "run_name", "overwrite", "num_test_images", *checkpoint.CIRCUMSTANCES}
LENGTH = {"epochs", "warmup_epochs"}  # how long a run takes
GROUP_COLUMNS = ("accuracy", "final_accuracy", "weighted_f1", "calibration_error", "train_seconds")


@dataclasses.dataclass
class Run:
    """One trained network with its record; `logits` and `results` are those of its full test, once it is measured.

    `notes` says what is missing, a line each.
    """

    name: str
    checkpoint_path: Path
    output_folder: Path
    network: checkpoint.Network
    rows: list
    config: dict
    notes: list
    results: dict = None
    logits: torch.Tensor = None
    labels: torch.Tensor = None

    def recipe(self, but=()):
        """What runs of several seeds have in common, as a string, without the flags in `but`."""
        saved = self.network.saved
        flags = {key: value for key, value in saved["recipe"].items() if key not in NOT_THE_RECIPE | set(but)}
        return json.dumps([saved["model_config"], saved["dataset"], flags], sort_keys=True, default=str)

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
    output_folder = Path(output_path) / network.name
    notes, rows, config = [], [], {}
    try:
        rows, cut = read_metrics(output_folder / "metrics.csv")
        if cut:
            notes.append(f"the last line of {output_folder / 'metrics.csv'} is cut off and left out")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        notes.append(f"{output_folder / 'metrics.csv'} cannot be read ({reason}); it has no curves")
    if not rows and not notes:
        notes.append(f"{output_folder / 'metrics.csv'} is empty; it has no curves")
    try:
        config = json.loads((output_folder / "config.json").read_text())
    except (OSError, ValueError):
        notes.append(f"{output_folder / 'config.json'} cannot be read; the number of training images is not known")
    return Run(network.name, place, output_folder, network, rows, config, notes)


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
    """Fill in a run's results and logits: those of an earlier full test of this checkpoint, or of one now.

    Without test images (None) only the former will do, and nothing is filled in if there are none.
    """
    adopted = test and run.network.adopt(test)
    found = load_results(run.output_folder, run.checkpoint_path, test and test.labels.cpu())
    if found:
        run.results, run.logits, run.labels = found
    elif test:
        run.labels = test.labels.cpu()
        run.results, run.logits = measure_network(
            run.network, run.checkpoint_path, adopted, run.output_folder, batch_size
        )


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
    saved, rows, results = run.network.saved, run.rows, run.results or {}
    seconds = [row.get("train_seconds") for row in rows]
    rates = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    return {
        "run": run.name,
        "network": run.kind,
        "dataset": saved["dataset"],
        "parameters": count_parameters(run.network.model),
        "flops": forward_flops(saved["model_config"]),
        "train_images": run.config.get("train_images"),
        "epochs": rows[-1]["epoch"] if rows else None,
        "train_seconds": sum(seconds) if seconds and None not in seconds else None,
        "images_per_second": statistics.median(rates) if rates else None,
        "test_images": results.get("images"),
        "accuracy": results.get("accuracy"),
        "accuracy_low": results.get("accuracy_interval", [None])[0],
        "accuracy_high": results.get("accuracy_interval", [None])[-1],
        "final_accuracy": rows[-1].get("test_accuracy") if rows and is_of_all_images(run) else None,
        "loss": results.get("loss"),
        "weighted_f1": results.get("weighted", {}).get("f1"),
        "calibration_error": results.get("calibration", {}).get("error"),
    }


def is_of_all_images(run):
    """Whether the run's epochs were measured on as many test images as its full test has, as far as is known."""
    images = (run.config.get("test_images"), (run.results or {}).get("images"))
    return None in images or images[0] == images[1]


def compare_pairs(runs):
    """Each two measured runs with the same test images: by how much they differ, and McNemar's test; plain values."""
    pairs = []
    for one, other in itertools.combinations([run for run in runs if run.logits is not None], 2):
        if same_images(one, other):
            right = [run.logits.argmax(dim=1) == run.labels for run in (one, other)]
            only_one, only_other, p_value = mcnemar(*right)
            difference, (low, high) = paired_difference(only_one, only_other, len(one.labels))
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
    """Whether two measured runs saw the same test images."""
    return one.network.saved["dataset"] == other.network.saved["dataset"] and torch.equal(one.labels, other.labels)


def group_seeds(runs):
    """Runs that differ in their seed alone, together: lists of runs, in the order of their first."""
    groups = {}
    for run in runs:
        key = (run.recipe(), run.network.saved["dataset"])
        seed = run.network.saved["recipe"].get("seed")
        others = groups.setdefault(key, [])
        if any(other.network.saved["recipe"].get("seed") == seed for other in others):
            groups[run.name] = [run]  # the same seed again says nothing of others
        else:
            others.append(run)
    return list(groups.values())


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
    measured = sorted((run for run in runs if run.logits is not None), key=lambda run: -run.results["accuracy"])
    pairs = [pair for pair in itertools.combinations(measured, 2) if same_images(*pair)]
    mixed = [pair for pair in pairs if pair[0].kind[:3] != pair[1].kind[:3]]
    return next(iter([*mixed, *pairs]), None)


def disagreements(one, other, count=4):
    """Indices of images that `one` gets right and `other` wrong, where both are surest of it, the surest first."""
    confidence, predicted = zip(*(run.logits.softmax(dim=1).max(dim=1) for run in (one, other)), strict=True)
    chosen = (predicted[0] == one.labels) & (predicted[1] != one.labels)
    indices = chosen.nonzero().flatten()
    together = (confidence[0] + confidence[1])[indices]
    return indices[together.argsort(descending=True, stable=True)][:count].tolist()


def sample_sizes(runs):
    """Test accuracies of runs that differ in their number of training images: {network: {images: [accuracy, ...]}}.

    Runs that differ in anything else but the seed are another curve; only in how long they take they may differ too,
    as those that make as many steps of fewer images do.
    """
    known = [run for run in runs if run.results and run.config.get("train_images")]
    curves = []
    for alike in grouped(known, lambda run: run.recipe(but={"num_train_images", *LENGTH})):
        as_long = grouped(alike, lambda run: run.recipe(but={"num_train_images"}))
        counts = [count for part in as_long for count in {run.config["train_images"] for run in part}]
        curves += [alike] if len(counts) == len(set(counts)) else as_long
    sizes = {}
    for members in curves:
        by_size = {}
        for run in members:
            by_size.setdefault(run.config["train_images"], []).append(run.results["accuracy"])
        name = members[0].kind
        epochs = sorted({run.network.saved["recipe"].get("epochs", 0) for run in members})
        name += f", {epochs[0]:,} to {epochs[-1]:,} epochs" if len(epochs) > 1 else ""
        sizes[name if name not in sizes else f"{name} ({members[0].name})"] = by_size
    return sizes


def grouped(runs, key):
    """Lists of runs with the same key, in the order of their first."""
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())
