"""Train a Vision Transformer, or the baseline CNN, from scratch.

    python train.py --patch_size 4 --epochs 200                  # the ViT: 12 layers, 192 wide, 3 heads
    python train.py --model cnn --epochs 12                      # the CNN beside it
    python train.py --dataset shapes --epochs 3                  # a first try that downloads nothing
    python train.py @recipes/NAME.txt --seed 1                   # flags from a file; later ones win
    python train.py --resume model/RUN                           # go on where a run stopped

Writes model/RUN/best.pt (for test.py) and last.pt (for --resume), and metrics.csv, curves.png and config.json under
output/RUN/. The validation images, held out of the training images, choose the best epoch; the test images never do.
"""

import hashlib
import math
import shlex
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

import checkpoint
import dataset
from augment import POLICIES, Augment
from evaluate import predict, scores
from model import NETWORKS, build_model
from optimizer import SCHEDULES, AveragedWeights, Schedule, build_optimizer
from record import count_parameters, open_record, write_config
from runtime import (
    ArgumentParser,
    UserError,
    autocast,
    command,
    device_label,
    number,
    pick_compile,
    pick_device,
    pick_precision,
    seed_everything,
    synchronize,
)
from tracking import PACKAGES, check_package, open_tracker

# What may differ when a run is resumed; everything else is the run's own.
RESUME_FLAGS = {"resume", "epochs", "device", "data_path", "num_workers", "model_path", "output_path", "compile", "log"}

LONG_RUN = 50  # epochs from which stronger augmentation pays

POSITIVE, NOT_NEGATIVE = number(int, at_least=1), number(float, at_least=0)
SHARE = number(float, at_least=0, below=1)


def build_parser():
    parser = ArgumentParser(
        prog="train.py",
        fromfile_prefix_chars="@",
        description="Train a Vision Transformer or a CNN on CIFAR-10 from scratch. @FILE reads flags from a file.",
    )
    for add_flags in (add_data_flags, add_network_flags, add_training_flags, add_augmentation_flags, add_run_flags):
        add_flags(parser)
    return parser


def add_data_flags(parser):
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        choices=dataset.DATASETS,
        default="cifar10",
        help="what to learn; folder: one sub-folder a class in --data_path; shapes: drawn, needs no download",
    )
    data.add_argument("--data_path", default="./data", help="where the data set is, or is downloaded to")
    data.add_argument(
        "--image_size",
        type=number(int, at_least=4),
        default=32,
        help="side of the images in pixels; others are resized",
    )
    data.add_argument("--n_classes", type=POSITIVE, help="number of classes; default: the data set's")
    data.add_argument(
        "--val_images",
        type=number(int, at_least=0),
        help=(
            "training images held out to choose the best epoch; 0 trains on all and keeps the last epoch; "
            "default: a tenth, 5000 of CIFAR-10"
        ),
    )
    data.add_argument(
        "--num_train_images", type=POSITIVE, help="train on so many images only, alike from each class; default: all"
    )
    data.add_argument(
        "--num_test_images", type=POSITIVE, help="test on so many images only, alike from each class; default: all"
    )
    data.add_argument(
        "--num_workers",
        type=number(int, at_least=0),
        default=2,
        help="processes that decode a folder of images; other data sets need none",
    )


