"""Benchmark training and inference against timm and vit-pytorch, interleaved in one run.

    python benchmarks/throughput.py training                     # images per second, and fraction of the matmul rate
    python benchmarks/throughput.py training --model cnn
    python benchmarks/throughput.py step                         # time of each part of a training step
    python benchmarks/throughput.py inference                    # images per second, and run time of test.py
    python benchmarks/throughput.py recording --model cnn        # fraction of a run spent on checkpoints and metrics
    python benchmarks/throughput.py cost --run RUN               # operations and minutes until a run reached 80 %, ...

The peers are ViTs of the same size from timm and vit-pytorch. timm's ViT is timed in our training loop and in a typical
one, vit-pytorch's ViT in the typical one only. The typical loop has a DataLoader with PIL augmentation, PyTorch's AdamW
and, on a GPU, autocast. Every round times all contenders in turn, so that other load on the machine slows all of them.
Results are medians over the rounds. Tables are printed as Markdown.
"""

import copy
import functools
import importlib.util
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

import train
from model import build_model, build_without_memory, count_flops
from vit_cifar10.data import dataset
from vit_cifar10.evaluation.metrics import predict
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.architecture import model_config
from vit_cifar10.runs.metrics_csv import is_evaluated
from vit_cifar10.runs.run import find_run
from vit_cifar10.runs.writer import RunWriter
from vit_cifar10.training import trainer
from vit_cifar10.training.optim import Muon, muon_weights
from vit_cifar10.training.patches import PatchSchedule
from vit_cifar10.utils.choices import DEVICES, PRECISIONS
from vit_cifar10.utils.cli import NON_NEGATIVE_INT, POSITIVE, POSITIVE_INT, ArgumentParser, command
from vit_cifar10.utils.device import (
    AUTOCAST_DTYPES,
    autocast,
    device_label,
    pick_device,
    pick_precision,
    synchronize,
)
from vit_cifar10.utils.errors import UserError


class OurLoop:
    """Training steps of this project's `Trainer`, epoch after epoch.

    Args:
        model: replaces our network in the training loop.
        compile: as --compile of train.py.
        options: options of the compiler.
    """

    def __init__(self, args, splits, device, model=None, compile="auto", options=None):
        flags = [*training_flags(args), "--compile", compile]
        with mock.patch.object(trainer, "build_model", lambda config: model or build_model(config)):
            self.trainer = trainer.Trainer(train.parse(flags), splits, device)
        if options:
            self.trainer.loss_and_sums = torch.compile(self.trainer.forward_step, dynamic=False, options=options)
        self.device = device
        self.trainer.model.train()
        self.trainer.schedule.set_step(0)
        split, batch_size = self.trainer.train_split, self.trainer.batch_size
        self.batches = endless(lambda: dataset.batches(split, batch_size, self.trainer.order(1)))
        self.untimed_steps = 0

    def step(self):
        images, labels = next(self.batches)
        self.trainer.train_step(images, labels)
        return len(labels)


