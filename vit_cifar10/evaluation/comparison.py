"""Several runs side by side: their records, their tests on the same images, and the significance of differences.

runs = [load_trained_run(path, "model", "output", device) for path in paths]
rows = [summarize(run) for run in runs]             # plain numbers per run
pairs = compare_pairs(runs)                         # McNemar's test of each pair
"""

import dataclasses
import functools
import itertools
import json
import os
import statistics

import torch

from model import count_flops, count_parameters
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.evaluation.full_test import FullTest, load_full_test, run_full_test, write_full_test
from vit_cifar10.evaluation.metrics import mcnemar, paired_difference, wilson_interval
from vit_cifar10.flags.train import build_parser
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import LENGTH_FLAGS, RUNTIME_FLAGS, Run, find_run, is_same_run

# Flags that may differ between runs of one recipe with several seeds.
NOT_IN_RECIPE = {"seed", "run_name", "overwrite", "num_test_images", *RUNTIME_FLAGS}
GROUP_COLUMNS = ("accuracy", "final_accuracy", "weighted_f1", "calibration_error", "train_seconds")


@dataclasses.dataclass
class TrainedRun:
    """A run with its network and its record.

    Attributes:
        flags: the flags of the run, with the final values of `LENGTH_FLAGS`.
        epochs: the rows of metrics.csv.
        train_images: number of training images, None if unknown.
        notes: what is missing, one line each.
        has_record: whether the folder under output/ belongs to this run.
        is_finished: whether the run has all its epochs; True if unknown.
        is_cut: whether the last line of metrics.csv is cut off and left out.
        tested: the full test of the run, None until there is one.
    """

    run: Run
    network: checkpoint.Network
    flags: dict
    epochs: list
    train_images: int | None
    notes: list
    has_record: bool = True
    is_finished: bool = True
    is_cut: bool = False
    tested: FullTest | None = None

    @property
    def name(self):
        return self.network.name

    @property
    def checkpoint_path(self):
        return self.run.checkpoint_path

    @property
    def results(self):
        return self.tested and self.tested.results

    @property
    def planned_epochs(self):
        return self.flags.get("epochs", 0)

    @property
    def dataset(self):
        return self.network.saved["dataset"]

    @property
    def kind(self):
        """The network in a few words."""
        taught = f", distilled from {self.teacher['name']}" if self.teacher else ""
        return self.network.model.describe() + (", fine-tuned" if self.init else "") + taught

    @property
    def init(self):
        """The name and the hash of the checkpoint that a fine-tuning started from; None for other runs."""
        return self.network.saved.get("init")

    @property
    def teacher(self):
        """The name, the hash and the operations of the network that taught this one; None for other runs."""
        return self.network.saved.get("teacher")

    @property
    def has_whole_test(self):
        """Whether the epochs were evaluated on all test images, as the full test is."""
        return self.flags.get("num_test_images") is None

    def recipe(self, without=()):
        """All settings that seeds of one recipe have in common, except for the flags in `without`, as a string.

        A run of an earlier version lacks the flags that were added since. They count as having their defaults.
        """
        flags = {**default_flags(), **self.flags}
        flags = {key: value for key, value in flags.items() if key not in NOT_IN_RECIPE | set(without)}
        folder = self.flags.get("data_path") if DATASETS[self.dataset].is_own else None  # it determines the images
        folder = folder and os.path.abspath(folder)
        sources = [self.init, self.teacher]
        recipe = [self.network.saved["model_config"], sources, self.dataset, folder, self.network.classes, flags]
        return json.dumps(with_floats(recipe), sort_keys=True, default=str)


