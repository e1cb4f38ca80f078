"""The run that a fine-tuning starts from (train.py --init): its weights, its network's shape and its normalization."""

import dataclasses

import torch

from vit_cifar10.data.tables import DATASETS
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.architecture import network_flags, shape_flags
from vit_cifar10.runs.run import find_run
from vit_cifar10.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class SourceRun:
    """What a fine-tuned run takes over.

    Attributes:
        record: the name of the initial run and the SHA-256 of its checkpoint, as best.pt and config.json store them.
        model_config: the argument of `build_model`, whose shape the fine-tuned network has.
        mean, std: normalization of the images, three numbers each. Fine-tuning keeps it, because the first layer was
            trained with it: with the statistics of the new images, the same image would look different to the network.
        seen: int64 (N,), the hashes of a user's own images that it has learned from.
        network: the initial `Network` on the CPU. None if a fine-tuning is resumed, which has its own weights.
    """

    record: dict
    model_config: dict
    mean: list
    std: list
    seen: torch.Tensor
    network: checkpoint.Network | None = None


def init_flags(parser, args, argv):
    """Load the run that --init asks for, and combine its network's flags with the typed ones.

    Args:
        parser: the parser of train.py; the network's flags become its defaults.
        args: the flags that it parsed from `argv`.

    Returns:
        The flags, with the run's name as `init`, and a `SourceRun`.

    Raises:
        UserError: there is no such run, it cannot be read, or the typed flags describe a network of another shape.
    """
    run = find_run(args.init, args.model_path, args.output_path)
    network = checkpoint.load_network(run.checkpoint_path, torch.device("cpu"))
    saved = network.saved
    own = network_flags(saved["model_config"])
    resize = network.resize if DATASETS[args.dataset].is_own else "crop"
    parser.set_defaults(**own, resize=resize)
    args = parser.parse_args(argv)
    for flag, value in own.items():
        if flag in {"model", *shape_flags(own["model"])} and getattr(args, flag) != value:
            raise UserError(
                f"--{flag} {getattr(args, flag)} does not fit --init {network.name}, whose network has"
                f" --{flag} {value}; leave out the flag"
            )
    args.init = network.name
    record = {"name": network.name, "sha256": network.sha256}
    return args, SourceRun(
        record, saved["model_config"], saved["mean"], saved["std"], checkpoint.seen_images(saved), network
    )


def resumed_source(resumed):
    """The `SourceRun` of a resumed fine-tuning, from its own checkpoint; None for a run that started from scratch."""
    if "init" not in resumed:
        return None
    seen = checkpoint.seen_images(resumed)
    return SourceRun(resumed["init"], resumed["model_config"], resumed["mean"], resumed["std"], seen)
