"""How fast it is, beside what one would otherwise write, alternating in one run on this machine.

    python benchmarks/throughput.py training                     # images a second, and share of the machine's limit
    python benchmarks/throughput.py training --model cnn
    python benchmarks/throughput.py step                         # what a training step spends its time on
    python benchmarks/throughput.py inference                    # images a second, and seconds from start to answer
    python benchmarks/throughput.py recording --model cnn        # share of a run's time that its records take

The peers are timm's and vit-pytorch's ViT of the same size, once in our loop and once in the usual one: a torchvision
DataLoader with PIL augmentation, autocast on a GPU, PyTorch's AdamW as it comes. Rounds go through all contenders in
turn, so that a busy machine is busy for all; figures are medians over the rounds. Tables are Markdown.
"""

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

import timm
import torch
import vit_pytorch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import train
from model import build_model, count_flops
from vit_cifar10.data import dataset
from vit_cifar10.evaluation.metrics import predict
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.writer import RunWriter
from vit_cifar10.training import trainer
from vit_cifar10.utils.cli import ArgumentParser, command, number
from vit_cifar10.utils.device import autocast, device_label, pick_device, synchronize


class OurLoop:
    """Our training steps, over and over the training images; `model` takes the place of our network."""

    def __init__(self, args, splits, device, model=None, compile="auto"):
        flags = [*training_flags(args), "--compile", "on" if compile == "graphs" else compile]
        with mock.patch.object(trainer, "build_model", lambda config: model or build_model(config)):
            self.trainer = trainer.Trainer(train.parse(flags)[0], splits, device)
        if compile == "graphs":
            self.trainer.forward = torch.compile(self.trainer.model, mode="reduce-overhead")
        self.device = device
        self.trainer.model.train()
        self.trainer.schedule.set_step(0)
        split, size = self.trainer.train_split, self.trainer.batch_size
        self.batches = endless(lambda: dataset.batches(split, size, self.trainer.order(1)))
        self.skip = 0

    def step(self):
        torch.compiler.cudagraph_mark_step_begin()
        images, labels = next(self.batches)
        self.trainer.train_step(images, labels)
        return len(labels)


class UsualLoop:
    """What a script of this kind usually does with a network."""

    def __init__(self, args, splits, device, model):
        self.device = device
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, weight_decay=0.05)
        strong = [v2.TrivialAugmentWide()] if args.augment == "trivialaugment" else []
        mean, std = splits.train.mean.tolist(), splits.train.std.tolist()
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *strong, *to_tensor])
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
        self.skip = 2 * args.num_workers  # batches that the workers have ready while others are timed

    def step(self):
        images, labels = (values.to(self.device, non_blocking=True) for values in next(self.batches))
        with autocast(self.device, "bf16" if self.device.type == "cuda" else "fp32"):
            loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return len(labels)


class PilImages(torch.utils.data.Dataset):
    """A split as torchvision's CIFAR10 gives it: PIL images, each transformed by itself."""

    def __init__(self, split, transform):
        self.images = split.images.permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Inference:
    """A network over the test images, by a function of (model, test split)."""

    def __init__(self, run, model, test, device):
        self.run, self.device = run, device
        self.model, self.test = model.to(device).eval(), test
        self.skip = 0

    def step(self):
        self.run(self.model, self.test)
        return len(self.test)


def endless(make):
    """Batches without end."""
    return itertools.chain.from_iterable(make() for _ in itertools.count())


def training_flags(args):
    """Flags of train.py for the network and batches that are timed."""
    names = "model patch_size embed_dim n_layers n_attention_heads batch_size device augment optimizer precision"
    flags = [text for name in names.split() for text in (f"--{name}", str(getattr(args, name)))]
    return [*flags, "--dropout", "0"]


def peers(args):
    """timm's and vit-pytorch's ViT of the size asked for."""
    size = {"patch_size": args.patch_size, "num_classes": 10, "depth": args.n_layers}
    timms = timm.models.VisionTransformer(
        img_size=32, embed_dim=args.embed_dim, num_heads=args.n_attention_heads, **size
    )
    head = args.embed_dim // args.n_attention_heads
    lucidrains = vit_pytorch.ViT(
        image_size=32,
        dim=args.embed_dim,
        heads=args.n_attention_heads,
        dim_head=head,
        mlp_dim=4 * args.embed_dim,
        **size,
    )
    return timms, lucidrains


