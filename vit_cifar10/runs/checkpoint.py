"""The checkpoint format: written atomically, and safe to read.

A checkpoint is a plain dict of tensors, numbers, strings, lists and dicts. `torch.load(weights_only=True)` reads it,
and it cannot run any code. `model/<run>/best.pt` holds everything that inference needs:

    format          1
    model_config    the argument of `build_model`; the architecture always comes from here, never from flags. Arguments
                    that only convert.py sets are left out if they have their defaults
    weights         the network's state dict on the CPU: float32, or float16 in the networks that ship
    classes         class names, in the order of the logits
    mean, std       normalization of the images, three numbers each
    dataset         name of the data set that the network was trained on, or whose images a converted one takes
    epoch, metrics  number of complete epochs, and the last one's row of metrics.csv, with any columns
    recipe          every flag of the run; in a network that convert.py has read, only where it is from, as
                    converted_from, and resize, with epoch 0 and no metrics
    init            name and SHA-256 of the checkpoint that the run started from; only in fine-tuned runs
    images          of a user's own images: `seen`, the hashes of those that it was trained or validated on, and `test`,
                    a hash of all test images or None; see `Split` in data/dataset.py
    teacher         name, SHA-256 and operations per image of the network that taught it; only in distilled runs

`model/<run>/last.pt` holds the same entries as of the last save, which may be in the middle of an epoch. Its entry
`training` holds everything else that an exact resume needs. `model/<run>/previous.pt` is the save before last.pt, in
case last.pt is damaged.

Entries that this version does not know are kept.
"""

import dataclasses
import hashlib
import sys
from pathlib import Path

import torch

from model import build_model, build_without_memory
from vit_cifar10.data import dataset
from vit_cifar10.data.classes import describe_match, match_classes
from vit_cifar10.data.folder import has_test_folder
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.runs.metrics_csv import EVALUATED_COLUMNS, is_evaluated
from vit_cifar10.runs.schema import CHECKPOINT, Invalid, check
from vit_cifar10.runs.untrusted import load_untrusted
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.tensors import save_tensors
from vit_cifar10.utils.text import one_line, printable, shorten

FORMAT = 1
REQUIRED = {field for field in CHECKPOINT if isinstance(field, str) and not field.endswith("?")}
BEST, LAST, PREVIOUS = NAMES = ("best.pt", "last.pt", "previous.pt")


def save(path, checkpoint, previous=None):
    """Write a checkpoint atomically. With `previous`, keep the old file under that name.

    Raises:
        UserError: it cannot be written. The old file is still there.
    """
    save_tensors(path, {"format": FORMAT, **checkpoint}, previous)


def load_last(path):
    """The checkpoint to resume from: last.pt in a run's folder or, if it is damaged, previous.pt with a warning.

    Its entry "is_older" is True if it is previous.pt, else False.

    Raises:
        UserError: neither file can be read, or the file has no training state.
    """
    path = Path(path)
    path = path / LAST if path.is_dir() else path
    previous = path.with_name(PREVIOUS)
    if not path.exists() and path.with_name(BEST).exists() and not previous.exists():
        raise UserError(f"{path.parent} has no {LAST}, so it cannot be resumed; use its {BEST} with test.py")
    try:
        checkpoint = load(path)
        checkpoint["is_older"] = path.name == PREVIOUS
    except UserError as error:
        if path.name != LAST or not previous.exists():
            raise
        try:
            checkpoint = load(previous)
        except UserError as other:
            raise UserError(f"{error}; {other}") from error
        checkpoint["is_older"] = True
        print(one_line(f"warning: {error}; resuming from {previous.name}, which is older"), file=sys.stderr)
    if "training" not in checkpoint:
        raise UserError(f"{path} has no training state; give the run's folder or its {LAST}")
    return checkpoint


