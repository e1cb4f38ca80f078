"""Report the operations and minutes that a run took to reach 80 % accuracy, 85 %, and so on, from its own record.

    python benchmarks/cost.py RUN

Most of the accuracy comes in the last epochs, while the learning rate falls. The last row is therefore the one to
compare with other runs. An accuracy counts from the first evaluated epoch that has it.
"""

import functools
import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import build_without_memory, count_flops
from vit_cifar10.evaluation.tables import markdown_table, percent
from vit_cifar10.runs.metrics_csv import is_evaluated
from vit_cifar10.runs.run import find_run
from vit_cifar10.training.optim import Muon, muon_weights
from vit_cifar10.training.patches import PatchSchedule
from vit_cifar10.utils.cli import ArgumentParser, command
from vit_cifar10.utils.errors import UserError

ACCURACIES = (0.6, 0.7, 0.75, 0.8, 0.834, 0.85, 0.88, 0.9, 0.92, 0.94)


@command
def main(argv=None):
    parser = ArgumentParser(prog="cost.py", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--output_path", default=str(ROOT / "output"), help="folder of the runs' metrics")
    args = parser.parse_args(argv)
    run = find_run(args.run, output_path=args.output_path)
    try:
        config, (epochs, _) = run.read_config(), run.read_metrics()
    except (OSError, ValueError) as error:
        raise UserError(f"the record of the run in {run.output_folder} cannot be read ({error})") from error
    evaluated = [metrics for metrics in epochs if is_evaluated(metrics)]
    if not evaluated:
        raise UserError(f"no epoch of the run in {run.output_folder} was evaluated; continue its training first")
    flops = list(itertools.accumulate(epoch_flops(config)))
    print(f"\n{run.output_folder.name}, {config['device']}, {config['precision']}\n")
    best = max(metrics["test_accuracy"] for metrics in evaluated)
    rows = []
    for accuracy in (*(value for value in ACCURACIES if value < best), best):
        epoch = next(metrics["epoch"] for metrics in evaluated if metrics["test_accuracy"] >= accuracy)
        seconds = sum(metrics["train_seconds"] for metrics in epochs if metrics["epoch"] <= epoch)
        rows.append([percent(accuracy), str(epoch), f"{flops[epoch - 1] / 1e15:.3g}", f"{seconds / 60:.1f}"])
    print(markdown_table(["test accuracy", "epoch", "PFLOP", "minutes of training"], rows))


def epoch_flops(config):
    """Floating-point operations in the matrix products and convolutions of each epoch of a run, given its config.json.

    Those of the optimizer count, too.
    """
    flags, network = config["flags"], config["model_config"]
    batch_size = min(flags["batch_size"], config["train_images"])
    steps = config["train_images"] // batch_size
    fewer = {name: flags[name] for name in ("small_epochs", "keep_patches") if name in flags}  # not in earlier runs
    patches = PatchSchedule.of_run(steps, flags["epochs"], **fewer)
    per_update = update_flops(network, flags["optimizer"])
    per_image = functools.cache(
        lambda is_small, keep: count_flops(
            network | {"img_size": network["img_size"] // 2} if is_small else network, backward=True, keep_patches=keep
        )
    )
    total, teacher = flags["epochs"] * steps, config.get("teacher", {"flops": 0})

    def of_teacher(step):
        start, end = flags.get("teacher_start") or 0, flags.get("teacher_end") or 1
        return teacher["flops"] if start <= step / total < end else 0

    for first in range(0, total, steps):
        yield sum(
            batch_size * (per_image(patches.is_small(step), patches.keep(step)) + of_teacher(step)) + per_update
            for step in range(first, first + steps)
        )


def update_flops(config, optimizer):
    """Floating-point operations in the matrix products of an update: AdamW has none, Muon its Newton-Schulz steps."""
    if optimizer == "adamw":
        return 0
    hidden = muon_weights(build_without_memory(config))
    for weight in hidden:
        weight.grad = torch.empty_like(weight)
    with FlopCounterMode(display=False) as counter:
        Muon(hidden, lr=0.01).step()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