class TypicalLoop:
    """A typical training loop: a DataLoader of PIL images, autocast on CUDA, and AdamW."""

    def __init__(self, args, splits, device, model):
        self.device = device
        self.precision = pick_precision(args.precision, device) if device.type == "cuda" else "fp32"
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, weight_decay=0.05)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        policy = [v2.TrivialAugmentWide()] if args.augment == "trivialaugment" else []
        mean, std = splits.train.mean.tolist(), splits.train.std.tolist()
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *policy, *to_tensor])
        loader = DataLoader(
            PilImages(splits.train, transform),
            args.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=args.num_workers,
            persistent_workers=args.num_workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.batches = endless(lambda: loader)
        self.untimed_steps = 2 * args.num_workers  # the workers prepare these batches while others are timed

    def step(self):
        images, labels = (values.to(self.device, non_blocking=True) for values in next(self.batches))
        with autocast(self.device, self.precision):
            loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return len(labels)


class PilImages(torch.utils.data.Dataset):
    """A split as in torchvision's CIFAR10: pairs of a transformed PIL image and its label."""

    def __init__(self, split, transform):
        self.images = split.images.permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Inference:
    """Predictions for the test images; `run(model, test)` computes them."""

    def __init__(self, run, model, test, device):
        self.run, self.device = run, device
        self.model, self.test = model.to(device).eval(), test
        self.untimed_steps = 0

    def step(self):
        self.run(self.model, self.test)
        return len(self.test)


def endless(make_batches):
    """Yield the batches of `make_batches()`, epoch after epoch, without end."""
    return itertools.chain.from_iterable(make_batches() for _ in itertools.count())


def training_flags(args):
    """Return the flags of train.py for the network and the batches that are timed."""
    names = "model patch_size embed_dim n_layers n_attention_heads batch_size device augment optimizer precision"
    flags = [text for name in names.split() for text in (f"--{name}", str(getattr(args, name)))]
    return [*flags, "--dropout", "0"]


def build_peer(package, args):
    """A ViT of the size that the flags ask for, from timm or vit_pytorch. None, with a warning, if it is missing."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        print(f"WARNING: {name} is not installed, so its ViT is left out; pip install {name}", file=sys.stderr)
        return None
    size = {"patch_size": args.patch_size, "num_classes": 10, "depth": args.n_layers}
    if package == "timm":
        import timm

        return timm.models.VisionTransformer(
            img_size=32, embed_dim=args.embed_dim, num_heads=args.n_attention_heads, **size
        )
    import vit_pytorch

    return vit_pytorch.ViT(
        image_size=32,
        dim=args.embed_dim,
        heads=args.n_attention_heads,
        dim_head=args.embed_dim // args.n_attention_heads,
        mlp_dim=4 * args.embed_dim,
        **size,
    )


def training(args, device):
    """Measure the training images per second of every contender."""
    splits = dataset.load(args.dataset, args.data_path)
    contenders = {"ours": OurLoop(args, splits, device)}
    if contenders["ours"].trainer.is_compiled:
        contenders["ours, not compiled"] = OurLoop(args, splits, device, compile="off")
        contenders["ours, CUDA graphs"] = OurLoop(args, splits, device, compile="graphs")
        combined = {"combo_kernels": True}  # an option of the compiler: fewer, larger kernels
        contenders["ours, combined kernels"] = OurLoop(args, splits, device, compile="on", options=combined)
        both = trainer.CUDA_GRAPHS | combined
        contenders["ours, graphs of combined kernels"] = OurLoop(args, splits, device, compile="graphs", options=both)
    if args.model == "vit":
        if timm_vit := build_peer("timm", args):
            contenders["timm's ViT in our loop"] = OurLoop(args, splits, device, model=copy.deepcopy(timm_vit))
            contenders["timm's ViT, typical loop"] = TypicalLoop(args, splits, device, timm_vit)
        if lucidrains_vit := build_peer("vit_pytorch", args):
            contenders["vit-pytorch's ViT, typical loop"] = TypicalLoop(args, splits, device, lucidrains_vit)
    else:
        contiguous = build_model(contenders["ours"].trainer.config).to(memory_format=torch.contiguous_format)
        contenders["the same CNN, typical loop"] = TypicalLoop(args, splits, device, contiguous)
    rates = measure(contenders, args)
    precision = contenders["ours"].trainer.precision
    matmul_rate = measure_matmul_rate(device, precision)
    config = contenders["ours"].trainer.config
    flops, per_update = count_flops(config, backward=True), update_flops(config, args.optimizer)
    ours = statistics.median(rates["ours"])
    print(
        f"\n{flops / 1e9:.3f} GFLOP per image, forward and backward; {per_update / 1e9:.2f} GFLOP per update;"
        f" matmul rate: {matmul_rate / 1e12:.2f} TFLOP/s in {precision}\n"
    )
    print("| contender | images/s | range | speedup of ours | fraction of matmul rate |\n|---|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"| {name} | {median:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {ours / median:.2f}"
            f" | {100 * median * flops / matmul_rate:.1f} % |"
        )


def inference(args, device):
    """Measure the test images per second of every contender, and the run time of test.py on one image."""
    num_images = None if device.type == "cuda" else 1000
    test = dataset.load_test(args.dataset, args.data_path, num_images=num_images)
    ours = build_model(model_config(train.parse(training_flags(args)), num_classes=10))
    contenders = {"ours": Inference(predict, ours, test.to(device), device)}
    if args.model == "vit":
        if timm_vit := build_peer("timm", args):
            timm_vit.load_state_dict(ours.state_dict())
            contenders["timm's ViT, our predict"] = Inference(predict, timm_vit, test.to(device), device)
            contenders["timm's ViT, DataLoader"] = Inference(typical_predict(args, device), timm_vit, test, device)
    else:
        contenders["the same CNN, DataLoader"] = Inference(typical_predict(args, device), ours, test, device)
    rates = measure(contenders, args, extra_warmup_steps=0)
    our_rate = statistics.median(rates["ours"])
    print("\n| contender | images/s | range | speedup of ours |\n|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"| {name} | {median:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {our_rate / median:.2f} |")
    command_seconds, import_seconds = time_test_command(ours, args)
    print(f"\ntest.py --mode custom takes {command_seconds:.1f} s from start to end")
    print(f"python -c 'import torch' alone takes {import_seconds:.1f} s")


def typical_predict(args, device):
    """Return a function (model, test split) with a typical inference loop: a DataLoader of PIL images."""

    def run(model, test):
        transform = v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(test.mean.tolist(), test.std.tolist())]
        )
        loader = DataLoader(PilImages(test, transform), 1000, num_workers=args.num_workers)
        with torch.no_grad():
            return [model(images.to(device)).argmax(1).cpu() for images, _ in loader]

    return run


def time_test_command(model, args):
    """Time `test.py --mode custom`, including its GIF, and the import of PyTorch that it needs.

    Returns:
        The medians of both, in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = model_config(train.parse(training_flags(args)), num_classes=10)
        state = {"model_config": config, "weights": checkpoint.cpu_weights(model), "classes": list("abcdefghij")}
        state |= {"mean": [0.5] * 3, "std": [0.25] * 3, "dataset": "cifar10", "epoch": 0, "metrics": {}, "recipe": {}}
        checkpoint.save(Path(folder) / "best.pt", state)
        image, gif = ROOT / "examples" / "cat.png", Path(folder) / "cat.gif"
        test = [ROOT / "test.py", "--mode", "custom", "--image_path", image, "--model_path", folder]
        test += ["--gif_path", gif, "--no_image", "--device", args.device]
        commands = (test, ["-c", "import torch"])
        seconds = [[], []]
        for _ in range(args.rounds):
            for times, arguments in zip(seconds, commands, strict=True):
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
                times.append(time.perf_counter() - start)
        return map(statistics.median, seconds)


def step(args, device):
    """Measure the time of each part of a training step and of the whole step.

    The device is synchronized around each part, and around the whole step, but not within the whole step.
    """
    splits = dataset.load(args.dataset, args.data_path)
    loop = OurLoop(args, splits, device)
    trainer = loop.trainer
    batch = next(loop.batches)

    def forward(inputs, targets):
        with autocast(device, trainer.precision):
            return trainer.loss_and_sums(inputs, targets)[0]

    measure({"ours": loop}, args)  # compiles and warms up
    seconds = {"augment": [], "forward": [], "backward": [], "optimizer": [], "whole step": []}
    for _ in range(10 * args.rounds):
        inputs, targets = timed(seconds["augment"], device, lambda: trainer.augment(*batch))
        loss = timed(seconds["forward"], device, lambda inputs=inputs, targets=targets: forward(inputs, targets))
        trainer.model.zero_grad(set_to_none=True)
        timed(seconds["backward"], device, loss.backward)
        timed(seconds["optimizer"], device, trainer.optimizer.step)
        timed(seconds["whole step"], device, loop.step)
    print("\n| part | ms per step | fraction |\n|---|---|---|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"| {name} | {1e3 * median:.2f} | {100 * median / medians['whole step']:.0f} % |")
    matmul_rate = measure_matmul_rate(device, trainer.precision)
    per_image, per_update = count_flops(trainer.config, backward=True), update_flops(trainer.config, args.optimizer)
    rate = (len(batch[1]) * per_image + per_update) / medians["whole step"]
    print(
        f"\n{per_image / 1e9:.3f} GFLOP per image, {per_update / 1e9:.2f} GFLOP per update, {rate / 1e12:.3f} TFLOP/s:"
        f" {100 * rate / matmul_rate:.1f} % of the matmul rate, {matmul_rate / 1e12:.2f} TFLOP/s in {trainer.precision}"
    )


def recording(args, device):
    """Measure the fraction of a run's time that checkpoints, metrics and curves take."""
    log_epoch, seconds = RunWriter.log_epoch, []

    def timed_log(*arguments, **options):
        timed(seconds, device, lambda: log_epoch(*arguments, **options))

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(RunWriter, "log_epoch", timed_log):
        folders = ["--model_path", f"{folder}/model", "--output_path", f"{folder}/output"]
        data = ["--dataset", args.dataset, "--data_path", args.data_path]
        start = time.perf_counter()
        train.main([*training_flags(args), *folders, *data, "--run_name", "run", "--epochs", str(args.rounds)])
        total = time.perf_counter() - start
    recorded, fraction = sum(seconds), sum(seconds) / total
    print(f"\n{args.rounds} epochs: recording took {recorded:.2f} s of {total:.0f} s ({100 * fraction:.2f} %)")


def timed(seconds, device, action):
    """Return `action()`, and append its time, until the device has finished, to the list `seconds`."""
    synchronize(device)
    start = time.perf_counter()
    result = action()
    synchronize(device)
    seconds.append(time.perf_counter() - start)
    return result


def measure(contenders, args, extra_warmup_steps=3):
    """Measure the images per second of all contenders in turn, for `args.rounds` rounds after a warmup round.

    Each timing runs as many steps as take about `args.seconds`, judged by the contender's previous timing.

    Returns:
        {name: [rate of each round]}
    """
    steps = dict.fromkeys(contenders, 1)
    rates = {name: [] for name in contenders}
    for round_number in range(args.rounds + 1):
        for name, contender in contenders.items():
            for _ in range(contender.untimed_steps if round_number else extra_warmup_steps):
                contender.step()
            synchronize(contender.device)
            start = time.perf_counter()
            images = sum(contender.step() for _ in range(steps[name]))
            synchronize(contender.device)
            seconds = time.perf_counter() - start
            if round_number:
                rates[name].append(images / seconds)
            steps[name] = max(1, math.ceil(args.seconds * steps[name] / seconds))
    return rates


def measure_matmul_rate(device, precision):
    """Measure the floating-point operations per second of a large matrix product: the best of ten."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        timed(seconds, device, lambda: left @ right)
    return 2 * size**3 / min(seconds)


def cost(args):
    """Report the operations and minutes that a run took to reach each accuracy of `ACCURACIES`, from its own record.

    Most of the accuracy comes in the last epochs, while the learning rate falls. The last row is therefore the one to
    compare with other runs. An accuracy counts from the first evaluated epoch that has it.
    """
    if args.run is None:
        raise UserError("cost needs --run, the name or the folder of a run")
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
    print("| test accuracy | epoch | PFLOP | minutes of training |\n|---|---|---|---|")
    best = max(metrics["test_accuracy"] for metrics in evaluated)
    for accuracy in (*(value for value in ACCURACIES if value < best), best):
        epoch = next(metrics["epoch"] for metrics in evaluated if metrics["test_accuracy"] >= accuracy)
        seconds = sum(metrics["train_seconds"] for metrics in epochs if metrics["epoch"] <= epoch)
        print(f"| {100 * accuracy:.2f} % | {epoch} | {flops[epoch - 1] / 1e15:.3g} | {seconds / 60:.1f} |")


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


ACCURACIES = (0.6, 0.7, 0.75, 0.8, 0.834, 0.85, 0.88, 0.9, 0.92, 0.94)
MEASUREMENTS = {"training": training, "step": step, "inference": inference, "recording": recording}


def build_parser():
    parser = ArgumentParser(
        prog="throughput.py",
        description="Benchmark training and inference against timm and vit-pytorch, interleaved in one run.",
    )
    add = parser.add_argument
    add("what", choices=(*MEASUREMENTS, "cost"), help="what to measure")
    add("--model", choices=("vit", "cnn"), default="vit", help="network")
    add("--patch_size", type=POSITIVE_INT, default=4, help="as in train.py")
    add("--embed_dim", type=POSITIVE_INT, default=192, help="as in train.py")
    add("--n_layers", type=POSITIVE_INT, default=12, help="as in train.py")
    add("--n_attention_heads", type=POSITIVE_INT, default=3, help="as in train.py")
    add("--batch_size", type=POSITIVE_INT, default=128, help="images per training step")
    policies = ("basic", "trivialaugment")
    add("--augment", choices=policies, default="trivialaugment", help="augmentation in all training loops")
    add("--optimizer", choices=("adamw", "muon"), default="adamw", help="optimizer of our training loop")
    add("--precision", choices=PRECISIONS, default="auto", help="precision of our training loop, as in train.py")
    add("--device", choices=DEVICES, default="auto", help="as in train.py")
    add("--dataset", choices=("cifar10", "shapes"), default="cifar10", help="data set")
    add("--data_path", default=str(ROOT / "data"), help="folder of the data set")
    add("--num_workers", type=NON_NEGATIVE_INT, default=os.cpu_count(), help="worker processes of the DataLoader")
    add("--run", help="cost: name or folder of the run")
    add("--output_path", default=str(ROOT / "output"), help="cost: folder of the runs' metrics")
    add("--rounds", type=POSITIVE_INT, default=5, help="timings per contender; for recording, number of epochs")
    add("--seconds", type=POSITIVE, default=5, help="length of each timing in seconds")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.what == "cost":
        cost(args)
        return
    device = pick_device(args.device)
    threads, version = torch.get_num_threads(), torch.__version__
    print(f"{device_label(device)}, CPU threads: {threads}, torch {version}, batch size {args.batch_size}")
    MEASUREMENTS[args.what](args, device)


if __name__ == "__main__":
    main()
