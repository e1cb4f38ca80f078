"""Tests that every augmentation equals torchvision's for the same parameters, and that the draws are correct."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers import SMALL_VIT, load_weights, run_test, run_training
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as reference
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

import compare
from vit_cifar10.data import augment
from vit_cifar10.data.augment import OPERATIONS, Augment, apply_operations
from vit_cifar10.data.dataset import normalize
from vit_cifar10.data.shapes import draw_shapes
from vit_cifar10.data.tables import POLICIES, Policy

pytestmark = pytest.mark.quick

NORMALIZATION = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.25)}
MAGNITUDES = {
    "Identity": [0],
    "ShearX": [0.3, -0.99],
    "ShearY": [0.1, -0.99],
    "TranslateX": [7.9, -31.0],
    "TranslateY": [-3.2, 14.5],
    "Rotate": [30.0, -135.0, 9.0],
    "Brightness": [0.5, -0.99],
    "Color": [0.9, -0.3],
    "Contrast": [0.99, -0.7],
    "Sharpness": [0.9, -0.99],
    "Posterize": [8, 2, 5],
    "Solarize": [255.0, 0.0, 100.0],
    "AutoContrast": [0],
    "Equalize": [0],
}


@pytest.fixture(scope="module")
def images():
    """Drawn shapes, noise, and the edge cases of the value tables: an image of one value and one of two values."""
    drawn, _ = draw_shapes(20, 32, seed=3)
    noise = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    flat = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    flat[1, :, :3] = 200
    return torch.cat([drawn, noise, flat])


@pytest.mark.parametrize(
    ("name", "magnitude"), [(name, magnitude) for name in OPERATIONS for magnitude in MAGNITUDES[name]]
)
def test_operations_match_torchvision(name, magnitude, images):
    operations = torch.full((len(images),), OPERATIONS.index(name))
    ours = apply_operations(images, operations, torch.full((len(images),), float(magnitude)))
    theirs = torch.stack([_apply_op(image, name, magnitude, InterpolationMode.NEAREST, None) for image in images])
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1  # our factors are float32, torchvision's are Python floats
    assert (difference > 0).float().mean() < (0.1 if name in ("Brightness", "Sharpness") else 1e-9)
    assert name == "Identity" or magnitude in (8, 255.0) or not torch.equal(ours, images)


def test_each_image_gets_its_own_operation(images):
    operations = torch.arange(len(images)) % len(OPERATIONS)
    magnitudes = torch.tensor([float(MAGNITUDES[OPERATIONS[operation]][-1]) for operation in operations])
    together = apply_operations(images, operations, magnitudes)
    for index in range(len(images)):
        one = slice(index, index + 1)
        alone = apply_operations(images[one], operations[one], magnitudes[one])
        assert torch.equal(together[index], alone[0])


@pytest.mark.parametrize(
    ("ours", "theirs", "level"),
    [
        (augment.trivial_augment_ranges(32, "cpu"), TrivialAugmentWide()._augmentation_space(31), 30),
        (augment.rand_augment_ranges(32, "cpu"), RandAugment()._augmentation_space(31, (32, 32)), 9),
    ],
)
def test_magnitude_ranges_match_torchvision(ours, theirs, level):
    for name, (space, signed) in theirs.items():
        at_0, at_1, is_signed = ours[OPERATIONS.index(name)].tolist()
        magnitude = at_0 + (at_1 - at_0) * level / 30
        expected = space[level].item() if space.ndim else space.item()
        assert (round(magnitude) if name == "Posterize" else magnitude) == pytest.approx(expected, abs=1e-4)
        assert bool(is_signed) == signed


@pytest.mark.parametrize("policy", ["trivialaugment", "randaugment"])
def test_each_image_draws_its_operation_sign_and_magnitude(policy, monkeypatch):
    draws = []
    monkeypatch.setattr(
        augment,
        "apply_operations",
        lambda images, operations, magnitudes: draws.append((operations, magnitudes)) or images,
    )
    transform = Augment(policy, **NORMALIZATION, num_classes=10)
    transform(torch.zeros(14_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(14_000, dtype=torch.int64))
    assert len(draws) == (1 if policy == "trivialaugment" else 2)
    operations, magnitudes = draws[0]
    assert operations.bincount(minlength=14).min() > 800
    angles = magnitudes[operations == OPERATIONS.index("Rotate")]
    assert (angles > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert len(angles.abs().unique()) == (31 if policy == "trivialaugment" else 1)


@pytest.mark.parametrize(("padding", "border", "mode"), [(4, "black", "constant"), (2, "reflect", "reflect")])
def test_crop_and_flip_match_torchvision(padding, border, mode, images):
    count = len(images)
    top, left = torch.randint(0, 2 * padding + 1, (2, count))
    flip = torch.rand(count) < 0.5
    ours = augment.crop_and_flip(images, top, left, flip, padding, border)
    for index, image in enumerate(images):
        padded = reference.pad(image, padding, padding_mode=mode)
        expected = reference.crop(padded, top[index], left[index], 32, 32)
        expected = reference.hflip(expected) if flip[index] else expected
        assert torch.equal(ours[index], expected)


def test_random_crops_reach_every_position():
    one_pixel = torch.zeros(2000, 1, 32, 32, dtype=torch.uint8)
    one_pixel[:, :, 16, 16] = 1
    counts = augment.random_crop_and_flip(one_pixel, padding=4).sum(dim=(0, 1))
    assert (counts > 0).sum() == 9 * 10  # 9 rows; 10 columns, because flipping shifts them by one
    assert counts.sum() == 2000


def test_erase_matches_torchvision():
    inputs = torch.randn(20, 3, 32, 32)
    top, left = torch.randint(0, 20, (2, 20))
    height, width = torch.randint(1, 12, (2, 20))
    ours = augment.erase(inputs, *(side.float() for side in (top, left, height, width)))
    for index in range(20):
        rectangle = (value[index].item() for value in (top, left, height, width))
        assert torch.equal(ours[index], reference.erase(inputs[index], *rectangle, v=torch.zeros(1)))


def test_random_erasing_erases_as_often_and_as_much_as_torchvision():
    inputs = torch.ones(3000, 1, 32, 32)
    ours = 1 - augment.random_erase(inputs, 0.5).mean((1, 2, 3))
    eraser = v2.RandomErasing(p=0.5)
    theirs = 1 - torch.stack([eraser(image).mean() for image in inputs])
    assert (ours > 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=0.08)
    quantiles = torch.tensor([0.6, 0.8, 0.95])
    torch.testing.assert_close(ours.quantile(quantiles), theirs.quantile(quantiles), atol=0.02, rtol=0)


def test_mixup_matches_torchvision():
    inputs, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    mixup = v2.MixUp(num_classes=8)
    params = {"lam": 0.3, "labels": labels, "batch_size": 8}
    lam_map = augment.mixup_lam(inputs, torch.full((8,), 0.3))
    ours = augment.mix(inputs, torch.eye(8), lam_map)
    torch.testing.assert_close(ours[0], mixup.transform(inputs, params))
    torch.testing.assert_close(ours[1], mixup.transform(labels, params))


def test_cutmix_matches_torchvision():
    inputs, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    lam, y, x = 0.6, 0.85, 0.4
    half = int(0.5 * math.sqrt(1 - lam) * 32)
    row, column = int(y * 32), int(x * 32)
    box = (max(column - half, 0), max(row - half, 0), min(column + half, 32), min(row + half, 32))
    lam_adjusted = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 32**2
    params = {"box": box, "lam_adjusted": lam_adjusted, "labels": labels, "batch_size": 8}
    cutmix = v2.CutMix(num_classes=8)
    lam_map = augment.cutmix_lam(inputs, *(torch.full((8,), value) for value in (lam, y, x)))
    ours = augment.mix(inputs, torch.eye(8), lam_map)
    torch.testing.assert_close(ours[0], cutmix.transform(inputs, params))
    torch.testing.assert_close(ours[1], cutmix.transform(labels, params))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mixing", [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_augment_returns_normalized_inputs_and_soft_targets(policy, mixing, images):
    mixup, cutmix = mixing
    labels = torch.arange(len(images)) % 10
    transform = Augment(policy, **NORMALIZATION, num_classes=10, mixup=mixup, cutmix=cutmix, random_erasing=0.5)
    inputs, targets = transform(images, labels)
    assert (inputs.shape, inputs.dtype) == (images.shape, torch.float32)
    if mixing == (0.0, 0.0):
        assert torch.equal(targets, labels)
        return
    torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))
    lam = targets.gather(1, labels[:, None]).squeeze(1)
    assert len(lam.unique()) > len(images) / 2  # each image draws its own


@pytest.mark.parametrize("policy", POLICIES)
def test_the_compiler_sees_one_graph_with_the_same_results(policy, images):
    mixing = {"mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.8, "random_erasing": 0.5}
    transform = Augment(policy, **NORMALIZATION, num_classes=10, crop_border="reflect", **mixing)
    labels = torch.arange(len(images)) % 10
    lams = transform.draw_lams(0, len(images))
    results = []
    for augment_batch in (
        transform.augment_batch,
        torch.compile(transform.augment_batch, fullgraph=True, backend="eager"),
    ):
        torch.manual_seed(0)
        results.append(augment_batch(images, labels, lams, transform.ranges(32, images.device)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_mix_prob_is_the_fraction_of_images_that_are_mixed(images):
    images = images.repeat(100, 1, 1, 1)
    labels = torch.arange(len(images)) % 10
    transform = Augment("none", **NORMALIZATION, num_classes=10, mixup=0.8, cutmix=1.0, mix_prob=0.3)
    inputs, targets = transform(images, labels)
    is_whole = targets.amax(dim=1) == 1
    assert is_whole.float().mean().item() == pytest.approx(0.7, abs=0.05)
    torch.testing.assert_close(inputs[is_whole], normalize(images[is_whole], **NORMALIZATION))


def invert(images, ranges):
    """A policy of one function."""
    return 255 - images


def test_a_new_policy_is_a_function_and_an_entry(images, tmp_path, monkeypatch):
    monkeypatch.setitem(POLICIES, "invert", Policy("negatives", crops=False, operations=f"{__name__}:invert"))
    inputs, _ = Augment("invert", **NORMALIZATION, num_classes=10)(images, torch.zeros(len(images), dtype=torch.int64))
    assert torch.equal(inputs, normalize(255 - images, **NORMALIZATION))
    for policy in ("invert", "none"):
        run_training(tmp_path, f"--run_name {policy} --augment {policy} --epochs 1 {SMALL_VIT} --num_train_images 100")
    assert not torch.equal(*(load_weights(tmp_path, policy)["head.weight"] for policy in ("invert", "none")))
    run_test(tmp_path, "--model_path invert --mode cifar", monkeypatch)
    compare.main(["invert", "none", "--device", "cpu", "--data_path", str(tmp_path)])
    compared = json.loads(Path("output/comparison/comparison.json").read_text())["runs"]
    assert [run["run"] for run in compared] == ["invert", "none"]