def add_network_flags(parser):
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model", choices=tuple(NETWORKS), default="vit", help="vit: Vision Transformer; cnn: four convolutions"
    )
    network.add_argument(
        "--patch_size",
        type=POSITIVE,
        default=4,
        help="ViT: side of a patch in pixels; halving it makes four times as many tokens",
    )
    network.add_argument("--embed_dim", type=POSITIVE, default=192, help="ViT: width of a token")
    network.add_argument("--n_layers", type=POSITIVE, default=12, help="ViT: number of transformer blocks")
    network.add_argument(
        "--n_attention_heads", type=POSITIVE, default=3, help="ViT: heads of a block; they share the width out"
    )
    network.add_argument(
        "--forward_mul",
        type=number(float, above=0),
        default=4,
        help="ViT: hidden width of the MLP, as a multiple of --embed_dim",
    )
    network.add_argument(
        "--pool",
        choices=("token", "avg"),
        default="token",
        help="ViT: classify from a class token, or from the mean of the patches",
    )
    network.add_argument(
        "--width", type=POSITIVE, default=32, help="CNN: channels of the first convolution; all others follow"
    )
    network.add_argument(
        "--dropout",
        type=SHARE,
        help="share of activations zeroed while training; default: 0.1 for the ViT, 0.3 for the CNN",
    )
    network.add_argument(
        "--drop_path",
        type=SHARE,
        default=0.0,
        help=(
            "ViT: probability that an image skips the last block's branches, growing from 0 at the first; "
            "helps deep networks in long runs"
        ),
    )


def add_training_flags(parser):
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=POSITIVE, default=200, help="passes over the training images")
    training.add_argument(
        "--batch_size",
        type=POSITIVE,
        default=128,
        help="images a step; a large GPU is better used with 512 or 1024 and a higher learning rate",
    )
    training.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="muon: Muon for the hidden weight matrices, which learn in far fewer epochs, and AdamW for the rest",
    )
    training.add_argument("--learning_rate", type=number(float, above=0), default=5e-4, help="AdamW's, at its peak")
    training.add_argument(
        "--muon_learning_rate",
        type=number(float, above=0),
        default=0.01,
        help="Muon's, at its peak, with --optimizer muon",
    )
    training.add_argument(
        "--warmup_epochs",
        type=NOT_NEGATIVE,
        help=(
            "epochs in which the learning rate rises to its peak; default: 10, or a fifth of a short run; 30 "
            "%% of the run for onecycle"
        ),
    )
    training.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="cosine",
        help=("the learning rate after the warmup; plateau lowers it tenfold when the validation loss stops falling"),
    )
    training.add_argument(
        "--weight_decay", type=NOT_NEGATIVE, default=0.05, help="AdamW's decay of weight matrices and kernels"
    )
    training.add_argument("--muon_weight_decay", type=NOT_NEGATIVE, default=0.5, help="Muon's, with --optimizer muon")
    training.add_argument(
        "--label_smoothing", type=SHARE, default=0.0, help="share of the target spread over all classes"
    )
    training.add_argument(
        "--clip_grad", type=NOT_NEGATIVE, default=0.0, help="longest gradient, by its norm; 0 leaves it alone"
    )
    training.add_argument(
        "--ema",
        type=SHARE,
        default=0.0,
        help=(
            "decay of an exponential moving average of the weights, which is then evaluated and kept; 0.999 "
            "is usual, 0 is off"
        ),
    )


def add_augmentation_flags(parser):
    disturb = parser.add_argument_group("augmentation")
    disturb.add_argument(
        "--augment",
        choices=POLICIES,
        help=(
            "basic: crop and flip; randaugment and trivialaugment add stronger ones, which pay in long runs; "
            f"default: trivialaugment from {LONG_RUN} epochs on, else basic"
        ),
    )
    disturb.add_argument("--mixup", type=NOT_NEGATIVE, default=0.0, help="Mixup's alpha; 0.8 is usual, 0 is off")
    disturb.add_argument(
        "--cutmix",
        type=NOT_NEGATIVE,
        default=0.0,
        help="CutMix's alpha; 1 is usual, 0 is off; with --mixup, each image draws one of them",
    )
    disturb.add_argument(
        "--mix_prob",
        type=number(float, at_least=0, at_most=1),
        default=1.0,
        help="share of the images that --mixup and --cutmix mix",
    )
    disturb.add_argument(
        "--random_erasing",
        type=number(float, at_least=0, at_most=1),
        default=0.0,
        help="probability that a rectangle of an image is blanked",
    )


