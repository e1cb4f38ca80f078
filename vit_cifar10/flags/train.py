"""The flags of train.py: the parser, defaults that depend on other flags, and checks that need no PyTorch."""

import copy
import importlib.util
from pathlib import Path

from vit_cifar10.data.image_files import image_folders
from vit_cifar10.data.tables import DATASETS, POLICIES, help_of
from vit_cifar10.utils import choices, limits
from vit_cifar10.utils.cli import (
    ALPHA,
    FRACTION,
    NON_NEGATIVE,
    NON_NEGATIVE_INT,
    POSITIVE,
    POSITIVE_INT,
    PROBABILITY,
    SIZE,
    WORKERS,
    ArgumentParser,
    Number,
    check_launcher,
    not_empty,
    path,
)
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import check_outputs, is_same_path
from vit_cifar10.utils.networks import NETWORKS, sizes_of_all
from vit_cifar10.utils.schedules import SCHEDULES

LONG_RUN = 50  # runs of at least this many epochs benefit from stronger augmentation
RATES = {"learning_rate": (5e-4, 2e-4), "muon_learning_rate": (0.01, 0.005)}  # from scratch, and with --init
MUON_SGD_RATES = {"learning_rate": 1.66, "muon_learning_rate": 0.24}  # with --optimizer muon-sgd
TEACHER_DEFAULTS = {"teacher_weight": 0.7, "teacher_temperature": 1.0, "teacher_start": 0.0, "teacher_end": 1.0}


def build_parser():
    parser = ArgumentParser(
        prog="train.py",
        fromfile_prefix_chars="@",
        description="Train a Vision Transformer or a CNN on CIFAR-10 from scratch. @FILE reads flags from a file.",
    )
    for add_flags in (
        add_data_flags,
        add_network_flags,
        add_fine_tuning_flags,
        add_teacher_flags,
        add_training_flags,
        add_augmentation_flags,
        add_run_flags,
    ):
        add_flags(parser)
    return parser


def add_data_flags(parser):
    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS, default="cifar10", help=help_of(DATASETS))
    add("--data_path", type=path, default="./data", help="folder of the data set; CIFAR is downloaded to it")
    add("--n_classes", type=SIZE, help="number of classes; default: taken from the data set")
    validation = "training images held out to choose the best epoch; default: a tenth; 0 keeps the last epoch instead"
    add("--val_images", type=NON_NEGATIVE_INT, help=validation)
    add("--num_train_images", type=POSITIVE_INT, help="train on a stratified subset of this size; default: all images")
    add("--num_test_images", type=POSITIVE_INT, help="test on a stratified subset of this size; default: all images")
    add("--resize", choices=choices.RESIZES, default="crop", help=choices.RESIZE_HELP)
    workers = "processes that decode a folder of images; other data sets need none"
    add("--num_workers", type=WORKERS, default=2, help=workers)


def add_network_flags(parser):
    add = parser.add_argument_group("network").add_argument
    networks = "; ".join(f"{name}: {network.help}" for name, network in NETWORKS.items())
    add("--model", choices=NETWORKS, default="vit", help=networks)
    for flag, sizes in sizes_of_all().items():
        kind = next(iter(sizes.values())).kind
        allowed = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        add(f"--{flag}", **allowed, help=size_help(sizes).replace("%", "%%"))


def size_help(sizes):
    """The help of a flag that sets a size, {network: Size}: the meaning and the default for each network."""
    if len(sizes) == len(NETWORKS) or len(sizes) == 1:
        name, size = next(iter(sizes.items()))
        return f"{f'{name}: ' if len(sizes) == 1 else ''}{size.help} (default: {size.default})"
    return "; ".join(f"{name}: {size.help} (default: {size.default})" for name, size in sizes.items())


def add_fine_tuning_flags(parser):
    add = parser.add_argument_group("fine-tuning").add_argument
    init = "start from the weights of a run, given by its name, folder or checkpoint; the network keeps its shape"
    add("--init", type=path, metavar="RUN", help=init)
    freeze = "with --init: do not train the embedding and the first N blocks (CNN: N convolutions); 0 trains everything"
    add("--freeze_blocks", type=NON_NEGATIVE_INT, metavar="N", default=0, help=freeze)