def training(args, device):
    """Training images a second of every contender."""
    splits = dataset.load(args.dataset, args.data_path)
    contenders = {"ours": OurLoop(args, splits, device)}
    if device.type == "cuda":
        contenders["ours, not compiled"] = OurLoop(args, splits, device, compile="off")
        contenders["ours, CUDA graphs"] = OurLoop(args, splits, device, compile="graphs")
    if args.model == "vit":
        contenders["timm's ViT in our loop"] = OurLoop(args, splits, device, model=peers(args)[0])
        timms, lucidrains = peers(args)
        contenders["timm's ViT, usual loop"] = UsualLoop(args, splits, device, timms)
        contenders["vit-pytorch's ViT, usual loop"] = UsualLoop(args, splits, device, lucidrains)
    else:
        plain = build_model(contenders["ours"].trainer.config).to(memory_format=torch.contiguous_format)
        contenders["the same CNN, usual loop"] = UsualLoop(args, splits, device, plain)
    rates = measure(contenders, args)
    precision = contenders["ours"].trainer.precision
    limit = matrix_rate(device, precision)
    flops = count_flops(contenders["ours"].trainer.config, backward=True)
    ours = statistics.median(rates["ours"])
    print(
        f"\n{flops / 1e9:.3f} GFLOP an image and update; matrix products: {limit / 1e12:.2f} TFLOP/s in {precision}\n"
    )
    print("| | images/s | lowest to highest | ours is faster by | of the matrix rate |\n|---|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"| {name} | {median:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {ours / median:.2f}"
            f" | {100 * median * flops / limit:.1f} % |"
        )


def inference(args, device):
    """Test images a second, and seconds from starting test.py to its answer."""
    few = None if device.type == "cuda" else 1000
    test = dataset.load_test(args.dataset, args.data_path, num_images=few)
    ours = build_model(trainer.model_config(train.parse(training_flags(args))[0], num_classes=10))
    contenders = {"ours": Inference(predict, ours, test.to(device), device)}
    if args.model == "vit":
        theirs, _ = peers(args)
        theirs.load_state_dict(ours.state_dict())
        contenders["timm's ViT by our predict"] = Inference(predict, theirs, test.to(device), device)
        contenders["timm's ViT, DataLoader"] = Inference(usual_predict(args, device), theirs, test, device)
    else:
        contenders["the same CNN, DataLoader"] = Inference(usual_predict(args, device), ours, test, device)
    rates = measure(contenders, args, rounds_of_one=True)
    fastest = statistics.median(rates["ours"])
    print("\n| | images/s | lowest to highest | ours is faster by |\n|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"| {name} | {median:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {fastest / median:.2f} |")
    answer, imports = start_to_answer(ours, args)
    print(f"\ntest.py --mode custom, from its start to its answer: {answer:.1f} s")
    print(f"python -c 'import torch, torchvision' alone: {imports:.1f} s")


def usual_predict(args, device):
    """Inference as it is usually written: a DataLoader of PIL images, and the model on each batch."""

    def run(model, test):
        transform = v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(test.mean.tolist(), test.std.tolist())]
        )
        loader = DataLoader(PilImages(test, transform), 1000, num_workers=args.num_workers)
        with torch.no_grad():
            return [model(images.to(device)).argmax(1).cpu() for images, _ in loader]

    return run


def start_to_answer(model, args):
    """Seconds of `test.py --mode custom` with its GIF, and of the imports that no such script can do without."""
    with tempfile.TemporaryDirectory() as folder:
        config = trainer.model_config(train.parse(training_flags(args))[0], num_classes=10)
        state = {"model_config": config, "weights": checkpoint.cpu_weights(model), "classes": list("abcdefghij")}
        state |= {"mean": [0.5] * 3, "std": [0.25] * 3, "dataset": "cifar10", "epoch": 0, "metrics": {}, "recipe": {}}
        checkpoint.save(Path(folder) / "best.pt", state)
        image, gif = ROOT / "examples" / "cat.png", Path(folder) / "cat.gif"
        test = [ROOT / "test.py", "--mode", "custom", "--image_path", image, "--model_path", folder]
        test += ["--gif_path", gif, "--no_image", "--device", args.device]
        commands = (test, ["-c", "import torch, torchvision"])
        seconds = [[], []]
        for _ in range(args.rounds):
            for kept, arguments in zip(seconds, commands, strict=True):
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
                kept.append(time.perf_counter() - start)
        return map(statistics.median, seconds)


def step(args, device):
    """What the parts of a training step take, each waited for, beside the whole step, which waits for nothing."""
    splits = dataset.load(args.dataset, args.data_path)
    loop = OurLoop(args, splits, device)
    trainer = loop.trainer
    batch = next(loop.batches)

    def forward(inputs, targets):
        with autocast(device, trainer.precision):
            return F.cross_entropy(trainer.forward(inputs), targets)

    measure({"whole": loop}, args)  # compiles and warms up
    seconds = {"augment": [], "forward": [], "backward": [], "optimizer": [], "whole step": []}
    for _ in range(10 * args.rounds):
        inputs, targets = timed(seconds["augment"], device, lambda: trainer.augment(*batch))
        loss = timed(seconds["forward"], device, lambda inputs=inputs, targets=targets: forward(inputs, targets))
        trainer.model.zero_grad(set_to_none=True)
        timed(seconds["backward"], device, loss.backward)
        timed(seconds["optimizer"], device, trainer.optimizer.step)
        timed(seconds["whole step"], device, loop.step)
    print("\n| part | ms a step | share |\n|---|---|---|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"| {name} | {1e3 * median:.2f} | {100 * median / medians['whole step']:.0f} % |")
    limit, flops = matrix_rate(device, trainer.precision), count_flops(trainer.config, backward=True)
    share = len(batch[1]) * flops / medians["whole step"] / limit
    print(f"\n{100 * share:.1f} % of the {limit / 1e12:.2f} TFLOP/s that matrix products reach in {trainer.precision}")


def recording(args, device):
    """Share of a run's time that checkpoints, metrics and curves take."""
    log_epoch, spent = RunWriter.log_epoch, []

    def timed_log(*arguments, **options):
        timed(spent, device, lambda: log_epoch(*arguments, **options))

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(RunWriter, "log_epoch", timed_log):
        places = ["--model_path", f"{folder}/model", "--output_path", f"{folder}/output"]
        data = ["--dataset", args.dataset, "--data_path", args.data_path]
        start = time.perf_counter()
        train.main([*training_flags(args), *places, *data, "--run_name", "run", "--epochs", str(args.rounds)])
        whole = time.perf_counter() - start
    print(f"\n{args.rounds} epochs: records took {sum(spent):.2f} s of {whole:.0f} s, {100 * sum(spent) / whole:.2f} %")


def timed(seconds, device, action):
    """The action's result; its time until the device is done goes to `seconds`."""
    synchronize(device)
    start = time.perf_counter()
    result = action()
    synchronize(device)
    seconds.append(time.perf_counter() - start)
    return result


def measure(contenders, args, rounds_of_one=False):
    """Images a second of each contender in every round, {name: [rate, ...]}; the first round warms up."""
    steps = dict.fromkeys(contenders, 1)
    rates = {name: [] for name in contenders}
    for round_number in range(args.rounds + 1):
        for name, contender in contenders.items():
            for _ in range(contender.skip if round_number else 3 * (not rounds_of_one)):
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


def matrix_rate(device, precision):
    """Floating-point operations a second of a large matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        timed(seconds, device, lambda: one @ other)
    return 2 * size**3 / min(seconds)


MEASUREMENTS = {"training": training, "step": step, "inference": inference, "recording": recording}


def build_parser():
    parser = ArgumentParser(prog="throughput.py", description="Measure speed beside what one would otherwise write.")
    positive = number(int, at_least=1)
    parser.add_argument("what", choices=tuple(MEASUREMENTS), help="what to measure")
    parser.add_argument("--model", choices=("vit", "cnn"), default="vit", help="which network")
    parser.add_argument("--patch_size", type=positive, default=4, help="as in train.py")
    parser.add_argument("--embed_dim", type=positive, default=192, help="as in train.py")
    parser.add_argument("--n_layers", type=positive, default=12, help="as in train.py")
    parser.add_argument("--n_attention_heads", type=positive, default=3, help="as in train.py")
    parser.add_argument("--batch_size", type=positive, default=128, help="images a step")
    parser.add_argument("--augment", choices=("basic", "trivialaugment"), default="trivialaugment", help="of all loops")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="of our loop")
    precisions, devices = ("auto", "fp32", "bf16", "fp16"), ("auto", "cpu", "cuda", "mps")
    parser.add_argument("--precision", choices=precisions, default="auto", help="of our loop, as in train.py")
    parser.add_argument("--device", choices=devices, default="auto", help="as in train.py")
    parser.add_argument("--dataset", choices=("cifar10", "shapes"), default="cifar10", help="what to train on")
    parser.add_argument("--data_path", default=str(ROOT / "data"), help="where the data set is")
    workers, cores = number(int, at_least=0), os.cpu_count()
    parser.add_argument("--num_workers", type=workers, default=cores, help="of the usual loop's DataLoader")
    parser.add_argument("--rounds", type=positive, default=5, help="how often each contender is timed")
    parser.add_argument("--seconds", type=number(float, above=0), default=5, help="length of each timing")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    device = pick_device(args.device)
    threads, version = torch.get_num_threads(), torch.__version__
    print(f"{device_label(device)}, {threads} CPU threads, torch {version}, batch {args.batch_size}")
    MEASUREMENTS[args.what](args, device)


if __name__ == "__main__":
    main()
