"""One run's training: the network, the steps that update it, and its evaluation.

trainer = Trainer(args, splits, device, job)     # args: the flags of train.py
for epoch in range(trainer.epoch + 1, args.epochs + 1):
    for images, labels in trainer.batches(epoch):
        trainer.step_on(images, labels)
    metrics = trainer.epoch_metrics(epoch) | trainer.evaluate(epoch)
    trainer.end_epoch(metrics)
"""

import collections
import contextlib
import functools
import math
import time

import torch
from torch.nn import functional as F

from model import build_model, count_parameters
from vit_cifar10.data import dataset
from vit_cifar10.data.augment import Augment
from vit_cifar10.data.dataset import hash_images, normalize
from vit_cifar10.evaluation.metrics import predict, scores
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.architecture import model_config
from vit_cifar10.runs.metrics_csv import EVALUATED_COLUMNS
from vit_cifar10.training.distributed import Job
from vit_cifar10.training.finetune import freeze, load_initial, same_classes
from vit_cifar10.training.optim import CombinedOptimizer, ModelEma, build_optimizer, load_state
from vit_cifar10.training.patches import PatchSchedule
from vit_cifar10.training.schedule import Schedule
from vit_cifar10.utils.choices import PATCH_LEVELS
from vit_cifar10.utils.device import (
    autocast,
    device_label,
    evaluation_batch_size,
    pick_compile,
    pick_precision,
    seed_everything,
    seed_step,
    synchronize,
)
from vit_cifar10.utils.errors import UserError

CUDA_GRAPHS = {"triton.cudagraphs": True}  # an option of the compiler: the host launches a whole pass at once
AIRBENCH_MUON = {"momentum": 0.6, "weight_decay": 0.0, "keep_norm": True}
WHITENING_IMAGES = 5_000  # from which the fast CNN's first layer is computed
ORDER_SEEDS = 2**40  # added to the seed of an epoch's image order, so that it differs from the seeds of all steps
MIRROR_SEEDS = 2**41