def load(path, name=BEST, digest=None):
    """Read a checkpoint onto the CPU. `path` is the file, or a run's folder that contains the file `name`.

    `digest`, from hashlib, is updated with the bytes that are read; later, the file may be another one.

    Untrusted checkpoints are safe to load: only tensors and plain values of the expected types and ranges are accepted.

    Raises:
        UserError: the file does not exist, is damaged, or is not a checkpoint of this project, or its weights do not
            fit the network that it describes.
    """
    path = Path(path)
    if path.is_dir():
        path = path / name
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train a network with train.py or check the path")
    checkpoint = load_untrusted(path, digest)
    if not isinstance(checkpoint, dict) or REQUIRED - checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of this project; choose a best.pt that train.py has written")
    if isinstance(checkpoint["format"], int) and checkpoint["format"] != FORMAT:
        raise UserError(f"{path} has an unknown format; this version reads format {FORMAT}, so train it again")
    try:
        check(checkpoint, CHECKPOINT)
        check_counts(checkpoint)
    except Invalid as error:
        raise UserError(f"{path} is refused: {error}; train it again") from error
    check_weights(path, checkpoint)
    return checkpoint


def check_counts(checkpoint):
    """Raise `Invalid` if entries of a checkpoint do not fit each other."""
    if checkpoint["model_config"]["num_classes"] != len(checkpoint["classes"]):
        raise Invalid("model_config.num_classes", "the number of classes")
    kept = checkpoint["training"]["best"] if "training" in checkpoint else checkpoint["metrics"]
    if kept and not is_evaluated(kept):
        raise Invalid("test_accuracy", "a number in the epoch that was kept")
    if "training" in checkpoint:
        epochs = [row["epoch"] for row in checkpoint["training"]["rows"]]
        if epochs != list(range(1, checkpoint["epoch"] + 1)):
            raise Invalid("training.rows", "a list of one row per epoch")
        rows = [*checkpoint["training"]["rows"], checkpoint["training"]["best"], checkpoint["metrics"]]
        for row in rows:
            if row and not is_evaluated(row) and any(row.get(column) is not None for column in EVALUATED_COLUMNS):
                raise Invalid("test_accuracy", "a number in every epoch that was evaluated")
        if len({row.get("val_accuracy") is None for row in rows if row and is_evaluated(row)}) > 1:
            raise Invalid("val_accuracy", "None in either all rows or none")