def with_floats(value):
    """Plain values with all numbers as floats, because a resumed run has 4.0 where the run began with 4."""
    if isinstance(value, dict):
        return {key: with_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@functools.cache
def default_flags():
    """The default of every flag of train.py, {name: value}."""
    return vars(build_parser().parse_args([]))


def load_trained_run(typed, model_path, output_path, device):
    """Load the run that a user means by a folder under model/ or output/, a checkpoint in it, or its name.

    Raises:
        UserError: there is no such run, or its checkpoint is damaged.
    """
    run = find_run(typed, model_path, output_path)
    network = checkpoint.load_network(run.checkpoint_path, device)
    epochs, is_cut, config, notes = read_record(run)
    flags = network.saved["recipe"]
    if "converted_from" in flags:
        note = f"{network.name} was {network.origin}, so it has no curves, and its training images are unknown"
        return TrainedRun(run, network, flags, epochs=[], train_images=None, notes=[note])
    if config and not is_same_run(flags, config["flags"]):
        note = f"{run.output_folder} is the record of a run other than {run.checkpoint_path}, so it is left out"
        return TrainedRun(run, network, flags, epochs=[], train_images=None, notes=[note], has_record=False)
    if config:  # a resume may have raised the number of epochs after these weights were saved
        flags = {**flags, **{flag: config["flags"].get(flag) for flag in LENGTH_FLAGS}}
    trained = TrainedRun(run, network, flags, epochs, config.get("train_images"), notes, is_cut=is_cut)
    if epochs and epochs[-1]["epoch"] + is_cut < trained.planned_epochs:
        trained.is_finished = False
        notes.append(f"{trained.name} is unfinished: it has {epochs[-1]['epoch']} of {trained.planned_epochs} epochs")
    if trained.teacher:
        teacher = trained.teacher["name"]
        notes.append(
            f"{trained.name} was also taught by {teacher}; its times exclude {teacher}'s training, and what it shows"
            " about its kind of network is mixed with what its teacher knew"
        )
    if trained.init:
        source = trained.init["name"]
        notes.append(f"{trained.name} was fine-tuned from {source}; its epochs and times exclude {source}'s training")
    return trained


def read_record(run):
    """A run's epochs, whether the last one was cut off, its config.json or {}, and a list of what is missing."""
    epochs, is_cut, config, notes = [], False, {}, []
    try:
        epochs, is_cut = run.read_metrics()
        if is_cut:
            notes.append(f"the last line of {run.metrics_path} is cut off and left out")
        elif not epochs:
            notes.append(f"{run.metrics_path} is empty, so there are no curves")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        notes.append(f"{run.metrics_path} cannot be read ({reason}), so there are no curves")
    try:
        config = run.read_config()
    except (OSError, ValueError):
        notes.append(f"{run.config_path} cannot be read, so the number of training images is unknown")
    return epochs, is_cut, config, notes


def ensure_tested(trained, test, batch_size):
    """Set `trained.tested` to an earlier full test of its checkpoint on these images, or test it now.

    If `test` is None, an earlier test on any images is used, if there is one.

    Raises:
        UserError: the images do not have the network's classes, or the results cannot be written.
    """
    test = test and trained.network.normalized_for(test)
    path, folder = trained.checkpoint_path, trained.run.output_folder
    if trained.has_record:
        trained.tested = load_full_test(folder, trained.network, path, test)
    if test and not trained.tested:
        trained.tested = run_full_test(trained.network, path, test, batch_size)
        if trained.has_record:
            write_full_test(trained.tested, trained.network, test, folder)


def summarize(run):
    """A run as plain numbers, None where they are unknown. Accuracies, F1 and errors are fractions of 1."""
    saved, epochs, results = run.network.saved, run.epochs, run.results or {}
    seconds = [metrics.get("train_seconds") for metrics in epochs]
    rates = [metrics["images_per_second"] for metrics in epochs if metrics.get("images_per_second")]
    return {
        "run": run.name,
        "network": run.kind,
        "dataset": saved["dataset"],
        "parameters": count_parameters(run.network.model),
        "flops": count_flops(saved["model_config"]),
        "train_images": run.train_images,
        "epochs": epochs[-1]["epoch"] if epochs else None,
        "kept_epoch": saved["epoch"],
        "planned_epochs": run.planned_epochs,
        "train_seconds": sum(seconds) if seconds and None not in seconds and not run.is_cut else None,
        "images_per_second": statistics.harmonic_mean(rates) if rates else None,  # all images by their time
        "test_images": results.get("images"),
        "accuracy": results.get("accuracy"),
        "accuracy_low": results.get("accuracy_interval", [None])[0],
        "accuracy_high": results.get("accuracy_interval", [None])[-1],
        "final_accuracy": epochs[-1].get("test_accuracy") if epochs and run.has_whole_test else None,
        "loss": results.get("loss"),
        "weighted_f1": results.get("weighted", {}).get("f1"),
        "calibration_error": results.get("calibration", {}).get("error"),
    }


def compare_pairs(runs):
    """The difference in accuracy and McNemar's test of each pair of runs with the same test images, plain values."""
    pairs = []
    for one, other in itertools.combinations([run for run in runs if run.tested], 2):
        if same_images(one, other):
            correct = [run.tested.logits.argmax(dim=1) == run.tested.labels for run in (one, other)]
            only_one, only_other, p_value = mcnemar(*correct)
            difference, (low, high) = paired_difference(only_one, only_other, len(correct[0]))
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
    """Whether two runs were tested on the same images, possibly at different sizes, or cut by one and not the other."""
    if (one.dataset, one.network.classes) != (other.dataset, other.network.classes):
        return False
    if not torch.equal(one.tested.labels, other.tested.labels):
        return False
    one_view, other_view = ((run.network.image_size, run.network.resize) for run in (one, other))
    return one_view != other_view or one.results["test_sha256"] == other.results["test_sha256"]


def group_by_images(runs):
    """Lists of two or more runs that were tested on the same images, in the order of their first run."""
    groups = []
    for run in filter(lambda run: run.tested, runs):
        group = next((group for group in groups if same_images(group[0], run)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [group for group in groups if len(group) > 1]


def class_recalls(runs):
    """Each class's recall in every run: [{"class": name, "recall": {run: fraction}}, ...]."""
    recalls = {run.name: recall(run) for run in runs}
    return [
        {"class": name, "recall": {run: values[place] for run, values in recalls.items()}}
        for place, name in enumerate(runs[0].network.classes)
    ]


def recall(run):
    return run.results["by_class"]["recall"]


def mean_recalls(seeds):
    """The mean recall of each class over runs on the same images, with its interval: [(recall, low, high), ...].

    The interval is about the images of the class, not about other seeds.
    """
    support = seeds[0].results["by_class"]["support"]
    means = [statistics.mean(values) for values in zip(*map(recall, seeds), strict=True)]
    return [(mean, *wilson_interval(mean, max(1, count))) for mean, count in zip(means, support, strict=True)]


def group_seeds(runs):
    """Lists of finished runs that differ only in their seed, in the order of their first run."""
    groups = {}
    for run in runs:
        seed, others = run.flags.get("seed"), groups.setdefault(run.recipe(), [])
        if not run.is_finished or any(other.flags.get("seed") == seed for other in others):
            groups[run.name] = [run]  # a repeated seed does not show how much seeds differ
        else:
            others.append(run)
    return [group for group in groups.values() if group]


def summarize_seeds(runs, rows):
    """Mean and sample standard deviation over the seeds of each recipe that has several.

    Returns:
        [{"runs": names, column: (mean, standard deviation), ...}], with the columns that are known for all seeds.
    """
    by_name = {row["run"]: row for row in rows}
    summaries = []
    for group in group_seeds(runs):
        if len(group) > 1:
            names = [run.name for run in group]
            columns = {column: [by_name[name][column] for name in names] for column in GROUP_COLUMNS}
            known = {column: values for column, values in columns.items() if None not in values}
            summaries.append({"runs": names, **{column: over_seeds(values) for column, values in known.items()}})
    return summaries


def over_seeds(values):
    """The mean and, of several values, the sample standard deviation: (mean,) or (mean, deviation)."""
    return (statistics.mean(values), *([statistics.stdev(values)] if len(values) > 1 else []))


def most_different(runs):
    """The pair whose disagreements are shown: the best ViT and the best CNN without a teacher, or the two best runs.

    None unless two runs were tested on the same images.
    """
    tested = sorted((run for run in runs if run.tested), key=lambda run: -run.results["accuracy"])
    pairs = [pair for pair in itertools.combinations(tested, 2) if same_images(*pair)]
    untaught = [pair for pair in pairs if not any(run.teacher for run in pair)]
    mixed = [(a, b) for a, b in untaught if a.network.model.has_attention != b.network.model.has_attention]
    return next(iter([*mixed, *pairs]), None)


def disagreements(one, other, count=4):
    """Indices of up to `count` images that `one` gets right and `other` gets wrong, the most confident ones first.

    They are sorted by the sum of both confidences.
    """
    labels, logits = one.tested.labels, [run.tested.logits for run in (one, other)]
    confidence, predicted = zip(*(values.softmax(dim=1).max(dim=1) for values in logits), strict=True)
    is_disagreement = (predicted[0] == labels) & (predicted[1] != labels)
    indices = is_disagreement.nonzero().flatten()
    total = (confidence[0] + confidence[1])[indices]
    return indices[total.argsort(descending=True, stable=True)][:count].tolist()


def sample_sizes(runs):
    """Test accuracies of finished runs, by their number of training images.

    Each curve holds runs that differ only in that number and the seed. They may also differ in their epochs if they
    take about the same number of steps.

    Returns:
        {network: {images: [(accuracy, low, high), ...]}}, fractions with 95 % intervals.
    """
    known = [run for run in runs if run.tested and run.train_images and run.is_finished]
    curves = []
    for alike in group_by(known, lambda run: run.recipe(without={"num_train_images", *LENGTH_FLAGS})):
        same_epochs = group_by(alike, lambda run: run.recipe(without={"num_train_images"}))
        counts = [count for part in same_epochs for count in {run.train_images for run in part}]
        steps = [count_steps(run) for run in alike]
        is_one_curve = len(counts) == len(set(counts)) and max(steps) <= 1.25 * min(steps)
        curves += [alike] if is_one_curve else same_epochs
    sizes = {}
    for members in curves:
        by_size = {}
        for run in members:
            point = (run.results["accuracy"], *run.results["accuracy_interval"])
            by_size.setdefault(run.train_images, []).append(point)
        name = members[0].kind
        epochs = sorted({run.planned_epochs for run in members})
        name += f", {epochs[0]:,} to {epochs[-1]:,} epochs" if len(epochs) > 1 else ""
        sizes[name if name not in sizes else f"{name} ({members[0].name})"] = by_size
    return sizes


def count_steps(run):
    """Number of updates of the weights in all of a run's epochs."""
    batch = min(run.flags.get("batch_size", 1), run.train_images)
    return run.planned_epochs * (run.train_images // batch)


def group_by(runs, key):
    """Lists of runs with the same key, in the order of their first run."""
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())