def add_teacher_flags(parser):
    add = parser.add_argument_group("distillation").add_argument
    teacher = "also learn from the predictions of a run with the same classes: its name, folder or checkpoint"
    add("--teacher", type=path, metavar="RUN", help=teacher)
    weight = "fraction of the loss that compares the predictions with the teacher's; default: 0.7"
    add("--teacher_weight", type=PROBABILITY, help=weight)
    temperature = "what both networks' logits are divided by before they are compared; default: 1"
    add("--teacher_temperature", type=POSITIVE, help=temperature)
    hard = "learn only the class that the teacher predicts, as DeiT does, not its probabilities"
    add("--teacher_hard", action="store_true", help=hard)
    add("--teacher_start", type=PROBABILITY, help="fraction of the run after which the teacher begins; default: 0")
    add("--teacher_end", type=PROBABILITY, help="fraction of the run after which the teacher stops; default: 1")


def add_training_flags(parser):
    add = parser.add_argument_group("training").add_argument
    epochs = Number(int, at_least=1, at_most=limits.LARGEST_EPOCHS)
    add("--epochs", type=epochs, default=200, help="passes over the training images")
    minutes = "train as many epochs as fit into N minutes on this machine; warmup and --small_epochs keep their share"
    add("--minutes", type=POSITIVE, metavar="N", help=minutes)
    batch = "images per step; a large GPU prefers 512 or 1024 with a higher learning rate"
    add("--batch_size", type=POSITIVE_INT, default=128, help=batch)
    small = "ViT: number of first epochs on images of half the side, which take a quarter of the time"
    add("--small_epochs", type=NON_NEGATIVE, default=0.0, help=small)
    keep = (
        "ViT: fraction of the patches to train on after --small_epochs, which saves time; it grows to 1 by the end, in "
        "steps of an eighth"
    )
    add("--keep_patches", type=Number(float, above=0, at_most=1), default=1.0, help=keep)
    optimizers = (
        "muon: Muon for the hidden weight matrices, which needs far fewer epochs, and AdamW for the rest; muon-sgd: the"
        " fast CNN's: Muon that keeps each kernel's norm, and SGD"
    )
    add("--optimizer", choices=choices.OPTIMIZERS, default="adamw", help=optimizers)
    rates = {
        flag: f"default: {rate:g}, or {with_init:g} with --init ({MUON_SGD_RATES[flag]:g} with muon-sgd)"
        for flag, (rate, with_init) in RATES.items()
    }
    add("--learning_rate", type=POSITIVE, help=f"peak learning rate of AdamW or SGD; {rates['learning_rate']}")
    add("--muon_learning_rate", type=POSITIVE, help=f"peak learning rate of Muon; {rates['muon_learning_rate']}")
    warmup = "epochs until the learning rate peaks; default: 10, a fifth of a short run, or 30 %% of a onecycle run"
    add("--warmup_epochs", type=NON_NEGATIVE, help=warmup)
    schedule = f"learning rate after the warmup; {help_of(SCHEDULES)}".replace("%", "%%")
    add("--schedule", choices=SCHEDULES, default="cosine", help=schedule)
    add(
        "--weight_decay", type=NON_NEGATIVE, default=0.05, help="weight decay of AdamW or SGD, for matrices and kernels"
    )
    add("--muon_weight_decay", type=NON_NEGATIVE, default=0.5, help="weight decay of Muon; muon-sgd has none")
    add("--label_smoothing", type=FRACTION, default=0.0, help="fraction of the target spread over all classes")
    weights = (
        "weights of the classes in the loss; balanced: a class with few training images counts as much as one with many"
    )
    add("--class_weights", choices=choices.CLASS_WEIGHTS, default="none", help=weights)
    add("--clip_grad", type=NON_NEGATIVE, default=0.0, help="clip the gradient to this norm; 0 turns clipping off")
    ema = "decay of a moving average of the weights, often 0.999; the average is evaluated and kept; 0 turns it off"
    add("--ema", type=FRACTION, default=0.0, help=ema)


def add_augmentation_flags(parser):
    add = parser.add_argument_group("augmentation").add_argument
    policies = f"{help_of(POLICIES)}; default: trivialaugment from {LONG_RUN} epochs on, otherwise basic"
    add("--augment", choices=POLICIES, help=policies)
    padding = "pixels around an image before its random crop; default: an eighth of the side; short runs prefer fewer"
    add("--crop_padding", type=NON_NEGATIVE_INT, help=padding)
    border = "what is around an image: nothing, or its own mirror image"
    add("--crop_border", choices=choices.BORDERS, default="black", help=border)
    flips = "mirror an image with probability 1/2, or, for short runs, in every other epoch"
    add("--flips", choices=choices.FLIPS, default="random", help=flips)
    add("--mixup", type=ALPHA, default=0.0, help="alpha of Mixup; often 0.8; 0 turns it off")
    cutmix = "alpha of CutMix; often 1; 0 turns it off; with --mixup, each image draws one of the two"
    add("--cutmix", type=ALPHA, default=0.0, help=cutmix)
    add("--mix_prob", type=PROBABILITY, default=1.0, help="probability that --mixup and --cutmix mix an image")
    add("--random_erasing", type=PROBABILITY, default=0.0, help="probability that a rectangle of an image is erased")