class Trainer:
    """The state of a run, and its steps. `step` and `epoch` count the steps and epochs completed since the run began.

    Each step has its own seed, and so does each epoch's image order; both depend only on the run's seed and the number
    of the step or epoch. Random draws (order, augmentation, dropout) therefore do not depend on what came before: from
    any step and on any number of ranks, a resumed run draws the same numbers as an uninterrupted one. No random state
    is saved.

    `source` is the `SourceRun` of a fine-tuning. If it has a network, the training starts from its weights.
    `teacher` is the `Teacher` of a distillation.
    """

    def __init__(self, args, splits, device, job=None, source=None, teacher=None):
        self.args, self.device, self.job = args, device, job or Job()
        self.set_data(splits, source)
        self.set_network(splits.train, source)
        self.set_teacher(splits.train, teacher)
        self.set_precision_and_compile()
        self.set_pace()
        self.augment = self.build_augment()
        self.epoch = self.step = 0
        self.epoch_totals = torch.zeros(
            2, device=device
        )  # of the loss and of correct predictions, this epoch, on this rank
        self.epoch_time, self.step_time = Stopwatch(), Stopwatch()
        self.timed_steps = 0
        self.steps_on = collections.Counter()  # {(whether images are small, fraction of patches): steps so far}

    def set_data(self, splits, source):
        """Move the images to the device, and divide them into batches."""
        given = [split for split in splits if split is not None]
        self.data = hash_images(*given, start=repr(splits.train.classes))  # a resumed run must find the same
        self.images = record_of_images(splits, source, is_whole=self.args.num_test_images is None)
        self.train_split, self.val_split, self.test_split = (
            None if split is None else split.to(self.device) for split in splits
        )
        self.num_classes = len(splits.train.classes)
        is_balanced = self.args.class_weights == "balanced"
        self.class_weights = balanced_weights(self.train_split.labels, self.num_classes) if is_balanced else None
        self.batch_size = min(self.args.batch_size, len(self.train_split))
        self.steps_per_epoch = len(self.train_split) // self.batch_size
        if self.batch_size % self.job.size:
            even = self.batch_size // self.job.size * self.job.size
            raise UserError(
                f"a batch of {self.batch_size} images cannot be split evenly among {self.job.size} processes;"
                f" use {f'--batch_size {even}' if even else 'fewer'}"
            )

    def set_network(self, train, source):
        """Build the network on the device, and its moving average."""
        self.init_record = source and source.record
        self.config = model_config(self.args, self.num_classes, source and source.model_config)
        model, self.initial_changes = self.build_network(train, source)
        self.frozen = freeze(model, self.args.freeze_blocks)
        self.model = self.job.convert_sync_batchnorm(model).to(self.device)
        if self.args.small_epochs:
            self.model.patch_embed.strict_img_size = False
        self.ema = ModelEma(self.model, self.args.ema) if self.args.ema else None

    def set_teacher(self, train, teacher):
        """Move the teacher, if there is one, to the device."""
        if teacher:
            teacher.check_classes(train.classes)
        self.teacher = teacher and teacher.to(self.device)

    def set_precision_and_compile(self):
        """Decide in which precision the network runs, and what is compiled."""
        device, args = self.device, self.args
        torch.backends.cudnn.benchmark = device.type == "cuda"  # few shapes, many batches of each
        self.has_graphs = args.compile == "graphs"
        if self.has_graphs and self.job.size > 1:
            raise UserError("--compile graphs works in one process only; use --compile auto")
        self.is_compiled = pick_compile(args.compile, device)
        if self.is_compiled:  # one graph for images of half the side, and one for each fraction of the patches
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 1 + PATCH_LEVELS)
        self.forward, self.loss_and_sums = self.job.parallel(self.model), self.forward_step
        if self.is_compiled and self.job.size > 1:  # with its communication, only the network can be compiled
            self.forward = torch.compile(self.forward, dynamic=False)
        elif self.is_compiled:
            options = CUDA_GRAPHS if self.has_graphs else None
            self.loss_and_sums = torch.compile(self.forward_step, dynamic=False, options=options)
        self.precision = pick_precision(args.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def set_pace(self):
        """Build what changes the weights, and what changes from step to step: learning rates and patches."""
        args = self.args
        self.optimizer = self.build_optimizer()
        self.patches = PatchSchedule.of_run(self.steps_per_epoch, args.epochs, args.small_epochs, args.keep_patches)
        self.schedule = Schedule(
            self.optimizer,
            args.schedule,
            total_steps=args.epochs * self.steps_per_epoch,
            warmup_steps=round(args.warmup_epochs * self.steps_per_epoch),
        )

    def build_network(self, train, source):
        """The network before the first step, on the CPU, and in which respects it differs from the one in `source`.

        Returns:
            The network, and a list of phrases, which is empty without `source`.
        """
        seed_everything(self.args.seed)
        model = build_model(self.config)
        if hasattr(model, "whiten"):
            model.whiten(sample_of(train, WHITENING_IMAGES))
        if not (source and source.network):
            return model, []
        head_rows = same_classes(train.classes, source.network.classes)
        return model, load_initial(model, source.network.model, self.args.image_size, head_rows)

    def build_augment(self):
        """The augmentation that the flags ask for."""
        args = self.args
        return Augment(
            args.augment,
            mean=self.train_split.mean,
            std=self.train_split.std,
            num_classes=self.num_classes,
            mixup=args.mixup,
            cutmix=args.cutmix,
            mix_prob=args.mix_prob,
            random_erasing=args.random_erasing,
            crop_padding=args.crop_padding,
            crop_border=args.crop_border,
            flips=args.flips == "random",
            compile=self.is_compiled,
        )

    def build_optimizer(self):
        """The optimizer that the flags ask for."""
        args = self.args
        muon = {"lr": args.muon_learning_rate, "weight_decay": args.muon_weight_decay, "compile": self.is_compiled}
        if args.optimizer == "muon-sgd":
            muon |= AIRBENCH_MUON
        return build_optimizer(
            self.model,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            muon=None if args.optimizer == "adamw" else muon,
            sgd=args.optimizer == "muon-sgd",
        )

    @property
    def evaluated_model(self):
        """The network that is evaluated and kept: the moving average if there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def test_batch_size(self):
        """Images per batch of an evaluation, which needs less memory than training."""
        return min(evaluation_batch_size(self.device), 4 * self.batch_size)

    @property
    def is_between_epochs(self):
        """Whether the weights are those at the end of an epoch, or at the start of the run."""
        return self.step == self.epoch * self.steps_per_epoch

    @property
    def learning_rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def summary(self):
        """The facts about the network, the device and the data for config.json, as plain values."""
        return {
            "model_config": self.config,
            **self.sources(),
            "parameters": count_parameters(self.model),
            "precision": self.precision,
            "compiled": self.is_compiled,
            "device": device_label(self.device),
            "processes": self.job.size,
            "train_images": len(self.train_split),
            "val_images": len(self.val_split or ()),
            "test_images": len(self.test_split),
            **({} if self.class_weights is None else {"class_weights": self.class_weights.tolist()}),
        }

    def sources(self):
        """The records of the networks that this one learns from, {"init": record, "teacher": record} at most."""
        records = {"init": self.init_record, "teacher": self.teacher and self.teacher.record}
        return {source: record for source, record in records.items() if record}

    def order(self, epoch):
        """The images of an epoch in the order of its batches, int64 (n,), without the incomplete last batch."""
        generator = torch.Generator().manual_seed(ORDER_SEEDS + self.args.seed + 1_000_003 * epoch)
        return torch.randperm(len(self.train_split), generator=generator)[: self.steps_per_epoch * self.batch_size]

    def is_mirrored(self, epoch):
        """Which training images to mirror in an epoch, bool (N,): each in every other epoch, a random half at a time.

        So an image is never seen the same way in two epochs in a row (https://arxiv.org/abs/2404.00498). Returns None
        if the augmentation mirrors images at random, or not at all.
        """
        if self.augment.flips or not self.augment.crops:
            return None
        generator = torch.Generator().manual_seed(MIRROR_SEEDS + self.args.seed)
        in_odd_epochs = torch.rand(len(self.train_split), generator=generator) < 0.5
        return (in_odd_epochs if epoch % 2 else ~in_odd_epochs).to(self.device)

    def seed_of(self, step):
        """The seed of a step's random draws."""
        return self.args.seed + 1_000_003 * step

    def batches(self, epoch):
        """Yield the remaining batches of an epoch in random order, uint8 (B, 3, H, W) and int64 (B,), for `step_on`.

        If the loop over them ends early, another call, even after a resume, yields the rest.
        """
        self.epoch_time.start()
        self.model.train()
        for module in self.frozen:
            module.eval()
        self.step_time.start()
        first_step = (epoch - 1) * self.steps_per_epoch
        remaining = self.order(epoch)[(self.step - first_step) * self.batch_size :]
        yield from dataset.batches(self.train_split, self.batch_size, remaining, self.is_mirrored(epoch))
        synchronize(self.device)
        self.step_time.stop()

    def step_on(self, images, labels):
        """Do the next step of the run on a batch: update the learning rates, the weights and the epoch's sums.

        It does not wait for the device, except in fp16 with Muon, where the scaler does.
        """
        self.schedule.set_step(self.step)
        with self.timed_step():
            self.epoch_totals += self.train_step(images, labels)
            self.step += 1

    def epoch_metrics(self, epoch):
        """What the steps of an epoch measured, {column of metrics.csv: number}."""
        self.schedule.set_step(self.step - 1)  # a run that was interrupted after its last step has not set it yet
        loss, accuracy = (self.job.sum(self.epoch_totals.clone()) / (self.steps_per_epoch * self.batch_size)).tolist()
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

    def train_step(self, images, labels):
        """Update the weights once, from a batch, uint8 (B, 3, H, W) and int64 (B,).

        Every rank augments the full batch with the same seed, then keeps its shard, so results match one process.

        Returns:
            float (2,): the sum of the losses in the shard, and its number of correct predictions.
        """
        seed = self.seed_of(self.step)
        seed_step(seed, self.device)
        inputs, targets = self.augment(images, labels, seed)
        total_weight = self.total_weight(targets)
        if self.args.keep_patches < 1:
            self.model.patch_drop.keep = self.patches.keep(self.step)
        if self.job.size > 1:
            shard = self.job.shard(len(inputs))
            inputs, targets = inputs[shard], targets[shard]
            # Ranks draw different dropout, and none repeats the draws of the augmentation.
            seed_step(seed + 7_919 * (1 + self.job.rank), self.device)
        lesson = self.lesson(inputs)
        inputs = self.patches.shrink(inputs, self.step)
        self.model.zero_grad(set_to_none=True)
        if self.has_graphs:  # from here on, they may write over the loss and the gradients of the last step
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(self.device, self.precision):
            loss, sums = self.loss_and_sums(inputs, targets, lesson, total_weight)
        self.scaler.scale(loss).backward()
        if self.args.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update()
        return sums

    def lesson(self, inputs):
        """What the teacher predicts for a shard of images in full size; None if it does not teach at this step."""
        if not (self.teacher and self.teacher.teaches(self.step / self.schedule.total_steps)):
            return None
        with autocast(self.device, self.precision):
            return self.teacher.lesson(inputs, self.train_split.mean, self.train_split.std)

    def total_weight(self, targets):
        """The sum of the class weights of a batch, by which the loss of a shard is divided; None without weights.

        Mixed images, whose targets are soft, all count the same, as in `torch.nn.functional.cross_entropy`.
        """
        if self.class_weights is None or targets.ndim > 1:
            return None
        return self.class_weights[targets].sum()

    def forward_step(self, inputs, targets, lesson=None, total_weight=None):
        """The forward pass: the mean loss of a shard, and its sums as `train_step` returns them.

        `total_weight` is from `total_weight`, of the whole batch. The mean over all shards is then the batch's loss.
        """
        logits = self.forward(inputs)
        options = {"weight": self.class_weights, "label_smoothing": self.args.label_smoothing}
        if total_weight is None:
            loss = F.cross_entropy(logits, targets, **options)
        else:
            loss = F.cross_entropy(logits, targets, **options, reduction="sum") * self.job.size / total_weight
        if lesson is not None:
            loss = self.teacher.combine(loss, logits, lesson)
        main_class = targets if targets.ndim == 1 else targets.argmax(dim=1)
        correct = (logits.argmax(dim=1) == main_class).sum()
        return loss, torch.stack([loss.detach().float() * len(inputs), correct])

    @contextlib.contextmanager
    def timed_step(self):
        """Count a step's time, except for this process's first steps on as many patches.

        The first one may compile the network, and takes memory from the system. With CUDA graphs, the second and third
        one record them.
        """
        patches = self.patches.is_small(self.step), self.patches.keep(self.step)
        is_last = (self.step + 1) % self.steps_per_epoch == 0
        is_warm = self.steps_on[patches] >= (3 if self.has_graphs else 1)
        if is_warm or (is_last and not self.timed_steps):  # an epoch's only step counts anyway
            yield
            self.timed_steps += 1
        else:
            with self.paused():
                yield
                synchronize(self.device)
        self.steps_on[patches] += 1

    def running_metrics(self):
        """Mean loss and accuracy of this epoch so far, on this rank; waits for the device."""
        steps = (self.step - 1) % self.steps_per_epoch + 1
        return (self.epoch_totals / (steps * self.batch_size // self.job.size)).tolist()

    def share_epoch_totals(self):
        """Give all ranks the same sums, so that any one of them can save the total."""
        self.job.sum(self.epoch_totals).div_(self.job.size)

    @contextlib.contextmanager
    def paused(self):
        """Stop the step timer while something else happens between two steps."""
        is_running = self.step_time.started is not None
        synchronize(self.device)
        self.step_time.stop()
        yield
        if is_running:
            self.step_time.start()

    def check_loss(self, loss, split="train"):
        """Raise `UserError`, before anything is saved, if a loss is not finite."""
        if not math.isfinite(loss):
            flag = "--muon_learning_rate" if isinstance(self.optimizer, CombinedOptimizer) else "--learning_rate"
            rate = self.optimizer.param_groups[-1]["lr"]  # Muon's if it is used
            raise UserError(
                f"the {split} loss is not finite (epoch {self.epoch + 1}, step {self.step}, learning rate"
                f" {rate:.2e}); lower {flag}, raise --warmup_epochs, or try --clip_grad 1"
            )

    def evaluate(self, epoch, after_batch=lambda: None):
        """Loss and accuracy on the validation and test images after an epoch, {column of metrics.csv: number or None}.

        They are None if `--eval_every` leaves out this epoch. `after_batch()` is called after every batch; if it raises
        `Interrupted`, another call starts the evaluation again.
        """
        metrics = dict.fromkeys(EVALUATED_COLUMNS)
        if epoch % self.args.eval_every and epoch < self.args.epochs:
            return metrics
        for name, split in (("val", self.val_split), ("test", self.test_split)):
            if split is not None:
                logits = self.job.map(functools.partial(self.predict, after_batch=after_batch), split)
                measured = scores(logits, split.labels)
                self.check_loss(measured["loss"], name)
                metrics |= {f"{name}_{quantity}": measured[quantity] for quantity in ("loss", "accuracy")}
        return metrics

    def predict(self, split, after_batch=lambda: None):
        """Logits of a split's images, float (N, C)."""
        return predict(self.evaluated_model, split, self.test_batch_size, self.precision, after_batch)

    @property
    def is_complete(self):
        """Whether all epochs have been trained and evaluated."""
        return self.epoch == self.args.epochs

    def end_epoch(self, metrics):
        """Complete an epoch, given its metrics: add its `seconds` to them and prepare for the next epoch."""
        metrics["seconds"] = self.epoch_time.elapsed
        self.epoch = metrics["epoch"]
        if metrics["val_loss"] is not None:
            self.schedule.end_epoch(metrics["val_loss"])
        self.epoch_totals.zero_()
        self.epoch_time, self.step_time, self.timed_steps = Stopwatch(), Stopwatch(), 0

    def inference_state(self, metrics):
        """The contents of best.pt for the current weights. `metrics` belong to the last complete epoch, or are empty.

        Raises:
            UserError: the weights are not finite.
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
            "epoch": metrics.get("epoch", 0),
            "metrics": metrics,
            "recipe": vars(self.args),
            **self.sources(),
            **({"images": self.images} if self.images else {}),
        }

    def training_state(self):
        """What an exact resume needs in addition to `inference_state`.

        Within an epoch, call `share_epoch_totals` first.

        Raises:
            UserError: the state is not finite.
        """
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        if not all(value.isfinite().all() for value in [self.epoch_totals, *moments]):
            self.check_loss(math.nan)
        return {
            "step": self.step,
            "sums": self.epoch_totals * self.job.size,
            "seconds": [self.epoch_time.elapsed, self.step_time.elapsed],
            "timed_steps": self.timed_steps,
            "model": self.model.state_dict() if self.ema else None,  # without EMA, they are in `inference_state`
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.ema.state_dict() if self.ema else None,
            "data": self.data,
        }

    def resume(self, saved):
        """Load the state in a last.pt.

        Raises:
            UserError: the images are not the ones that the run started with, or the state does not fit.
        """
        state, path = saved["training"], self.args.resume
        if state["data"] != self.data:
            is_unrecorded = self.images and "images" not in saved
            advice = "; a run of an earlier version divides some folders in another way" if is_unrecorded else ""
            raise UserError(
                f"{self.args.data_path} does not hold the images that this run started with; check --data_path{advice}"
            )
        try:
            self.model.load_state_dict(saved["weights"] if state["model"] is None else state["model"])
            load_state(self.optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if state["scaler"] and self.scaler.is_enabled():  # empty in fp32 and bf16
                self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.load_state_dict(state["average"])
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the training state in {path} is damaged or of another version ({reason})") from error
        self.epoch, self.step, self.timed_steps = saved["epoch"], state["step"], state["timed_steps"]
        steps = self.step - self.epoch * self.steps_per_epoch  # since the last complete epoch
        is_timed = self.timed_steps > 0 or steps < self.steps_per_epoch
        if not (0 <= self.timed_steps <= steps <= self.steps_per_epoch and is_timed):
            raise UserError(
                f"the training state in {path} is damaged: step {self.step} is not in epoch {self.epoch + 1}"
            )
        self.epoch_totals.copy_(state["sums"]).div_(self.job.size)
        self.epoch_time, self.step_time = (Stopwatch(seconds) for seconds in state["seconds"])


def balanced_weights(labels, num_classes):
    """The weight of each class in the loss, float (C,): inversely proportional to its number of images, on average 1.

    As scikit-learn's `class_weight="balanced"`. The average is over the images; a class without images has no effect.
    """
    counts = labels.bincount(minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * counts.float())


def sample_of(split, count):
    """About `count` normalized images of a split, evenly spaced: those of a folder are sorted by class."""
    return normalize(split.images[:: max(1, len(split) // count)], split.mean, split.std)


def record_of_images(splits, source, is_whole):
    """The entry `images` of a checkpoint: which of a user's own images are for what. None if there are none.

    What the initial network of a fine-tuning has seen, the new one has seen, too. `is_whole` says whether `splits` hold
    all test images.
    """
    seen = [split.hashes for split in (splits.train, splits.val) if split is not None and split.hashes is not None]
    seen += [source.seen] if source and len(source.seen) else []
    test = splits.test.files_hash if is_whole else None
    return {"seen": torch.cat(seen).unique(), "test": test} if seen else None


class Stopwatch:
    """A timer that adds the seconds between starts and stops to an initial value."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.started = None

    @property
    def elapsed(self):
        return self.seconds if self.started is None else self.seconds + time.perf_counter() - self.started

    def start(self):
        """Start counting. If it is already running, drop the time since the last start."""
        self.started = time.perf_counter()

    def stop(self):
        self.seconds, self.started = self.elapsed, None
