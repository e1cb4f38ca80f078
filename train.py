"""Train a Vision Transformer, or the baseline CNN, from scratch.

    python train.py --patch_size 4 --epochs 200                  # the ViT: 12 layers, 192 wide, 3 heads
    python train.py --model cnn --epochs 12                      # the CNN beside it
    python train.py --dataset shapes --epochs 3                  # a first try that downloads nothing
    python train.py @recipes/NAME.txt --seed 1                   # flags from a file; later ones win
    python train.py --resume model/RUN                           # go on where a run stopped
    torchrun --nproc_per_node=4 train.py ...                     # on four GPUs; --batch_size is that of all together

Writes model/RUN/best.pt (for test.py) and last.pt (for --resume), and metrics.csv, curves.png and config.json under
output/RUN/. The validation images, held out of the training images, choose the best epoch; the test images never do.
"""

import contextlib
import shlex
import sys
from pathlib import Path

import torch

from model import NETWORKS, build_model
from vit_cifar10.data import dataset
from vit_cifar10.data.augment import POLICIES
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import count_parameters, open_record, run_folder, write_config
from vit_cifar10.runs.trackers import PACKAGES, check_package, open_tracker
from vit_cifar10.training.distributed import join_job
from vit_cifar10.training.schedule import SCHEDULES
from vit_cifar10.training.signals import Interrupted, StopSignals
from vit_cifar10.training.trainer import Trainer, fit, model_config
from vit_cifar10.utils.cli import ArgumentParser, command, number
from vit_cifar10.utils.device import device_label, physical_memory, pick_device
from vit_cifar10.utils.errors import UserError, out_of_memory_advice