def add_run_flags(parser):
    add = parser.add_argument_group("run").add_argument
    add("--device", choices=choices.DEVICES, default="auto", help="device; auto prefers cuda, then mps, then cpu")
    precision = "precision of the forward pass; auto: bf16 on GPUs and CPUs built for it, fp16 on older GPUs, else fp32"
    add("--precision", choices=choices.PRECISIONS, default="auto", help=precision)
    compiling = (
        "compile the network, which takes a minute and speeds up each step on a GPU; auto compiles on cuda; graphs also"
        " records CUDA graphs, which may speed up small networks (not measured yet)"
    )
    add("--compile", choices=("auto", "on", "graphs", "off"), default="auto", help=compiling)
    evaluations = "evaluate only every Nth epoch and the last one; only evaluated epochs can be kept"
    add("--eval_every", type=POSITIVE_INT, metavar="N", default=1, help=evaluations)
    seed = "random seed; on the CPU, two runs with the same seed end with the same weights"
    add("--seed", type=Number(int, at_least=0, at_most=limits.LARGEST_SEED), default=0, help=seed)
    add("--run_name", type=not_empty, help="name of the run's folders; default: network, image size, data set and time")
    add("--overwrite", action="store_true", help="replace an earlier run with the same --run_name")
    resume = "continue a run, given by its name or folder; it keeps its flags, but --epochs may change"
    add("--resume", type=path, metavar="RUN", help=resume)
    saves = "write last.pt after every N epochs; default: often enough to take about 1 %% of the training time"
    add("--save_every", type=POSITIVE_INT, metavar="N", help=saves)
    minutes = "longest time between saves in minutes, even within an epoch"
    add("--save_minutes", type=POSITIVE, default=5.0, help=minutes)
    log = "also send metrics, flags, curves and test pictures to TensorBoard (in --output_path) or Weights & Biases"
    add("--log", choices=choices.TRACKERS, default="none", help=log)
    add("--model_path", type=path, default="./model", help="folder for the checkpoints of all runs")
    add("--output_path", type=path, default="./output", help="folder for the metrics and pictures of all runs")


def parse(argv=None, epochs=None):
    """Read and check the flags. `epochs` replaces --epochs; see `set_length`.

    If a run is resumed or fine-tuned, they are incomplete, because the rest is in its checkpoint.

    Raises:
        UserError: they do not fit each other, or another program than torchrun has started several processes.
    """
    args = build_parser().parse_args(argv)
    check_launcher()
    set_length(args, epochs)
    if args.resume is None:
        if args.init is None:
            fill_and_check(args)
        else:
            check_early(args)
    elif args.init is not None:
        raise UserError("--init starts a new run, and --resume continues one; leave out one of them")
    return args


def set_length(args, epochs):
    """Replace --epochs, unless `epochs` is None. The warmup and the small images keep their share of the run."""
    if epochs is None:
        return
    for flag in ("small_epochs", "warmup_epochs"):
        if getattr(args, flag):
            setattr(args, flag, round(getattr(args, flag) * epochs / args.epochs, 3))
    args.epochs = epochs


def check_early(args):
    """Check the flags of a fine-tuning, except for the ones that depend on its network."""
    known = copy.copy(args)
    fill_defaults(known)
    check_flags(known)
    check_folders(known, None)


def fill_and_check(args, resumed_run=None):
    """Set the defaults that depend on other flags, and check all flags. Raises `UserError` if they do not fit."""
    if resumed_run is None:
        check_typed_sizes(args)
    fill_defaults(args)
    check_flags(args)
    check_sizes(args)
    check_folders(args, resumed_run)


def fill_defaults(args):
    """Set the flags whose defaults depend on other flags."""
    if args.warmup_epochs is None:
        schedule = SCHEDULES[args.schedule]
        args.warmup_epochs = min(schedule.longest_warmup, schedule.warmup * args.epochs)
    for flag, sizes in sizes_of_all().items():
        if getattr(args, flag) is None:  # a network without this size ignores it
            setattr(args, flag, sizes.get(args.model, next(iter(sizes.values()))).default)
    if args.augment is None:
        args.augment = "trivialaugment" if args.epochs >= LONG_RUN else "basic"
    if args.teacher is not None:
        for flag, value in TEACHER_DEFAULTS.items():
            if getattr(args, flag) is None:
                setattr(args, flag, value)
    for flag, rate in usual_rates(args).items():
        if getattr(args, flag) is None:
            setattr(args, flag, rate)