def add_run_flags(parser):
    run = parser.add_argument_group("run")
    run.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to train; auto takes cuda, then mps, then cpu",
    )
    run.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the forward pass; auto is bf16 on GPUs and processors built for it, fp16 on older GPUs, else fp32",
    )
    run.add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile the network: a minute at the start for faster steps; auto does on cuda",
    )
    run.add_argument(
        "--seed",
        type=number(int, at_least=0, at_most=2**31),
        default=0,
        help="of everything random; on the CPU two runs with one seed end with the same weights",
    )
    run.add_argument(
        "--run_name", help="name of the run's folders; default: such as vit-layer12-32-cifar10 and the time"
    )
    run.add_argument("--overwrite", action="store_true", help="replace an earlier run of the same --run_name")
    run.add_argument(
        "--resume",
        metavar="RUN",
        help=("go on with the run whose folder under model/ this is; all its flags are kept, --epochs may be raised"),
    )
    run.add_argument(
        "--log",
        choices=tuple(PACKAGES),
        default="none",
        help="also send metrics, flags and curves to TensorBoard (under --output_path) or Weights & Biases",
    )
    run.add_argument("--model_path", default="./model", help="folder for the runs' checkpoints")
    run.add_argument("--output_path", default="./output", help="folder for the runs' metrics and figures")


