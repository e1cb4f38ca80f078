"""Fixtures that all tests share: the real data set, two small trained runs, and a fixed environment."""

import functools
import os
import shutil
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from browser import FLAGS, WIDE
from filelock import FileLock  # PyTorch needs it too
from helpers import CHROMIUM, CIFAR10_ROOT, SMALL_VIT, run_training

import compare
from vit_cifar10.data import dataset
from vit_cifar10.evaluation import full_test
from vit_cifar10.plots import gif
from vit_cifar10.plots.curves import save_curves
from vit_cifar10.runs import writer
from vit_cifar10.utils.tensors import save_tensors

DRAW_SHAPES = functools.cache(dataset.draw_shapes)


def pytest_configure():
    # in the background of a script (`python -m pytest &`), the tests and their children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # one thread, here and in child processes: pytest-xdist starts a worker per core, and sums round the same everywhere
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_report_header():
    data = f"real CIFAR-10 from {CIFAR10_ROOT}"
    if not CIFAR10_ROOT:
        data = (
            "CIFAR10_ROOT is not set: THE TESTS ON REAL CIFAR-10 ARE SKIPPED"
            " (set it to the folder that contains cifar-10-batches-py)"
        )
    browser = f"pages are tested in {CHROMIUM}"
    if not CHROMIUM:
        browser = "Chromium is not installed: THE TESTS OF THE PAGE IN A BROWSER ARE SKIPPED"
    return [data, browser]


@pytest.fixture(scope="session")
def cifar10_root():
    """The folder of the real CIFAR-10. Without it, the test is skipped."""
    if not CIFAR10_ROOT:
        pytest.skip("CIFAR10_ROOT is not set: no real CIFAR-10")
    if not (Path(CIFAR10_ROOT) / "cifar-10-batches-py").is_dir():
        pytest.fail(f"CIFAR10_ROOT={CIFAR10_ROOT} does not contain cifar-10-batches-py")
    return CIFAR10_ROOT


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with a ViT and a CNN trained for two epochs: model/vit, model/cnn and their output."""
    folder = tmp_path_factory.mktemp("runs")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        train_runs(folder)
        return folder
    shared = tmp_path_factory.getbasetemp().parent / "runs"  # the first worker trains, and each takes a copy
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            train_runs(folder)
            folder.rename(shared)
    return shutil.copytree(shared, folder, dirs_exist_ok=True)


def train_runs(folder):
    run_training(folder, f"--run_name vit --epochs 2 {SMALL_VIT} --learning_rate 2e-3")
    run_training(folder, "--run_name cnn --epochs 2 --model cnn --width 8 --learning_rate 4e-3")


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """A function that opens a page from its file. Afterwards, no page may have sent a request or logged a message."""
    contexts, requests, messages = [], [], []

    def open_page(path, viewport=None, fragment="", **options):
        context = browser.new_context(viewport=viewport or WIDE, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith("blob:") or requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        address = f"{path.as_uri()}#{fragment}" if fragment else path.as_uri()
        page.goto(address)
        requests.remove(path.as_uri())
        return page

    open_page.requests, open_page.messages = requests, messages
    yield open_page
    for context in contexts:
        context.close()
    assert not requests
    assert not messages


@pytest.fixture
def curves(monkeypatch, _fixed_environment):
    """Draw curves.png after all."""
    monkeypatch.setattr(writer, "save_curves", save_curves)


@pytest.fixture
def no_pictures(monkeypatch):
    """Let compare.py and full tests write empty files instead of most pictures, which take most of their time."""

    def write_nothing(*arguments):
        next(argument for argument in arguments if isinstance(argument, Path)).touch()

    for module, names in (
        (compare, ("save_comparison", "save_class_accuracy", "save_disagreements")),
        (full_test, ("save_confusion_matrix", "save_reliability", "save_mistakes")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, write_nothing)


@pytest.fixture(autouse=True)
def _fixed_environment(monkeypatch):
    """Use the same random numbers each time. Refuse downloads and open no window, even where both would work.

    Draw each set of shapes once, and no curves but those of `runs`: they would take most of the time of a tiny run.
    """

    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(gif, "show", lambda *_: False)
    monkeypatch.setattr(dataset, "draw_shapes", DRAW_SHAPES)
    monkeypatch.setattr(writer, "save_curves", lambda epochs, path, *_: save_tensors(path, {}))
    torch.manual_seed(0)