def usual_rates(args):
    """The default learning rates of an optimizer, {flag: rate}."""
    if args.optimizer == "muon-sgd":
        return MUON_SGD_RATES
    return {flag: rates[args.init is not None] for flag, rates in RATES.items()}


def check_flags(args):
    """Raise `UserError` for flags that do not fit each other."""
    if args.log != "none" and importlib.util.find_spec(args.log) is None:
        raise UserError(f"--log {args.log} needs a package that is not installed: pip install {args.log}")
    if args.warmup_epochs >= args.epochs:
        raise UserError(
            f"--warmup_epochs {args.warmup_epochs:g} must be less than --epochs {args.epochs};"
            f" add --warmup_epochs {0.2 * args.epochs:g}"
        )
    if args.resize != "crop" and not DATASETS[args.dataset].is_own:
        raise UserError(f"--resize {args.resize} is for images of your own; those of {args.dataset} are square")
    if 1 - 0.5 / choices.PATCH_LEVELS <= args.keep_patches < 1:
        raise UserError(f"--keep_patches {args.keep_patches:g} would keep all patches; choose 0.9 or less")
    if args.small_epochs >= args.epochs:
        raise UserError(f"--small_epochs {args.small_epochs:g} must be less than --epochs {args.epochs}")
    if args.freeze_blocks and args.init is None:
        raise UserError("--freeze_blocks keeps trained weights, so it needs --init RUN; add it, or leave out the flag")
    check_teacher_flags(args)
    needs_val_loss = SCHEDULES[args.schedule].needs_val_loss
    if needs_val_loss and args.val_images == 0:
        raise UserError(f"--schedule {args.schedule} watches the validation loss, so it needs --val_images above 0")
    if needs_val_loss and args.eval_every > 1:
        raise UserError(f"--schedule {args.schedule} needs the validation loss of every epoch; leave out --eval_every")
    if args.run_name is not None and not is_folder_name(args.run_name):
        raise UserError(f"--run_name {args.run_name!r} cannot name a folder; use letters, digits, - and _, not a path")


def check_teacher_flags(args):
    """Raise `UserError` for flags of a distillation that do not fit each other."""
    if args.teacher is None:
        for flag in (*TEACHER_DEFAULTS, "teacher_hard"):
            if getattr(args, flag) not in (None, False):
                raise UserError(f"--{flag} needs --teacher RUN; add it, or leave out the flag")
        return
    if args.teacher_hard and args.teacher_temperature != 1:
        raise UserError("--teacher_hard uses no temperature; leave out --teacher_temperature")
    if args.teacher_start >= args.teacher_end:
        raise UserError(f"--teacher_start {args.teacher_start:g} must be less than --teacher_end {args.teacher_end:g}")


def check_sizes(args):
    """Raise `UserError` for flags that do not fit the sizes of the network or of the images."""
    if args.crop_padding is not None and args.crop_padding >= args.image_size:
        raise UserError(f"--crop_padding {args.crop_padding} must be less than --image_size {args.image_size}")
    if (args.small_epochs or args.keep_patches < 1) and not NETWORKS[args.model].takes_fewer_patches:
        raise UserError("--small_epochs and --keep_patches need --model vit; leave them out")
    if args.small_epochs and args.image_size % (2 * args.patch_size):
        raise UserError("--small_epochs halves the images, so it needs an even number of patches per side")


def check_typed_sizes(args):
    """Raise `UserError` for a typed size that the network does not have."""
    for flag, sizes in sizes_of_all().items():
        if getattr(args, flag) is not None and args.model not in sizes:
            raise UserError(f"--{flag} is a size of --model {' or '.join(sizes)}, not of {args.model}; leave it out")


def check_folders(args, resumed_run):
    """Raise `UserError` if the run's two folders are the same, belong to another run, or are among the images."""
    model_path = resumed_run.model_folder.resolve().parent if resumed_run else args.model_path
    if is_same_path(model_path, args.output_path):
        raise UserError(f"--model_path and --output_path are the same folder, {args.output_path}; choose two folders")
    if args.run_name is not None and not (resumed_run or args.overwrite):
        for folder in (Path(model_path) / args.run_name, Path(args.output_path) / args.run_name):
            if folder.exists():
                raise UserError(f"{folder} already exists; choose another --run_name, or add --overwrite to replace it")
    check_outputs((model_path, args.output_path), (), image_folders(args.dataset, args.data_path))


def is_folder_name(name):
    """Whether a run with this name stays inside the folders of runs, on any file system."""
    fits = name.isprintable() and 0 < len(name.encode()) <= 200
    return fits and name not in (".", "..") and not set(name) & set('/\\:*?"<>|')