def parse(argv):
    """The flags, with those that follow from others filled in, and the checkpoint to resume from or None.

    Raises:
        UserError: flags that do not fit each other, or the run to resume.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    resumed = None
    if args.resume:
        if not Path(args.resume).exists() and (Path(args.model_path) / args.resume).exists():
            args.resume = str(Path(args.model_path) / args.resume)  # the bare name of a run
        resumed = checkpoint.load(args.resume, "last.pt")
        if "training" not in resumed:
            raise UserError(f"{args.resume} holds no training state; name the run's folder or its last.pt")
        parser.set_defaults(**resumed["recipe"])
        resume, args = args.resume, parser.parse_args(argv)
        args.resume = resume
        for flag, value in vars(args).items():
            if flag not in RESUME_FLAGS and value != resumed["recipe"].get(flag, value):
                raise UserError(f"--{flag} belongs to the resumed run and cannot change; leave it out")
        if args.epochs <= resumed["epoch"]:
            raise UserError(f"{args.resume} has its {resumed['epoch']} epochs; raise --epochs to train on")
    fill_in(args)
    check_package(args.log)
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup_epochs {args.warmup_epochs:g} leaves nothing of --epochs {args.epochs}; lower it")
    if args.schedule == "plateau" and args.val_images == 0:
        raise UserError("--schedule plateau watches the validation loss; it needs --val_images above 0")
    if args.run_name is not None and not is_folder_name(args.run_name):
        raise UserError(f"--run_name {args.run_name!r} cannot name a folder; use letters, digits, - and _, no path")
    try:
        with torch.device("meta"):  # allocates nothing; finds sizes that do not fit before any data is read
            build_model(model_config(args, num_classes=2))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{error} (see --image_size, --patch_size, --embed_dim, --n_attention_heads)") from error
    return args, resumed


def is_folder_name(name):
    """Whether a run of that name stays inside the folders of runs, on any file system."""
    fits = 0 < len(name.encode()) <= 200 and name.isprintable()
    return fits and name not in (".", "..") and not set(name) & set('/\\:*?"<>|')


def fill_in(args):
    """Set the flags whose defaults depend on other flags."""
    if args.warmup_epochs is None:
        args.warmup_epochs = 0.3 * args.epochs if args.schedule == "onecycle" else min(10, 0.2 * args.epochs)
    if args.dropout is None:
        args.dropout = 0.1 if args.model == "vit" else 0.3
    if args.augment is None:
        args.augment = "trivialaugment" if args.epochs >= LONG_RUN else "basic"


def model_config(args, num_classes):
    """What `build_model` takes, from the flags."""
    if args.model == "cnn":
        return {
            "model": "cnn",
            "img_size": args.image_size,
            "num_classes": num_classes,
            "width": args.width,
            "drop_rate": args.dropout,
        }
    return {
        "model": "vit",
        "img_size": args.image_size,
        "patch_size": args.patch_size,
        "num_classes": num_classes,
        "global_pool": args.pool,
        "class_token": args.pool == "token",
        "embed_dim": args.embed_dim,
        "depth": args.n_layers,
        "num_heads": args.n_attention_heads,
        "mlp_ratio": args.forward_mul,
        "drop_rate": args.dropout,
        "drop_path_rate": args.drop_path,
    }


class Trainer:
    """One run: the network, what moves its weights, and the passes over the images.

    Every epoch starts from a seed of its own, made from the run's and its number. So an epoch's draws (data order,
    augmentation, dropout) do not depend on what came before, and a resumed run draws what it would have drawn.
    """

    def __init__(self, args, splits, device):
        self.args = args
        self.device = device
        self.train_split, self.val_split, self.test_split = (
            None if split is None else split.to(device) for split in splits
        )
        self.num_classes = len(splits.train.classes)
        self.config = model_config(args, self.num_classes)
        seed_everything(args.seed)
        self.model = build_model(self.config).to(device)
        self.is_compiled = pick_compile(args.compile, device)
        self.is_warm = False
        self.forward = torch.compile(self.model) if self.is_compiled else self.model
        self.average = AveragedWeights(self.model, args.ema) if args.ema else None
        self.precision = pick_precision(args.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.augment = Augment(
            args.augment,
            self.train_split.mean,
            self.train_split.std,
            self.num_classes,
            args.mixup,
            args.cutmix,
            args.random_erasing,
            args.mix_prob,
            self.is_compiled,
        )
        self.batch_size = min(args.batch_size, len(self.train_split))
        self.steps_per_epoch = len(self.train_split) // self.batch_size
        muon = {"lr": args.muon_learning_rate, "weight_decay": args.muon_weight_decay, "compile": self.is_compiled}
        self.optimizer = build_optimizer(
            self.model, args.learning_rate, args.weight_decay, muon if args.optimizer == "muon" else None
        )
        self.schedule = Schedule(
            self.optimizer,
            args.schedule,
            args.epochs * self.steps_per_epoch,
            round(args.warmup_epochs * self.steps_per_epoch),
        )

    @property
    def evaluated_model(self):
        """The network that is measured and kept: the averaged one where there is one."""
        return self.average.module if self.average else self.model

    def images_per_epoch(self):
        return self.steps_per_epoch * self.batch_size

    def train_epoch(self, epoch, bar):
        """One pass over the training images, the incomplete last batch left out; returns a row of metrics.

        Sums stay on the device, which is waited for only when the bar is redrawn.
        """
        seed_everything(self.args.seed + 1_000_003 * epoch)
        self.model.train()
        loss_sum, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        start = shown = time.perf_counter()
        seen, untimed, step = 0, 0, (epoch - 1) * self.steps_per_epoch
        for images, labels in dataset.batches(self.train_split, self.batch_size, shuffle=True, drop_last=True):
            self.schedule.set(step)
            loss, hits = self.train_step(images, labels)
            loss_sum += loss * len(labels)
            correct += hits
            seen += len(labels)
            step += 1
            if not self.is_warm:  # the process's first step compiles and allocates; it does not count
                self.is_warm = True
                if seen < self.images_per_epoch():
                    synchronize(self.device)
                    start, untimed = time.perf_counter(), seen
            bar.update(len(labels))
            if time.perf_counter() - shown > 0.5 or seen == self.images_per_epoch():
                mean_loss = loss_sum.item() / seen
                self.position = f"epoch {epoch}, by step {step}"
                self.check_loss(mean_loss)
                accuracy = 100 * correct.item() / seen
                bar.set_postfix_str(
                    f"loss {mean_loss:.3f}, acc {accuracy:.1f} %, lr {self.learning_rate:.1e}", refresh=False
                )
                shown = time.perf_counter()
        synchronize(self.device)
        images_per_second = (seen - untimed) / (time.perf_counter() - start)
        return {
            "epoch": epoch,
            "train_loss": mean_loss,
            "train_accuracy": correct.item() / seen,
            "learning_rate": self.learning_rate,
            "images_per_second": images_per_second,
            "train_seconds": seen / images_per_second,
            "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None,
        }

    def train_step(self, images, labels):
        """One update of the weights; returns the loss and the number of images put right, both on the device."""
        inputs, targets = self.augment(images, labels)
        with autocast(self.device, self.precision):
            logits = self.forward(inputs)
            loss = F.cross_entropy(logits, targets, label_smoothing=self.args.label_smoothing)
        self.model.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.args.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()
        likeliest = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return loss.detach(), (logits.argmax(dim=1) == likeliest).sum()

    def check_loss(self, loss, split="train"):
        """Raises `UserError` before anything is saved if the loss is not finite."""
        if not math.isfinite(loss):
            flag = "--learning_rate" if self.args.optimizer == "adamw" else "--muon_learning_rate"
            rate = self.optimizer.param_groups[-1]["lr"]  # Muon's, where it takes part
            raise UserError(
                f"the {split} loss is not finite any more ({self.position}, learning rate {rate:.2e});"
                f" lower {flag}, lengthen --warmup_epochs, or try --clip_grad 1"
            )

    @property
    def learning_rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def evaluate(self):
        """Loss and accuracy on the validation and test images, as entries of a row of metrics."""
        row = {"val_loss": None, "val_accuracy": None}
        for name, split in (("val", self.val_split), ("test", self.test_split)):
            if split is not None:
                batch_size = min(1000, 4 * self.batch_size)
                logits = predict(self.evaluated_model, split, batch_size, self.precision)
                measured = scores(logits, split.labels)
                self.check_loss(measured["loss"], name)
                row |= {f"{name}_{quantity}": measured[quantity] for quantity in ("loss", "accuracy")}
        return row

    def inference_state(self, row):
        """The contents of best.pt for the weights as they are."""
        return {
            "model_config": self.config,
            "weights": checkpoint.cpu_weights(self.evaluated_model),
            "classes": list(self.train_split.classes),
            "mean": self.train_split.mean.tolist(),
            "std": self.train_split.std.tolist(),
            "dataset": self.args.dataset,
            "epoch": row["epoch"],
            "metrics": row,
            "recipe": vars(self.args),
        }

    def training_state(self):
        """What an exact resume needs beside `inference_state`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "data": self.fingerprint(),
        }

    def fingerprint(self):
        """What a resumed run must find again: the labels, and so the classes and images, of each split in order."""
        splits = (self.train_split, self.val_split, self.test_split)
        digest = hashlib.sha256(repr(self.train_split.classes).encode())
        for split in splits:
            if split is not None:
                digest.update(split.labels.cpu().numpy().tobytes())
                digest.update(str(split.images.sum().item()).encode())
        return digest.hexdigest()

    def load_training_state(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.scaler.is_enabled():  # empty in fp32 and bf16
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])