def check_weights(path, checkpoint):
    """Raise `UserError` if a checkpoint's weights do not fit the network that it describes.

    A network that is larger than what the file contains is never built.
    """
    try:
        build_without_memory(checkpoint["model_config"]).load_state_dict(checkpoint["weights"], assign=True)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"the weights in {path} do not fit the network it describes ({reason})") from error


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network and everything that is needed to classify an image.

    `name` is the name of the run's folder; characters that cannot be printed are replaced.
    `mean` and `std`, float (3,), are on its device. `saved` is the checkpoint without its weights, and `sha256` the
    hash of its file when it was read. `tested_on` is the data set of its test images, if it is not its own. `resize`
    is what is done to images that are not square; see `fit_square` in data/images.py.
    """

    name: str
    model: torch.nn.Module
    device: torch.device
    classes: list
    mean: torch.Tensor
    std: torch.Tensor
    saved: dict
    sha256: str
    tested_on: str | None = None
    resize: str = "crop"

    @property
    def dataset(self):
        """The name of the data set of its test images."""
        return self.tested_on or self.saved["dataset"]

    @property
    def origin(self):
        """Where the network comes from, such as "trained on cifar10"."""
        source = self.saved["recipe"].get("converted_from")
        return f"converted from {shorten(str(source))}" if source else f"trained on {self.saved['dataset']}"

    @property
    def image_size(self):
        return self.saved["model_config"]["img_size"]

    def prepare(self, images):
        """uint8 (..., 3, H, W) -> the normalized input of the network, float, on its device."""
        return dataset.normalize(images.to(self.device), self.mean, self.std)

    def logits(self, images):
        """The logits, float (N, C), of uint8 images (N, 3, H, W).

        Raises:
            UserError: they are not finite.
        """
        with torch.inference_mode():
            logits = self.model(self.prepare(images))
        self.check_finite(logits)
        return logits

    def untrained_weights(self, seed):
        """The state dict of this network before its training, with random weights, on the CPU."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(self.saved["model_config"]).state_dict()

    def check_finite(self, logits):
        """Raise `UserError` if logits of this network are not finite."""
        if not logits.isfinite().all():
            raise UserError(f"the logits of {self.name} are not finite; its weights are damaged, so train it again")

    def load_test_images(self, data_path, num_images=None, num_workers=2, seen=None):
        """The test split of the network's data set, at its image size.

        `num_images` is the size of a stratified subset; None takes all images. `seen` are the hashes of the user's own
        images that were used in trainings, by default in this network's. They decide what is tested; see `read_test` in
        data/folder.py. One line reports if the images are others than those that the network's training tested.

        Raises:
            UserError: there are none, or it is not known which ones the network was trained on.
        """
        is_own = DATASETS[self.dataset].test_reader is not None
        record = self.saved.get("images") if is_own and not self.tested_on else None
        was_trained_on = is_own and not self.tested_on and "converted_from" not in self.saved["recipe"]
        if was_trained_on and not record and not has_test_folder(data_path):
            raise UserError(
                f"{self.name} is from an earlier version, which did not record its training images; move the images to"
                f" test it on to {Path(data_path) / 'test'}/CLASS/, or train it again"
            )
        test = dataset.load_test(
            self.dataset,
            data_path,
            image_size=self.image_size,
            num_images=num_images,
            num_workers=num_workers,
            resize=self.resize,
            seen=(self.seen if seen is None else seen) if is_own else None,
        )
        if record and record["test"] and not num_images and test.files_hash != record["test"]:
            text = f"the {len(test)} test images in {data_path} are others than those of the training of {self.name}"
            print(one_line(f"note: {text}"), file=sys.stderr)
        return test

    @property
    def seen(self):
        """The hashes of the user's own images that the network was trained or validated on, as far as recorded."""
        return set(seen_images(self.saved).tolist())

    def normalized_for(self, split):
        """The split on the network's device, with the network's classes and the mean and std of its training images.

        A match of classes that are not equal is reported on standard error.

        Raises:
            UserError: its classes do not fit the network's.
        """
        in_order = not DATASETS[self.dataset].is_own
        places, how = match_classes(split.classes, self.classes, in_order)
        if how:
            print(one_line(describe_match(split.classes, self.classes, places, how)), file=sys.stderr)
        labels = torch.tensor(places)[split.labels.cpu()]
        split = dataclasses.replace(split, labels=labels, classes=tuple(self.classes))
        return dataclasses.replace(split.to(self.device), mean=self.mean, std=self.std)


def load_network(path, device):
    """The network in a checkpoint, or in best.pt of a run's folder, in evaluation mode on `device`.

    Raises:
        UserError: `load` fails.
    """
    digest = hashlib.sha256()
    saved = load(path, digest=digest)
    model = build_without_memory(saved["model_config"])  # drawing random weights would take longer than loading these
    weights = saved.pop("weights")
    for name, value in model.state_dict().items():
        memory = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        weights[name] = memory.copy_(weights[name])
    model.load_state_dict(weights, assign=True)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return Network(
        name=printable(folder.resolve().name),
        model=model.to(device).eval(),
        device=device,
        classes=saved["classes"],
        mean=torch.tensor(saved["mean"], device=device),
        std=torch.tensor(saved["std"], device=device),
        saved=saved,
        sha256=digest.hexdigest(),
        resize=saved["recipe"].get("resize", "crop"),
    )


def seen_images(saved):
    """The hashes of a user's own images in a checkpoint that were used in trainings, int64 (N,)."""
    return saved["images"]["seen"].long().flatten() if "images" in saved else torch.empty(0, dtype=torch.int64)


def hash_file(path):
    """SHA-256 of a checkpoint file. Raises `UserError` if it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path") from error


def cpu_weights(model):
    """A copy of a network's state dict on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
