"""Helpers for the tests of the page in a real browser. The fixture `visit`, which opens a page, is in conftest.py."""

import torch

from model import build_model
from vit_cifar10.runs import checkpoint

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


def small_network(config):
    """An untrained ViT whose class scores differ."""
    sizes = {"model": "vit", "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10, **config}
    classes = [f"class {i}" for i in range(sizes["num_classes"])]
    model = build_model(sizes)
    torch.nn.init.normal_(model.head.weight)
    saved = {"model_config": {**sizes, "img_size": 32}, "dataset": "folder", "recipe": {}}
    values = (classes, torch.zeros(3), torch.ones(3), saved)
    return checkpoint.Network("net", model.eval(), torch.device("cpu"), *values, sha256="")


def evaluate(page, expression):
    """An array of numbers that the page computes, as float32."""
    return torch.tensor(page.evaluate(f"Array.from({expression})"), dtype=torch.float32)


def wait_until_drawn(page):
    """Wait until the page has drawn its last change."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