# What may differ when a run is resumed; everything else is the run's own.
RESUME_FLAGS = {"epochs", *checkpoint.CIRCUMSTANCES}
MEMORY_FLAGS = ("--batch_size", "--embed_dim", "--n_layers", "--image_size")
BYTES_PER_PARAMETER = 16  # the weight, its gradient and two moments

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
        "--save_every",
        type=POSITIVE,
        help=(
            "write last.pt, to resume from, after so many epochs; default: as often as takes a hundredth of the time,"
            " and at least once a minute"
        ),
    )
    run.add_argument(
        "--save_minutes",
        type=number(float, above=0),
        default=5.0,
        help="write last.pt at least so often, also in the middle of an epoch",
    )
    run.add_argument(
        "--log",
        choices=tuple(PACKAGES),
        default="none",
        help=(
            "also send metrics, flags and, at the end, the curves and the pictures of a full test to TensorBoard "
            "(under --output_path) or Weights & Biases"
        ),
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
        args, resumed = parse_resume(parser, args, argv)
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
            model = build_model(model_config(args, num_classes=2))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{error} (see --image_size, --patch_size, --embed_dim, --n_attention_heads)") from error
    needed, there = BYTES_PER_PARAMETER * count_parameters(model), physical_memory()
    if needed > there:
        raise UserError(
            f"a network of {count_parameters(model):,} parameters takes {needed / 1e9:,.0f} GB to train, this machine"
            f" has {there / 1e9:,.0f} GB; lower --embed_dim, --n_layers or --width"
        )
    return args, resumed


def parse_resume(parser, args, argv):
    """The resumed run's own flags with those of `RESUME_FLAGS` that are given now, and its checkpoint.

    The checkpoint may come from a stranger, so its flags are read as if they were typed.

    Raises:
        UserError: there is no such run, its flags are none, others are given, or it has all its epochs.
    """
    if not Path(args.resume).exists() and (Path(args.model_path) / args.resume).exists():
        args.resume = str(Path(args.model_path) / args.resume)  # the bare name of a run
    path = args.resume
    resumed = checkpoint.load_last(path)
    own = resumed["recipe"]
    try:
        unknown = own.keys() - vars(args).keys()
        if unknown:
            raise UserError(f"unknown: {', '.join(sorted(unknown))}")
        typed = [f"--{flag}" for flag, value in own.items() if value is True]
        typed += [f"--{flag}={value}" for flag, value in own.items() if not isinstance(value, bool | None)]
        parser.set_defaults(**vars(parser.parse_args(typed)))
    except UserError as error:
        raise UserError(f"the flags in {path} are not those of a run ({error})") from error
    folder = run_folder(path)
    home = find_home(folder, parser.get_default("model_path"))
    data_path, output_path = (home / parser.get_default(flag) for flag in ("data_path", "output_path"))
    if data_path.exists():
        parser.set_defaults(data_path=str(data_path))
    if not (output_path / folder.name).is_dir():  # the run comes from another machine
        output_path = build_parser().get_default("output_path")
        parser.set_defaults(log="none")
    parser.set_defaults(output_path=str(output_path))
    args = parser.parse_args(argv)
    args.resume = path
    for flag, value in vars(args).items():
        if flag not in RESUME_FLAGS and value != own.get(flag, value):
            raise UserError(f"--{flag} belongs to the resumed run and cannot change; leave it out")
    if args.epochs <= resumed["epoch"]:
        raise UserError(f"{path} has its {resumed['epoch']} epochs; raise --epochs to train on")
    return args, resumed


def find_home(folder, model_path):
    """The folder that a run was started in, relative to which its paths are, as far as one can tell."""
    home = folder.parent
    for _ in Path(model_path).parts:
        home = home.parent
    is_home = (home / model_path / folder.name).resolve() == folder
    return home if is_home and home != Path.cwd() else Path()


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


def test_flags(args, record):
    """Flags of test.py that show this run on a test image; the defaults are left out."""
    flags = ["--model_path", str(record.model_folder), "--mode", "cifar-single", "--index", "5"]
    for flag in ("data_path", "output_path"):
        if Path(getattr(args, flag)) != Path(build_parser().get_default(flag)):
            flags += [f"--{flag}", getattr(args, flag)]
    return flags


@command
def main(argv=None):
    with join_job() as job, out_of_memory_advice(f"lower {', '.join(MEMORY_FLAGS)}, or raise --patch_size"):
        args, resumed = job.from_first(lambda: parse(argv))
        device = job.device(pick_device(args.device))
        record = job.on_first(lambda: open_record(args, resumed))
        splits = job.from_first(lambda: load_splits(args))
        trainer = Trainer(args, splits, device, job)
        if resumed:
            trainer.resume(resumed)
        with StopSignals(job) as signals:
            train(trainer, record, resumed, signals)
        if job.is_first:
            report(record, args)


def load_splits(args):
    """The images, as the flags say. Raises `UserError` if they are not there, or not as many or as many kinds."""
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
    return splits


def begin(record, trainer, resumed):
    """Open the run's folders and trackers, and say what is about to happen."""
    args = trainer.args
    record.begin()
    if resumed:
        record.restore(resumed)
    write_config(record, trainer)
    processes = f" in {trainer.job.size} processes" if trainer.job.size > 1 else ""
    print(
        f"{record.name}: {count_parameters(trainer.model):,} parameters, {len(trainer.train_split):,} training,"
        f" {len(trainer.val_split or ()):,} validation and {len(trainer.test_split):,} test images,"
        f" {device_label(trainer.device)}{processes}, {trainer.precision}",
        flush=True,
    )
    images, batch = len(trainer.train_split), trainer.batch_size
    left_out = images - trainer.steps_per_epoch * batch
    if left_out > images / 20:
        print(
            f"each epoch leaves out {left_out} of the {images} images, in turn: they fill no batch of {batch}",
            flush=True,
        )
    if resumed:
        print(f"going on after {trainer.epoch} of {args.epochs} epochs, at step {trainer.step + 1}", flush=True)
        before = resumed["recipe"].get("epochs")
        if args.epochs != before:
            print(
                f"--epochs {args.epochs} instead of {before}: the learning rates are those of the new length",
                flush=True,
            )
    record.tracker = open_tracker(args.log, record.name, record.output_folder, record.config, trainer.epoch + 1)


def train(trainer, record, resumed, signals):
    """`fit`, and whatever ends it, leave the files such that the run can go on from them, or none."""
    job, failed = trainer.job, True
    try:
        job.on_first(lambda: begin(record, trainer, resumed))
        fit(trainer, record, signals)
        if trainer.args.log != "none":
            job.on_first(lambda: record.send_pictures(trainer))
        failed = False
    except Interrupted as stop:
        job.on_first(lambda: record.write(trainer))
        if record:
            if record.rows:
                record.draw(now=True)
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"\ninterrupted at step {trainer.step}; go on with: {resume_command(record)}", flush=True)
        sys.exit(128 + stop.number)
    except OSError as error:  # what is printed cannot be written any more: the reader is gone, or a log's disk full
        if error.filename is not None or job.size > 1 or not trainer.step:
            raise
        record.write(trainer)
        if signals.received:
            sys.exit(128 + signals.received)
        raise
    finally:
        if record:
            record.close(failed)


def resume_command(record):
    return f"python train.py --resume {shlex.quote(str(record.model_folder))}"


def report(record, args):
    """What came out, and how to look at it."""
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
