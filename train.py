"""Train a Vision Transformer or a CNN on CIFAR-10 from scratch.

    python train.py @recipes/shapes.txt                          # a first try on drawn shapes: no download, two minutes
    python train.py --patch_size 4 --epochs 200                  # the ViT: 12 layers, 192 wide, 3 heads
    python train.py --model cnn --epochs 12                      # the CNN
    python train.py @recipes/NAME.txt --seed 1                   # flags from a file; flags after it override it
    python train.py --init RUN --dataset folder --data_path DIR  # fine-tune a trained network on your own images
    python train.py --teacher RUN                                # learn from a trained network, too
    python train.py --minutes 30                                 # as many epochs as fit into half an hour here
    python train.py --resume model/RUN                           # continue a run that stopped
    torchrun --nproc_per_node=4 train.py ...                     # on four GPUs; --batch_size is the global batch

Writes model/RUN/best.pt (for test.py) and last.pt (for --resume), and metrics.csv, curves.png and config.json to
output/RUN/. The best epoch is chosen on validation images, which are held out of the training images. The test images
are not used to choose anything.
"""

if __name__ == "__main__":
    import vit_cifar10

    vit_cifar10.end_on_ctrl_c()

    from vit_cifar10.flags.train import parse
    from vit_cifar10.utils.cli import check_flags_first

    check_flags_first(parse)  # before PyTorch is imported, which takes seconds

import shlex
import time
from pathlib import Path

from model import build_without_memory, count_parameters
from vit_cifar10.data import dataset
from vit_cifar10.data.folder import print_splits
from vit_cifar10.flags.train import build_parser, fill_and_check, parse, set_length
from vit_cifar10.runs.architecture import in_flags, model_config, network_flags
from vit_cifar10.runs.resume import resume_flags
from vit_cifar10.runs.source_run import init_flags, resumed_source
from vit_cifar10.runs.writer import open_run
from vit_cifar10.training.budget import epochs_within, measure
from vit_cifar10.training.distributed import join_job
from vit_cifar10.training.finetune import check_frozen_blocks
from vit_cifar10.training.recorder import recorded
from vit_cifar10.training.signals import StopSignals
from vit_cifar10.training.teacher import load_teacher
from vit_cifar10.training.trainer import Trainer
from vit_cifar10.utils.cli import command
from vit_cifar10.utils.device import physical_memory, pick_device
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.schedules import SCHEDULES
from vit_cifar10.utils.text import LINE, folded, printable

MEMORY_ADVICE = "lower --batch_size, --embed_dim, --n_layers, --image_size, or raise --patch_size"
BYTES_PER_PARAMETER = 16  # the weight, its gradient and the optimizer's two moments


@command
def main(argv=None):
    with join_job() as job, out_of_memory_advice(MEMORY_ADVICE):
        args, resumed_run, resumed, source, teacher = job.broadcast_from_rank0(lambda: read_flags(argv))
        device = job.device(pick_device(args.device))
        splits = job.broadcast_from_rank0(lambda: load_splits(args, source))
        if splits.train.hashes is not None and job.is_rank0:
            print_splits(args.data_path, splits)
        if args.minutes and not resumed:
            epochs = fitting_epochs(args, Trainer(args, splits, device, job, source, teacher))
            args = job.broadcast_from_rank0(lambda: read_flags(argv, epochs)[0])
        run = job.run_on_rank0(lambda: open_run(args, resumed_run))
        trainer = Trainer(args, splits, device, job, source, teacher)
        if resumed:
            trainer.resume(resumed)
        with StopSignals(job) as signals, recorded(trainer, run, signals, resumed) as recorder:
            for epoch in range(trainer.epoch + 1, args.epochs + 1):
                for images, labels in trainer.batches(epoch):
                    trainer.step_on(images, labels)  # augment, forward, backward, update the weights
                    recorder.after_step()  # show the progress; save if it is time; stop on a signal
                metrics = trainer.epoch_metrics(epoch) | trainer.evaluate(epoch, recorder.after_batch)
                trainer.end_epoch(metrics)
                recorder.log_epoch(metrics)
        if run:
            print_outcome(run, args, len(splits.test))


