"""Networks from elsewhere: their maps match the grad-cam package, and the documented steps work."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from helpers import ROOT
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from vit_pytorch import ViT

from vit_cifar10.explain import faithfulness
from vit_cifar10.explain.explanation import Explanation
from vit_cifar10.explain.maps import grad_cam
from vit_cifar10.explain.methods import best_method, find, methods_for
from vit_cifar10.formats.wrapped import wrap

ENDINGS = ("gif", "html", "png")


def wrapped(module, layer, **options):
    return wrap(module, layer, ["a", "b", "c"], image_size=64, mean=[0.5] * 3, std=[0.25] * 3, **options)


def resnet():
    module = torchvision.models.resnet18(num_classes=3)
    return wrapped(module, module.layer4), module.layer4, None


def vit():
    module = ViT(image_size=64, patch_size=16, num_classes=3, dim=32, depth=2, heads=2, mlp_dim=32)
    norm = module.transformer.layers[-1][0].norm
    return wrapped(module, norm), norm, lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize("make", [resnet, vit])
def test_grad_cam_of_any_network_matches_the_grad_cam_package(make):
    torch.manual_seed(0)
    network, layer, reshape = make()
    images, targets = torch.randn(2, 3, 64, 64), [0, 2]
    ours = grad_cam(network.model, images, torch.tensor(targets))
    with GradCAM(model=network.model, target_layers=[layer], reshape_transform=reshape) as theirs:
        expected = theirs(input_tensor=images, targets=[ClassifierOutputTarget(target) for target in targets])
    assert expected.max() > 0.9
    np.testing.assert_allclose(scale_cam_image(scale_cam_image(ours.numpy(), (64, 64))), expected, atol=1e-5)
    assert set(methods_for(network.model)) == {"grad-cam", "masks"}
    assert best_method(network.model).name == "Grad-CAM"
    assert network.model.grid_size == (8 if make is resnet else 4)


class Brightness(nn.Module):
    """Three classes; the logit of the first one is the brightness of the first of 4 x 4 patches.

    They are an attribute of the output, as in transformers.
    """

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
        self.weight = nn.Parameter(torch.arange(1.0, 4.0))

    def forward(self, images):
        corner = self.features(images)[:, :, :16, :16].mean((1, 2, 3))
        return SimpleNamespace(logits=torch.stack([corner, 0 * corner, 0 * corner], dim=1) * self.weight)


def test_masks_and_the_faithfulness_test_need_no_more_than_the_wrapper():
    module = Brightness()
    network = wrapped(module, module.features, grid_size=4)
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    masks = Explanation(network, image).maps(find("masks", samples=200), count=1)[0]
    assert masks.argmax() == 0
    assert masks.flatten()[0] > 5 * masks.flatten()[1:].abs().max()
    methods = faithfulness.measured_methods(network.model, samples=50)
    inputs = network.prepare(torch.stack([image, image]))
    measured = faithfulness.measure_batch(network.model, network.untrained_weights, methods, inputs)
    curves = faithfulness.mean_curves(measured, methods)
    after_the_first_patch = curves["masks", "mean", "deletion"][0, 1]
    assert after_the_first_patch == pytest.approx(1 / 3, abs=1e-4)  # chance
    assert module.weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize("make", [resnet, vit])
def test_the_parts_of_any_network_hold_all_weights_and_untrained_ones_are_others(make):
    network, *_ = make()
    model = network.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    trained, prefixes = model.state_dict(), [prefix for _, part in model.parts_from_head_to_input() for prefix in part]
    one, same, other = (network.untrained_weights(seed) for seed in (0, 0, 1))
    for name, value in trained.items():
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name
        assert torch.equal(one[name], same[name])
        if value.is_floating_point() and "running" not in name:
            assert not torch.equal(one[name], value), name
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("layer", "classes", "message"),
    [
        (lambda module: nn.ReLU(), 3, "not a part of the network"),
        (lambda module: module.layer4, 4, r"returns \(1, 3\) for an image, not logits of 4 classes"),
        (lambda module: module.fc, 3, r"grad_cam_layer returns \(1, 3\)"),
    ],
)
def test_a_network_that_cannot_be_wrapped_is_refused(layer, classes, message):
    module = torchvision.models.resnet18(num_classes=3)
    with pytest.raises(ValueError, match=message):
        wrap(module, layer(module), list("abcd")[:classes], 32, [0.5] * 3, [0.25] * 3)


def test_a_layer_that_the_logits_do_not_reach_is_refused():
    module = ViT(image_size=32, patch_size=8, num_classes=3, dim=32, depth=1, heads=2, mlp_dim=32)
    _, mlp = module.transformer.layers[-1]
    with pytest.raises(ValueError, match="choose an earlier one"):
        wrap(module, mlp, ["a", "b", "c"], 32, [0.5] * 3, [0.25] * 3)


def test_the_example_explains_both_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import any_network

    measured = []
    monkeypatch.setattr(
        any_network, "measure", lambda network, images, *_: measured.append((network.name, len(images)))
    )
    flags = f"{ROOT}/examples/cat.png --image_size 32 --samples 16 --output_path {tmp_path}"
    any_network.main(flags.split())
    names = ("resnet18", "vit-pytorch")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}-cat.{end}" for name in names for end in ENDINGS}
    assert all("Grad-CAM" in (tmp_path / f"{name}-cat.html").read_text() for name in names)
    assert measured == [(name, 1) for name in names]
    assert re.search(r"cat.png: \d+\.\d% (cat|dog|bird)", capsys.readouterr().out)


class SmallResNet(nn.Module):
    """What the documented lines need of torchvision's ResNet."""

    def __init__(self, num_classes):
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.fc(self.layer4(images).mean(dim=(2, 3)))


def test_the_documented_lines_explain_a_network(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n([^`]*wrap\([^`]*)```", (ROOT / "docs" / "your-own.md").read_text())
    monkeypatch.setattr(torchvision.models, "resnet18", SmallResNet)
    monkeypatch.chdir(tmp_path)
    for place in range(10):
        pixels = np.random.RandomState(place).randint(0, 256, (40, 40, 3), dtype=np.uint8)
        for path in (tmp_path / "img.png", tmp_path / "my_images" / ("cat", "dog")[place % 2] / f"{place}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    exec(compile(code.replace("224", "32"), "your-own.md", "exec"), {})
    assert Image.open("img.gif").n_frames == 2
    assert "Grad-CAM" in (tmp_path / "img.html").read_text()
    assert "masks" in capsys.readouterr().out
    with open("faithfulness.csv", newline="") as file:
        assert {row["images"] for row in csv.DictReader(file)} == {"10"}
