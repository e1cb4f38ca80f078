"""Tests that adding to the project takes one class or function, and one entry in a table."""

import pytest
from helpers import run_test, run_training
from torch import nn

import compare
import model
from vit_cifar10.utils.cli import SIZE
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
