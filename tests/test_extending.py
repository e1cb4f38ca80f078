"""Tests that adding to the project takes one class or function, and one entry in a table."""

import csv

import pytest
import torch
from browser import evaluate, wait_until_drawn
from helpers import run_test, run_training
from PIL import Image
from torch import nn

import compare
import model
from vit_cifar10.data.corruptions import CORRUPTIONS, Corruption
from vit_cifar10.utils.cli import SIZE
from vit_cifar10.utils.methods import METHODS, MethodEntry
from vit_cifar10.utils.networks import NETWORKS, Network, Size


@pytest.fixture
def added_network(monkeypatch):
    """A small CNN that is not in the project, with a size of its own."""
    monkeypatch.setattr(model, "NETWORKS", dict(model.NETWORKS))

    class TwoLayers(model.Network, name="two-layers"):
        title = "two layers"

        def __init__(self, img_size=32, in_chans=3, num_classes=10, filters=8):
            super().__init__()
            self.grid_size = img_size // 4
            self.features = nn.Sequential(nn.Conv2d(in_chans, filters, 4, stride=4), nn.ReLU())
            self.head = nn.Linear(filters * self.grid_size**2, num_classes)

        @property
        def grad_cam_layer(self):
            return self.features[1]

        def parts_from_head_to_input(self):
            return [("head", ("head.",)), ("block 1", ("features.",))]

        def forward(self, images):
            return self.head(self.features(images).flatten(1))

    image_size = NETWORKS["cnn"].sizes[0]
    sizes = (image_size, Size("filters", "filters", SIZE, 8, "channels"))
    monkeypatch.setitem(NETWORKS, "two-layers", Network("two layers", sizes, run_name="two-layers"))


def test_a_network_is_one_class_and_one_entry(added_network, tmp_path, monkeypatch, capsys):
    """It is trained, resumed, fine-tuned, tested, explained and compared."""
    run_training(tmp_path, "--model two-layers --filters 5 --run_name added --epochs 1")
    run_training(tmp_path, f"--init {tmp_path}/model/added --freeze_blocks 1 --run_name tuned --epochs 1")
    folder = f"--model_path {tmp_path}/model/added --output_path {tmp_path}/output"
    run_test(tmp_path, f"{folder} --mode cifar", monkeypatch)
    html = tmp_path / "page.html"
    run_test(tmp_path, f"{folder} --mode cifar-single --index 5 --html {html}", monkeypatch)
    assert (tmp_path / "attention_map_gif" / "shapes-index-5.gif").exists()
    assert "two layers" in html.read_text()
    folders = [f"--{name}_path={tmp_path / name}" for name in ("model", "output")]
    capsys.readouterr()
    compare.main(["added", "tuned", *folders])
    printed = capsys.readouterr().out
    assert printed.count("two layers") >= 2
    with pytest.raises(SystemExit):
        run_training(tmp_path, "--filters 5")
    assert "--filters is a size of --model two-layers, not of vit" in capsys.readouterr().err


def test_a_corruption_is_one_function_and_one_entry(runs, tmp_path, monkeypatch, no_pictures, capsys):
    """It is measured, and shown in the table and the picture."""
    for kind in CORRUPTIONS.keys() - {"contrast"}:
        monkeypatch.delitem(CORRUPTIONS, kind)
    inverted = Corruption(lambda images, strength, random: strength - images, {"255": 255}, "sum of both")
    monkeypatch.setitem(CORRUPTIONS, "inverted", inverted)
    folders = [f"--{name}_path={runs / name}" for name in ("model", "data")]
    folders += [f"--{name}_path={tmp_path / name}" for name in ("output", "compare")]
    compare.main(["cnn", "--robustness", "--num_images", "10", *folders])
    assert "| inverted              | 255     |" in capsys.readouterr().out
    assert Image.open(tmp_path / "compare" / "robustness.png").width > 1000


def input_times_gradient(model, images, targets):
    """A method that is not in the project."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = images.clone().requires_grad_()
        model(inputs).gather(1, targets.clone()[:, None]).sum().backward()
    model.zero_grad(set_to_none=True)
    return torch.nn.functional.adaptive_avg_pool2d((inputs.grad * images).sum(1), model.grid_size).detach()


@pytest.mark.parametrize("run", ["vit", "cnn"])
def test_a_method_is_one_function_and_one_entry(run, runs, tmp_path, monkeypatch, visit):
    """It is drawn in the GIF, shown on the page, and measured; a live page, which cannot compute it, leaves it out."""
    legend = "what raises the score of {predicted}"
    monkeypatch.setitem(METHODS, "dummy", MethodEntry("Dummy", input_times_gradient, legend, is_signed=True))
    html, gif = tmp_path / "page.html", tmp_path / "dummy.gif"
    single = f"--model_path {runs}/model/{run} --mode cifar-single --index 5 --no_image"
    run_test(runs, f"{single} --method dummy --gif_path {gif} --html {html}", monkeypatch)
    assert Image.open(gif.with_suffix(".png")).width > 100
    page = visit(html)
    assert "Dummy" in page.locator("#methods button").all_inner_texts()
    page.evaluate("explorer.change({method: 'dummy'})")
    wait_until_drawn(page)
    assert page.locator("#meaning").inner_text() == "What raises the score of the selected class"
    assert page.locator("#main-title").inner_text().startswith("Dummy: for (red) and against (blue)")
    values = evaluate(page, "explorer.mainMap().values")
    assert values.min() < 0 < values.max()
    flags = f"--model_path {runs}/model/{run} --mode faithfulness --num_images 10 --output_path {tmp_path}"
    run_test(runs, flags, monkeypatch)
    with open(tmp_path / run / "faithfulness_methods.csv", newline="") as file:
        assert "Dummy" in {row["method"] for row in csv.DictReader(file)}
    run_test(runs, f"{single} --no_gif --html {html} --live", monkeypatch)
    assert "Dummy" not in visit(html).locator("#methods button").all_inner_texts()