def load_splits(args, source=None):
    """The training, validation and test images. Raises `UserError` if they are missing or do not fit the flags.

    A fine-tuning keeps the normalization of the run that it starts from, `source`.
    """
    splits = dataset.load(
        args.dataset,
        args.data_path,
        image_size=args.image_size,
        val_images=args.val_images,
        num_train_images=args.num_train_images,
        num_test_images=args.num_test_images,
        num_workers=args.num_workers,
        resize=args.resize,
    )
    num_classes = len(splits.train.classes)
    if args.n_classes not in (None, num_classes):
        raise UserError(f"--n_classes {args.n_classes}: {args.dataset} has {num_classes} classes; leave out the flag")
    if SCHEDULES[args.schedule].needs_val_loss and splits.val is None:
        raise UserError(
            f"--schedule {args.schedule} watches the validation loss; add --val_images, or more training images"
        )
    return splits.with_normalization(source.mean, source.std) if source else splits


def print_outcome(run, args, test_images):
    """Print the accuracy of the kept epoch, and a command that tries out its network."""
    if run.best:
        accuracy = run.best.get("val_accuracy")
        chosen = "the last one" if accuracy is None else f"validation accuracy {100 * accuracy:.2f} %"
        accuracy = f"test accuracy {100 * run.best['test_accuracy']:.2f} %"
        print(folded(f"kept epoch {run.best['epoch']} ({chosen}): {accuracy}"))
    index = min(5, test_images - 1)
    flags = ["--model_path", str(run.model_folder), "--mode", "cifar-single", "--index", str(index)]
    for flag in ("data_path", "output_path"):
        if Path(getattr(args, flag)) != Path(build_parser().get_default(flag)):
            flags += [f"--{flag}", getattr(args, flag)]
    line = printable(f"try it: python test.py {shlex.join(flags)}")
    print(line if len(line) <= LINE else line.replace(" --", " \\\n    --"))


def fitting_epochs(args, trainer):
    """The number of epochs that fit into --minutes, measured with a trainer, which is used up. Rank 0 decides."""
    started = time.perf_counter()
    pace = measure(trainer)
    spent = time.perf_counter() - started
    epochs = trainer.job.broadcast_from_rank0(lambda: epochs_within(args.minutes, pace, args.eval_every, spent))
    if trainer.job.is_rank0:
        print(f"--minutes {args.minutes:g}: {epochs} epochs, each about {pace.epoch:.0f} s here", flush=True)
    return epochs


def read_flags(argv, epochs=None):
    """Read and check the flags. `epochs` replaces --epochs; the warmup and the small images last in proportion.

    Returns:
        The flags, including defaults that depend on other flags; the run to resume and its checkpoint, or None, None;
        the `SourceRun` of a fine-tuning, or None; the `Teacher` of a distillation, or None.

    Raises:
        UserError: the flags do not fit each other, or do not fit the run to resume or to start from.
    """
    args, run, resumed, source = parse(argv, epochs), None, None, None
    if args.resume is not None:
        args, run, resumed = resume_flags(build_parser(), args, argv)
        source = resumed_source(resumed)
        fill_and_check(args, run)
    elif args.init is not None:
        args, source = init_flags(build_parser(), args, argv)
        set_length(args, epochs)
        fill_and_check(args)
    check_network(args, source)
    if resumed:
        check_resumed_network(args, resumed, source)
    return args, run, resumed, source, load_teacher(args, resumed and resumed.get("teacher"))


def check_resumed_network(args, resumed, source):
    """Raise `UserError` if the flags do not describe the network of the resumed run."""
    config = resumed["model_config"]
    is_described = network_flags(config).items() <= vars(args).items()
    if not is_described or model_config(args, len(resumed["classes"]), source and source.model_config) != config:
        raise UserError(f"the flags in {args.resume} do not describe its network; it is damaged, so train it again")


def check_network(args, source=None):
    """Raise `UserError` for a network that cannot be built, or needs more memory than this machine has."""
    config = model_config(args, num_classes=2, shape=source and source.model_config)
    try:
        network = build_without_memory(config)
    except ValueError as error:
        raise UserError(in_flags(str(error), args.model)) from error
    check_frozen_blocks(network, args.freeze_blocks)
    parameters = count_parameters(network)
    needed, available = BYTES_PER_PARAMETER * parameters, physical_memory()
    if needed > available:
        raise UserError(
            f"a network of {parameters:,} parameters needs {needed / 1e9:,.0f} GB to train, but this machine has"
            f" {available / 1e9:,.0f} GB; lower --embed_dim, --n_layers or --width"
        )


if __name__ == "__main__":
    main()