def check_same_data(trainer, resumed):
    """Raises `UserError` if the images are not those that the resumed run began with."""
    if trainer.fingerprint() != resumed["training"]["data"]:
        raise UserError(f"{trainer.args.data_path} does not hold the images this run began with; check --data_path")


def describe(row, epochs, seconds_left):
    """An epoch as a line of text."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val", "test"):
        if row[f"{split}_loss"] is not None:
            parts.append(f"{split} {row[f'{split}_loss']:.3f} {100 * row[f'{split}_accuracy']:5.2f} %")
    parts += [f"lr {row['learning_rate']:.1e}", f"{row['images_per_second']:,.0f} img/s"]
    return "  ".join(parts) + f"  left {tqdm.format_interval(seconds_left)}"


def fit(trainer, record, first_epoch):
    """Train to the last epoch, measuring and keeping as it goes."""
    epochs, start = trainer.args.epochs, time.perf_counter()
    size = trainer.images_per_epoch()
    with tqdm(
        total=epochs * size,
        initial=(first_epoch - 1) * size,
        unit="img",
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 60,  # a log file gets a line a minute
    ) as bar:
        for epoch in range(first_epoch, epochs + 1):
            bar.set_description(f"epoch {epoch}/{epochs}")
            epoch_start = time.perf_counter()
            row = trainer.train_epoch(epoch, bar)
            row |= trainer.evaluate()
            row["seconds"] = time.perf_counter() - epoch_start
            if row["val_loss"] is not None:
                trainer.schedule.end_epoch(row["val_loss"])
            record.add(trainer, row, is_last=epoch == epochs)
            done = epoch - first_epoch + 1
            seconds_left = (time.perf_counter() - start) / done * (epochs - epoch)
            tqdm.write(describe(row, epochs, seconds_left))


def test_flags(args, record):
    """Flags of test.py that show this run on a test image; the defaults are left out."""
    flags = ["--model_path", str(record.model_folder), "--mode", "cifar-single", "--index", "5"]
    for flag in ("data_path", "output_path"):
        if getattr(args, flag) != getattr(build_parser().parse_args([]), flag):
            flags += [f"--{flag}", getattr(args, flag)]
    return flags


@command
def main(argv=None):
    args, resumed = parse(argv)
    device = pick_device(args.device)
    record = open_record(args, resumed)
    splits = dataset.load(
        args.dataset,
        args.data_path,
        image_size=args.image_size,
        val_images=args.val_images,
        num_train_images=args.num_train_images,
        num_test_images=args.num_test_images,
        num_workers=args.num_workers,
    )
    if args.n_classes not in (None, len(splits.train.classes)):
        raise UserError(
            f"--n_classes {args.n_classes}: {args.dataset} has {len(splits.train.classes)} classes; leave it out"
        )
    trainer = Trainer(args, splits, device)
    if resumed:
        check_same_data(trainer, resumed)
    record.begin()
    first_epoch = 1
    if resumed:
        try:
            trainer.load_training_state(resumed["training"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the training state in {args.resume} is damaged or of another version ({error})"
            ) from error
        record.restore(resumed["training"])
        first_epoch = resumed["epoch"] + 1
    write_config(record, trainer)
    print(
        f"{record.name}: {count_parameters(trainer.model):,} parameters, {len(trainer.train_split):,} training,"
        f" {len(trainer.val_split or ()):,} validation and {len(trainer.test_split):,} test images,"
        f" {device_label(device)}, {trainer.precision}",
        flush=True,
    )
    failed = True
    try:
        record.tracker = open_tracker(args.log, record.name, record.output_folder, record.config, first_epoch)
        fit(trainer, record, first_epoch)
        failed = False
    except UserError:
        if not record.rows:
            record.abandon()
        raise
    except KeyboardInterrupt:
        if not record.rows:
            record.abandon()
            print("\ninterrupted before the end of the first epoch; nothing is kept")
        else:
            command_line = f"python train.py --resume {shlex.quote(str(record.model_folder))}"
            print(f"\ninterrupted; go on from epoch {record.saved_epoch + 1} with: {command_line}")
        raise
    finally:
        record.close(failed)
    best = record.best
    chosen = (
        "the last, none chosen"
        if best["val_accuracy"] is None
        else f"validation accuracy {100 * best['val_accuracy']:.2f} %"
    )
    print(f"epoch {best['epoch']} is kept ({chosen}): test accuracy {100 * best['test_accuracy']:.2f} %")
    print(f"try it: python test.py {shlex.join(test_flags(args, record))}")


if __name__ == "__main__":
    main()
