"""Benchmark training and inference against timm and vit-pytorch, interleaved in one run.

    python benchmarks/throughput.py training                     # images per second, and fraction of the matmul rate
    python benchmarks/throughput.py training --model cnn
    python benchmarks/throughput.py step                         # time of each part of a training step
    python benchmarks/throughput.py inference                    # images per second, and run time of test.py
    python benchmarks/throughput.py recording --model cnn        # fraction of a run spent on checkpoints and metrics

The peers are ViTs of the same size from timm and vit-pytorch. timm's ViT is timed in our training loop and in a typical
one, vit-pytorch's ViT in the typical one only. The typical loop has a DataLoader with PIL augmentation, PyTorch's AdamW
and, on a GPU, autocast. Every round times all contenders in turn, so that other load on the machine slows all of them.
Results are medians over the rounds. Tables are printed as Markdown.
"""

import copy
import functools
import importlib
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
from torchvision.transforms import v2

import train
from cost import update_flops
from model import build_model, count_flops
from vit_cifar10.data import dataset
from vit_cifar10.evaluation.metrics import predict
from vit_cifar10.evaluation.tables import markdown_table, percent
from vit_cifar10.runs.architecture import model_config
from vit_cifar10.runs.run import SHIPPED_VIT
from vit_cifar10.runs.writer import RunWriter
from vit_cifar10.training import trainer
from vit_cifar10.utils.choices import DEVICES, PRECISIONS
from vit_cifar10.utils.cli import NON_NEGATIVE_INT, POSITIVE, POSITIVE_INT, ArgumentParser, command
from vit_cifar10.utils.device import AUTOCAST_DTYPES, autocast, device_label, pick_device, pick_precision, synchronize

SHIPPED = {"vit": SHIPPED_VIT, "cnn": "cnn-32-cifar10"}
COMBINED = {"combo_kernels": True}  # an option of the compiler: fewer, larger kernels
COMPILED = {  # other ways to run our loop on a GPU: --compile of train.py, and options of the compiler
    "not compiled": ("off", None),
    "CUDA graphs": ("graphs", None),
    "combined kernels": ("on", COMBINED),
    "graphs of combined kernels": ("graphs", trainer.CUDA_GRAPHS | COMBINED),
}


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
    names = ["model", "batch_size", "device", "augment", "optimizer", "precision"]
    names += ["patch_size", "embed_dim", "n_layers", "n_attention_heads"] if args.model == "vit" else []
    flags = [text for name in names for text in (f"--{name}", str(getattr(args, name)))]
    return [*flags, "--dropout", "0"]


def build_peer(package, args):
    """A ViT of the size that the flags ask for, from timm or vit_pytorch. None, with a warning, if it is missing."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        print(f"WARNING: {name} is not installed, so its ViT is left out; pip install {name}", file=sys.stderr)
        return None
    library = importlib.import_module(package)
    size = {"patch_size": args.patch_size, "num_classes": 10, "depth": args.n_layers}
    width, heads = args.embed_dim, args.n_attention_heads
    if package == "timm":
        return library.models.VisionTransformer(img_size=32, embed_dim=width, num_heads=heads, **size)
    hidden = {"dim_head": width // heads, "mlp_dim": 4 * width}
    return library.ViT(image_size=32, dim=width, heads=heads, **hidden, **size)


def training(args, device):
    """Measure the training images per second of every contender."""
    splits = dataset.load(args.dataset, args.data_path)
    contenders = {"ours": OurLoop(args, splits, device)}
    if contenders["ours"].trainer.is_compiled:
        for name, (compile, options) in COMPILED.items():
            contenders[f"ours, {name}"] = OurLoop(args, splits, device, compile=compile, options=options)
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
    print(
        f"\n{flops / 1e9:.3f} GFLOP per image, forward and backward; {per_update / 1e9:.2f} GFLOP per update;"
        f" matmul rate: {matmul_rate / 1e12:.2f} TFLOP/s in {precision}\n"
    )
    headings, rows = speed_rows(rates)
    fractions = (percent(statistics.median(values) * flops / matmul_rate, 1) for values in rates.values())
    print(markdown_table([*headings, "fraction of matmul rate"], [[*row, next(fractions)] for row in rows]))


def speed_rows(rates):
    """The headings and rows of a table of {contender: images per second of each round}, with ours first."""
    ours = statistics.median(rates["ours"])
    rows = []
    for name, values in rates.items():
        median = statistics.median(values)
        rows.append([name, f"{median:,.0f}", f"{min(values):,.0f} to {max(values):,.0f}", f"{ours / median:.2f}"])
    return ["contender", "images/s", "range", "speedup of ours"], rows


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
    print(markdown_table(*speed_rows(measure(contenders, args, extra_warmup_steps=0))))
    command_seconds, import_seconds = time_test_command(args)
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


def time_test_command(args):
    """Time `test.py --mode custom` with a shipped network, including its GIF, and the import of PyTorch that it needs.

    Returns:
        The medians of both, in seconds.
    """
    image = ROOT / "examples" / "cat.png"
    with tempfile.TemporaryDirectory() as folder:
        test = [ROOT / "test.py", "--mode", "custom", "--image_path", image, "--gif_path", f"{folder}/cat.gif"]
        test += ["--model_path", ROOT / "model" / SHIPPED[args.model], "--no_image", "--device", args.device]
        commands, seconds = (test, ["-c", "import torch"]), ([], [])
        for _ in range(args.rounds):
            for times, arguments in zip(seconds, commands, strict=True):
                run = functools.partial(subprocess.run, [sys.executable, *arguments], check=True, capture_output=True)
                timed(times, torch.device("cpu"), run)
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
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    whole = medians["whole step"]
    rows = [[name, f"{1e3 * median:.2f}", percent(median / whole, 0)] for name, median in medians.items()]
    print(markdown_table(["part", "ms per step", "fraction"], rows))
    matmul_rate = measure_matmul_rate(device, trainer.precision)
    per_image, per_update = count_flops(trainer.config, backward=True), update_flops(trainer.config, args.optimizer)
    rate = (len(batch[1]) * per_image + per_update) / whole
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


MEASUREMENTS = {"training": training, "step": step, "inference": inference, "recording": recording}


def build_parser():
    parser = ArgumentParser(
        prog="throughput.py",
        description="Benchmark training and inference against timm and vit-pytorch, interleaved in one run.",
    )
    add = parser.add_argument
    add("what", choices=MEASUREMENTS, help="what to measure")
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
    add("--rounds", type=POSITIVE_INT, default=5, help="timings per contender; for recording, number of epochs")
    add("--seconds", type=POSITIVE, default=5, help="length of each timing in seconds")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    device = pick_device(args.device)
    threads, version = torch.get_num_threads(), torch.__version__
    print(f"{device_label(device)}, CPU threads: {threads}, torch {version}, batch size {args.batch_size}")
    MEASUREMENTS[args.what](args, device)


if __name__ == "__main__":
    main()
