"""Writing a run while it trains: its folders, its history, and when to save what."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from vit_cifar10.plots.curves import save_curves
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.metrics_csv import append_metrics, is_evaluated, write_metrics
from vit_cifar10.runs.run import (
    FAITHFULNESS_FILES,
    LENGTH_FLAGS,
    PREDICTION_FILES,
    ROBUSTNESS_FILE,
    TEST_FILES,
    TRAINING_FILES,
    Run,
    is_same_run,
)
from vit_cifar10.runs.trackers import TRACKING_FOLDERS, Tracker
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import (
    atomic_write,
    is_locked_folder,
    link_or_copy,
    lock_folder,
    make_folder,
    remove_empty,
    remove_partial,
)
from vit_cifar10.utils.networks import NETWORKS
from vit_cifar10.utils.tensors import save_tensors
from vit_cifar10.utils.text import one_line


def open_run(args, resumed_run=None):
    """A writer for a new run, or for the run that is resumed. `begin` creates the folders."""
    pace = {"save_every": args.save_every, "save_minutes": args.save_minutes}
    if resumed_run:
        folder = resumed_run.model_folder.resolve()
        return RunWriter(folder, Path(args.output_path) / folder.name, "resume", **pace)
    mode = "replace" if args.overwrite else "new" if args.run_name else "unnamed"
    name = args.run_name or default_name(args)
    return RunWriter(Path(args.model_path) / name, Path(args.output_path) / name, mode, **pace)


def default_name(args):
    """Network, depth, image size, data set and time, such as vit-layer12-32-cifar10-20260131-235959."""
    network = NETWORKS[args.model].run_name.format(**vars(args))
    return f"{network}-{args.image_size}-{args.dataset}-{datetime.now():%Y%m%d-%H%M%S}"


class RunWriter(Run):
    """A run that is being trained.

    `epochs` holds each epoch's metrics. Of the evaluated epochs, `best` is the one with the highest validation accuracy
    or, without validation images, the last one. Methods that take a trainer call its `inference_state` and
    `training_state`.

    Args:
        mode: "new", "unnamed" (new, and renamed if the name is taken), "replace" or "resume".
        save_every: number of epochs between saves of last.pt; None saves often, at little cost.
        save_minutes: longest time between saves in minutes, even within an epoch.
    """

    def __init__(self, model_folder, output_folder, mode, save_every=None, save_minutes=5.0):
        super().__init__(model_folder, output_folder)
        self.mode = mode
        self.save_every = save_every
        self.save_seconds = 60 * save_minutes
        self.epochs = []
        self.best = None
        self.best_state = None  # the contents of best.pt, until they are written
        self.config = None
        self.tracker = Tracker()
        self.new_folders = []
        self.locks = []
        self.is_lost = False  # another run has taken the folders
        self.saved_at = time.monotonic()
        self.save_throttled = Throttled(self.save)
        self.draw_throttled = Throttled(self.draw_curves, delay=60.0)

    def begin(self):
        """Create both folders, or use the existing ones, and lock them against other processes until `close`.

        A new run never shares its folders. A run that is replaced keeps its files until there are new ones. If a run
        is resumed, temporary files that a crash has left are removed.

        Raises:
            UserError: the folders cannot be written to, or another run uses them. No new folder is left behind.
        """
        try:
            self._open_folders()
        except UserError:
            if self.mode != "unnamed" or not any(folder.exists() for folder in self.folders):
                raise
            name = f"{self.model_folder.name}-{uuid.uuid4().hex[:6]}"  # two runs began in the same second
            self.model_folder, self.output_folder = (folder.with_name(name) for folder in self.folders)
            self._open_folders()
        if self.mode == "replace" and set(self.folders) <= set(self.new_folders):
            self.mode = "new"
        if self.mode == "replace":
            self._remove_tracking()
        for folder in self.folders:
            remove_partial(folder, TRAINING_FILES)
        self.saved_at = time.monotonic()

    def _open_folders(self):
        """Create and lock both folders, or neither of them."""
        created = []
        try:
            for folder in self.folders:
                created += make_folder(folder, new=self.mode in ("new", "unnamed"))
                self.locks.append(lock_folder(folder))
        except (UserError, OSError):
            remove_empty(created)
            self._release_locks()
            raise
        self.new_folders = created

    def _release_locks(self):
        for lock in self.locks:
            if lock is not None:
                os.close(lock)
        self.locks = []

    def hold_folders(self):
        """Before writing, make sure that the folders are still this run's. Create a folder again if it was removed.

        Raises:
            UserError: another run has taken the place of this one.
        """
        for place, folder in enumerate(self.folders):
            if is_locked_folder(self.locks[place], folder) or (folder.is_dir() and self._has_own_config()):
                continue
            try:
                make_folder(folder, new=True)
                lock = lock_folder(folder)
            except (UserError, OSError) as error:
                self.is_lost = True
                reason = "now belongs to another run" if folder.exists() else f"cannot be created again ({error})"
                raise UserError(f"{folder} was removed and {reason}, so this training ends") from error
            os.close(self.locks[place])
            self.locks[place] = lock
            print(one_line(f"warning: {folder} was removed; it is created again"), file=sys.stderr)
            if folder == self.model_folder:
                self.best = None  # best.pt is lost; the next evaluated epoch replaces it
            else:
                self._save_config()
                write_metrics(self.metrics_path, self.epochs)

    def _has_own_config(self):
        """Whether config.json is this run's. Some network file systems show one folder as if it were another."""
        try:
            return self.read_config() == json.loads(json.dumps(self.config))
        except (OSError, ValueError):
            return False

    def write_config(self, flags, summary):
        """Write config.json: the flags, the trainer's `summary`, versions, commit and machine.

        A resumed run keeps its earlier file, except for the flags that set its length.
        """
        self.config = self._resumed_config(flags) or {
            "flags": flags,
            **summary,
            "machine": platform.platform(),
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "torchvision": importlib.metadata.version("torchvision"),
                "numpy": np.__version__,
            },
            "git_commit": git_commit(),
            "started": datetime.now().isoformat(timespec="seconds"),
        }
        if self.mode != "replace":  # the earlier run's file stays until there are new weights
            self._save_config()

    def _resumed_config(self, flags):
        if self.mode == "resume":
            with contextlib.suppress(OSError, ValueError):  # missing or damaged: write it again
                config = self.read_config()
                config["flags"] = {**config["flags"], **{flag: flags[flag] for flag in LENGTH_FLAGS}}
                return config
        return None

    def _save_config(self):
        with atomic_write(self.config_path) as partial:
            partial.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    def restore(self, resumed, is_complete=False):
        """Take over the history of a resumed run, up to the epoch that it resumes from.

        best.pt may be from a later epoch, which a new best epoch then has to beat. If best.pt cannot be read, the next
        evaluated epoch replaces it or, in a complete run, the last one.
        """
        if resumed["is_older"]:  # otherwise the damaged last.pt would become previous.pt
            link_or_copy(self.model_folder / checkpoint.PREVIOUS, self.last_path)
        self.epochs, self.best = resumed["training"]["rows"], resumed["training"]["best"]
        if self.best or self.checkpoint_path.exists():
            try:
                kept = checkpoint.load(self.checkpoint_path)
                if not is_same_run(kept["recipe"], resumed["recipe"]):
                    raise UserError(f"{self.checkpoint_path} belongs to another run")
            except UserError as error:
                self.best = None
                replacement = "the last epoch" if is_complete else "the best epoch from now on"
                print(one_line(f"warning: {error}; {replacement} replaces it"), file=sys.stderr)
            else:
                found = [metrics for metrics in (self.best, kept["metrics"]) if metrics and is_evaluated(metrics)]
                self.best = max(found, key=lambda metrics: metrics.get("val_accuracy") or 0, default=None)
        write_metrics(self.metrics_path, self.epochs)

    def finish(self, trainer):
        """Write the files that a complete run may lack because it was killed before it wrote them."""
        if self.best is None:  # best.pt is lost
            self.best, self.best_state = self.epochs[-1], trainer.inference_state(self.epochs[-1])
            self.save(trainer, previous=None)
        else:
            self._write_history()
        self.draw_throttled(now=True)

    def log_epoch(self, trainer, metrics, is_last):
        """Append an epoch to metrics.csv, keep the weights if they are the best, and save the rest when it is due."""
        self.hold_folders()
        is_first, is_replacing = not self.epochs, self.mode == "replace"
        self.epochs.append(metrics)
        if is_first and not is_replacing:
            write_metrics(self.metrics_path, self.epochs)
        elif not is_first:
            append_metrics(self.metrics_path, self.epochs)
        if self._is_best(metrics):
            self.best, self.best_state = metrics, trainer.inference_state(metrics)
        self.tracker.log(metrics)
        is_due = is_last or self.is_save_due() or (self.save_every and metrics["epoch"] % self.save_every == 0)
        if is_due or is_replacing or not self.save_every:
            self.save_throttled(trainer, now=is_due or is_replacing)
        self.draw_throttled(now=is_last)

    def _is_best(self, metrics):
        """Whether an epoch is better than the best one so far; without validation images, every evaluated one is."""
        if not is_evaluated(metrics):
            return False
        accuracy = metrics.get("val_accuracy")
        return accuracy is None or self.best is None or accuracy > (self.best.get("val_accuracy") or 0)

    def is_save_due(self):
        """Whether the last save is so old that the next one should not wait for the end of the epoch."""
        return time.monotonic() >= self.saved_at + self.save_seconds

    def save(self, trainer, previous=checkpoint.PREVIOUS):
        """Write best.pt and history.pt as of the last complete epoch, and last.pt as of the last step.

        The earlier last.pt is kept under the name `previous`, unless that is None.
        """
        state = trainer.inference_state(self.epochs[-1] if self.epochs else {})
        self.hold_folders()
        if self.epochs and self.best is None and is_evaluated(self.epochs[-1]) and trainer.is_between_epochs:
            self.best, self.best_state = self.epochs[-1], state  # best.pt is lost
        training = {**trainer.training_state(), "rows": self.epochs, "best": self.best}
        if self.mode == "replace":  # the new last.pt first: at no time is there nothing to resume
            self._save_config()
            checkpoint.save(self.last_path, {**state, "training": training})
            self.write_best()
            self._remove_replaced()
        else:
            self.write_best()
            checkpoint.save(self.last_path, {**state, "training": training}, previous)
        self._write_history()
        self.saved_at = time.monotonic()

    def write_best(self):
        """Write best.pt if its weights have changed."""
        if self.best_state:
            checkpoint.save(self.checkpoint_path, self.best_state)
            self.best_state = None

    def _write_history(self):
        save_tensors(self.history_path, {"config": self.config, "rows": self.epochs})

    def draw_curves(self):
        """Draw curves.png. If it cannot be written, for example because a viewer locks it, the run continues."""
        small_epochs = self.config and self.config["flags"].get("small_epochs")
        try:
            save_curves(self.epochs, self.curves_path, self.name, small_epochs or 0)
        except UserError as error:
            print(one_line(f"warning: {error}"), file=sys.stderr)

    def _remove_replaced(self):
        """Remove the files that are left of the replaced run, now that the new one has been saved."""
        kept = {self.last_path, self.config_path} | ({self.checkpoint_path} if self.best else set())
        for folder in self.folders:
            for file in (*TRAINING_FILES, *TEST_FILES, *PREDICTION_FILES, *FAITHFULNESS_FILES, ROBUSTNESS_FILE):
                if folder / file not in kept:
                    (folder / file).unlink(missing_ok=True)
        write_metrics(self.metrics_path, self.epochs)
        self.mode = "new"

    def _remove_tracking(self):
        for folder in TRACKING_FOLDERS:
            shutil.rmtree(self.output_folder / folder, ignore_errors=True)

    def close(self, failed):
        """Write the best weights if the run ended early, remove folders without content, and release the locks."""
        try:
            if self.epochs and self.locks and not self.is_lost:
                self.hold_folders()
                self.write_best()
        finally:
            try:
                self.tracker.close(failed)
                if failed and not self.is_lost:
                    self._remove_unused()
            finally:
                self._release_locks()

    def _remove_unused(self):
        """Remove the folders of a new run that ended before it had anything to keep."""
        is_new = bool(self.locks) and self.mode not in ("replace", "resume")
        if is_new and not self.epochs and not self.last_path.exists():
            self.config_path.unlink(missing_ok=True)
            self._remove_tracking()
            remove_empty(self.new_folders)


class Throttled:
    """Limits how often an action runs, so that saves and pictures do not slow down runs with very short epochs.

    The action first runs after `delay` seconds. Then it runs often enough to take about `fraction` of the time, and at
    least every `longest` seconds.
    """

    def __init__(self, action, delay=0.0, fraction=0.01, longest=60.0):
        self.action = action
        self.fraction = fraction
        self.longest = longest
        self.due = time.monotonic() + delay

    def __call__(self, *arguments, now=False):
        start = time.monotonic()
        if start < self.due and not now:
            return
        self.action(*arguments)
        end = time.monotonic()
        self.due = end + min((end - start) / self.fraction, self.longest)


def git_commit():
    """The commit of this code, with "-dirty" if Python files or recipes have changed since, or None without git.

    Results that reproduce.py records, also at the top of the recipes, are no such change.
    """
    try:
        commit = git("rev-parse", "HEAD")
        is_dirty = git("diff", "HEAD", "-I", "^# measured", "--", ":/*.py", ":/recipes") != ""
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if is_dirty else commit


def git(*arguments):
    """What a git command prints about this code. Raises `OSError` or `CalledProcessError` if it fails."""
    # A changed file may be in any encoding, and the locale may know only ASCII.
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace").stdout.strip()
