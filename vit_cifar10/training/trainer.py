"""One run's training: the network, what moves its weights, and the passes over the images.

trainer = Trainer(args, splits, device, job)     # args: the flags of train.py
fit(trainer, record, signals)                    # record: what is kept of the run
"""

import contextlib
import hashlib
import math
import sys
import time

import torch
from torch.nn import functional as F
from tqdm import tqdm

from model import build_model
from vit_cifar10.data import dataset
from vit_cifar10.data.augment import Augment
from vit_cifar10.evaluation.metrics import predict, scores
from vit_cifar10.runs import checkpoint
from vit_cifar10.training.distributed import Agreement, Job
from vit_cifar10.training.optim import AveragedWeights, build_optimizer, load_state
from vit_cifar10.training.schedule import Schedule
from vit_cifar10.training.signals import Interrupted
from vit_cifar10.utils.device import autocast, pick_compile, pick_precision, seed_everything, seed_step, synchronize
from vit_cifar10.utils.errors import UserError

ORDER_SEEDS = 2**40  # from here on, so that an epoch's order has no step's seed
SAVE, STOP, NOT_FINITE = 1, 100, 1000  # what processes agree on after a step; a signal's number is added to STOP


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
    """The state of a run, and its steps. `step` and `epoch` count those done since the run began.

    Every step starts from a seed of its own, made from the run's and its number, and so does every epoch's order of
    the images. So no draw (order, augmentation, dropout) depends on what came before: a run that is resumed, at any
    step and in any number of processes, draws what it would have drawn, and no random state needs to be kept.
    """

    def __init__(self, args, splits, device, job=None):
        self.args = args
        self.device = device
        self.job = job or Job()
        self.data = fingerprint(splits)
        self.train_split, self.val_split, self.test_split = (
            None if split is None else split.to(device) for split in splits
        )
        self.num_classes = len(splits.train.classes)
        self.batch_size = min(args.batch_size, len(self.train_split))
        self.steps_per_epoch = len(self.train_split) // self.batch_size
        if self.batch_size % self.job.size:
            even = self.batch_size // self.job.size * self.job.size
            raise UserError(
                f"a batch of {self.batch_size} images cannot be shared out evenly among {self.job.size} processes;"
                f" use {f'--batch_size {even}' if even else 'fewer'}"
            )
        self.config = model_config(args, self.num_classes)
        seed_everything(args.seed)
        self.model = self.job.share_statistics(build_model(self.config)).to(device)
        self.is_compiled = pick_compile(args.compile, device)
        self.average = AveragedWeights(self.model, args.ema) if args.ema else None
        parallel = self.job.parallel(self.model)
        self.forward = torch.compile(parallel) if self.is_compiled else parallel
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
        self.epoch = self.step = 0
        self.sums = torch.zeros(2, device=device)  # of this epoch and process: losses, and images put right
        self.epoch_time, self.step_time = Stopwatch(), Stopwatch()
        self.timed_steps = 0
        self.is_warm = False

    @property
    def evaluated_model(self):
        """The network that is measured and kept: the averaged one where there is one."""
        return self.average.module if self.average else self.model

    @property
    def test_batch_size(self):
        """Images that are measured at once: without gradients, more have room."""
        return min(1000, 4 * self.batch_size)

    @property
    def learning_rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def order(self, epoch):
        """The images of an epoch, int64 (n,), in the order of its batches; the incomplete last batch is left out."""
        generator = torch.Generator().manual_seed(ORDER_SEEDS + self.args.seed + 1_000_003 * epoch)
        return torch.randperm(len(self.train_split), generator=generator)[: self.steps_per_epoch * self.batch_size]

    def train_epoch(self, epoch, after_step):
        """The steps that are left of an epoch; returns a row of metrics.

        `after_step()` may raise `Interrupted`; what the epoch has so far is kept for another call, also after a resume.
        Nothing waits for the device between the steps.
        """
        self.model.train()
        start = (epoch - 1) * self.steps_per_epoch
        self.step_time.start()
        rest = self.order(epoch)[(self.step - start) * self.batch_size :]
        for images, labels in dataset.batches(self.train_split, self.batch_size, rest):
            self.schedule.set(self.step)
            seed_step(self.args.seed + 1_000_003 * self.step, self.device)
            self.sums += self.train_step(images, labels)
            self.step += 1
            self.count_time()
            after_step()
        synchronize(self.device)
        self.step_time.stop()
        loss, accuracy = (self.job.sum(self.sums.clone()) / (self.steps_per_epoch * self.batch_size)).tolist()
        self.check_loss(loss)
        seconds_per_step = self.step_time.seconds / self.timed_steps
        return {
            "epoch": epoch,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "learning_rate": self.learning_rate,
            "images_per_second": self.batch_size / seconds_per_step,
            "train_seconds": seconds_per_step * self.steps_per_epoch,
            "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None,
        }

    def count_time(self):
        """A process's first step compiles and allocates: its time does not count, unless there is no other."""
        if self.is_warm or self.step % self.steps_per_epoch == 0:
            self.timed_steps += 1
        else:
            synchronize(self.device)
            self.step_time.start()
        self.is_warm = True

    def train_step(self, images, labels):
        """One update of the weights from a batch, uint8 (B, 3, H, W) and int64 (B,).

        All processes get the whole batch and disturb it alike, so that mixing and its draws are those of one process;
        then each takes its share. Returns the sum of the share's losses and the number of images put right, float (2,).
        """
        inputs, targets = self.augment(images, labels)
        if self.job.size > 1:
            share = self.job.slice(len(inputs))
            inputs, targets = inputs[share], targets[share]
            seed_step(torch.initial_seed() + 7_919 * self.job.rank, self.device)  # dropout of its own
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
        hits = (logits.argmax(dim=1) == likeliest).sum()
        return torch.stack([loss.detach().float() * len(inputs), hits])

    def measured(self):
        """Mean loss and accuracy of this epoch so far, of this process's share; waits for the device."""
        steps = (self.step - 1) % self.steps_per_epoch + 1
        return (self.sums / (steps * self.batch_size // self.job.size)).tolist()

    def settle(self):
        """Share the processes' sums out evenly, so that any one of them can tell the whole."""
        self.job.sum(self.sums).div_(self.job.size)

    @contextlib.contextmanager
    def paused(self):
        """Something between two steps whose time is not theirs."""
        is_running = self.step_time.started is not None
        synchronize(self.device)
        self.step_time.stop()
        yield
        if is_running:
            self.step_time.start()

    def check_loss(self, loss, split="train"):
        """Raises `UserError`, before anything is saved, if a loss is not finite."""
        if not math.isfinite(loss):
            flag = "--learning_rate" if self.args.optimizer == "adamw" else "--muon_learning_rate"
            rate = self.optimizer.param_groups[-1]["lr"]  # Muon's, where it takes part
            raise UserError(
                f"the {split} loss is not finite any more (epoch {self.epoch + 1}, by step {self.step}, learning rate"
                f" {rate:.2e}); lower {flag}, lengthen --warmup_epochs, or try --clip_grad 1"
            )

    def evaluate(self, after_batch):
        """Loss and accuracy on the validation and test images, as entries of a row of metrics.

        `after_batch()` may raise `Interrupted`; the epoch is then measured another time.
        """
        row = {"val_loss": None, "val_accuracy": None}
        options = (self.test_batch_size, self.precision, after_batch)
        for name, split in (("val", self.val_split), ("test", self.test_split)):
            if split is not None:
                logits = self.job.map(lambda part: predict(self.evaluated_model, part, *options), split)
                measured = scores(logits, split.labels)
                self.check_loss(measured["loss"], name)
                row |= {f"{name}_{quantity}": measured[quantity] for quantity in ("loss", "accuracy")}
        return row

    def end_epoch(self, row):
        """Be ready for the next epoch; `row` holds the metrics of this one."""
        self.epoch = row["epoch"]
        if row["val_loss"] is not None:
            self.schedule.end_epoch(row["val_loss"])
        self.sums.zero_()
        self.epoch_time, self.step_time, self.timed_steps = Stopwatch(), Stopwatch(), 0

    def inference_state(self, row):
        """The contents of best.pt for the weights as they are; `row` holds the metrics of the last whole epoch, if any.

        Raises:
            UserError: the weights are not finite, and not worth keeping.
        """
        weights = checkpoint.cpu_weights(self.evaluated_model)
        if not all(value.isfinite().all() for value in weights.values()):
            self.check_loss(math.nan)
        return {
            "model_config": self.config,
            "weights": weights,
            "classes": list(self.train_split.classes),
            "mean": self.train_split.mean.tolist(),
            "std": self.train_split.std.tolist(),
            "dataset": self.args.dataset,
            "epoch": row.get("epoch", 0),
            "metrics": row,
            "recipe": vars(self.args),
        }

    def training_state(self):
        """What an exact resume needs beside `inference_state`; within an epoch, `settle` first."""
        return {
            "step": self.step,
            "sums": self.sums * self.job.size,
            "seconds": [self.epoch_time.elapsed, self.step_time.elapsed],
            "timed_steps": self.timed_steps,
            "model": self.model.state_dict() if self.average else None,  # else it is that of `inference_state`
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "data": self.data,
        }

    def resume(self, saved):
        """Take over the state in a last.pt.

        Raises:
            UserError: the images are not those the run began with, or the state does not fit.
        """
        state, path = saved["training"], self.args.resume
        if state["data"] != self.data:
            raise UserError(f"{self.args.data_path} does not hold the images this run began with; check --data_path")
        try:
            self.model.load_state_dict(saved["weights"] if state["model"] is None else state["model"])
            load_state(self.optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if state["scaler"] and self.scaler.is_enabled():  # empty in fp32 and bf16
                self.scaler.load_state_dict(state["scaler"])
            if self.average:
                self.average.load_state_dict(state["average"])
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the training state in {path} is damaged or of another version ({reason})") from error
        self.epoch, self.step, self.timed_steps = saved["epoch"], state["step"], state["timed_steps"]
        steps = self.step - self.epoch * self.steps_per_epoch  # of the epoch it was in
        if not 0 <= self.timed_steps <= steps <= self.steps_per_epoch:
            raise UserError(
                f"the training state in {path} is damaged: step {self.step} is not in epoch {self.epoch + 1}"
            )
        self.sums.copy_(state["sums"]).div_(self.job.size)
        self.epoch_time, self.step_time = (Stopwatch(seconds) for seconds in state["seconds"])


def fingerprint(splits):
    """What a resumed run must find again: the classes, and the labels and images of each split, in their order."""
    digest = hashlib.sha256(repr(splits.train.classes).encode())
    for split in splits:
        if split is not None:
            digest.update(split.labels.numpy())
            digest.update(split.images.contiguous().numpy())
    return digest.hexdigest()


class Stopwatch:
    """Seconds between starts and stops, added to those it begins with."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.started = None

    @property
    def elapsed(self):
        return self.seconds if self.started is None else self.seconds + time.perf_counter() - self.started

    def start(self):
        """Begin to count; if it counts already, anew from now, without the time since it was started."""
        self.started = time.perf_counter()

    def stop(self):
        self.seconds, self.started = self.elapsed, None


class Pauses:
    """What happens between two steps, or two batches of images that are measured.

    The bar moves, and what any process wishes is done by all: save, or stop.
    """

    def __init__(self, trainer, record, signals, bar):
        self.trainer, self.record, self.signals, self.bar = trainer, record, signals, bar
        self.agree = Agreement(trainer.job)
        self.shown = time.perf_counter()

    def after_step(self):
        self.bar.update(self.trainer.batch_size)
        self.act(self.agree(max(self.show(), self.wish())))

    def after_batch(self):
        self.act(self.agree(self.wish()))

    def act(self, wish):
        if wish == NOT_FINITE:
            self.trainer.check_loss(math.nan)
        if wish:
            self.trainer.settle()
        if wish > STOP:
            raise Interrupted(wish - STOP)
        if wish == SAVE:
            with self.trainer.paused():
                self.trainer.job.on_first(lambda: self.record.write(self.trainer))

    def wish(self):
        if self.signals.received:
            return STOP + self.signals.received
        return SAVE if self.record and self.record.is_due() else 0

    def show(self):
        """Now and then, and where an epoch ends, show loss and accuracy; returns `NOT_FINITE` if that is so."""
        trainer, now = self.trainer, time.perf_counter()
        if now < self.shown + 0.5 and trainer.step % trainer.steps_per_epoch:
            return 0
        self.shown = now
        loss, accuracy = trainer.measured()
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, acc {100 * accuracy:.1f} %, lr {trainer.learning_rate:.1e}", refresh=False
        )
        return 0 if math.isfinite(loss) else NOT_FINITE


def fit(trainer, record, signals):
    """Train to the last epoch, measuring and keeping as it goes. `record` is None but in the first process.

    Raises:
        Interrupted: a signal asks to stop. The trainer's state is one to go on from.
    """
    job, epochs = trainer.job, trainer.args.epochs
    start, first_step, total_steps = time.perf_counter(), trainer.step, epochs * trainer.steps_per_epoch
    with tqdm(
        total=total_steps * trainer.batch_size,
        initial=first_step * trainer.batch_size,
        unit="img",
        unit_scale=True,
        mininterval=0.5 if sys.stderr and sys.stderr.isatty() else 60,  # a log file gets a line a minute
        disable=not (job.is_first and sys.stderr),
    ) as bar:
        pauses = Pauses(trainer, record, signals, bar)
        for epoch in range(trainer.epoch + 1, epochs + 1):
            bar.set_description(f"epoch {epoch}/{epochs}")
            trainer.epoch_time.start()
            row = trainer.train_epoch(epoch, pauses.after_step) | trainer.evaluate(pauses.after_batch)
            row["seconds"] = trainer.epoch_time.elapsed
            trainer.end_epoch(row)
            job.on_first(lambda: record.add(trainer, row, is_last=epoch == epochs))  # noqa: B023 (called at once)
            if job.is_first:
                seconds_per_step = (time.perf_counter() - start) / max(1, trainer.step - first_step)
                tqdm.write(describe(row, epochs, seconds_per_step * (total_steps - trainer.step)))


def describe(row, epochs, seconds_left):
    """An epoch as a line of text."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val", "test"):
        if row[f"{split}_loss"] is not None:
            parts.append(f"{split} {row[f'{split}_loss']:.3f} {100 * row[f'{split}_accuracy']:5.2f} %")
    parts += [f"lr {row['learning_rate']:.1e}", f"{row['images_per_second']:,.0f} img/s"]
    return "  ".join(parts) + f"  left {tqdm.format_interval(seconds_left)}"
