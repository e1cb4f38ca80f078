"""Every operation against torchvision's on the same parameters, and the draws themselves."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as reference
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

from vit_cifar10.data import augment
from vit_cifar10.data.augment import OPERATIONS, Augment, apply_operations
from vit_cifar10.data.dataset import draw_shapes, normalize

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
    """Drawn shapes, noise, and the images that tables stumble over: one value only, two values only."""
    drawn, _ = draw_shapes(20, 32, seed=3)
    noise = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    flat = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    flat[1, :, :3] = 200
    return torch.cat([drawn, noise, flat])


@pytest.mark.parametrize(
    ("name", "magnitude"), [(name, magnitude) for name in OPERATIONS for magnitude in MAGNITUDES[name]]
)
def test_operations_are_torchvisions(name, magnitude, images):
    codes = torch.full((len(images),), OPERATIONS.index(name))
    ours = apply_operations(images, codes, torch.full((len(images),), float(magnitude)))
    theirs = torch.stack([_apply_op(image, name, magnitude, InterpolationMode.NEAREST, None) for image in images])
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1  # a factor in float32 where torchvision's is a Python float
    assert (difference > 0).float().mean() < (0.1 if name in ("Brightness", "Sharpness") else 1e-9)
    assert name == "Identity" or magnitude in (8, 255.0) or not torch.equal(ours, images)


def test_each_image_gets_its_own_operation(images):
    codes = torch.arange(len(images)) % len(OPERATIONS)
    magnitudes = torch.tensor([float(MAGNITUDES[OPERATIONS[code]][-1]) for code in codes])
    together = apply_operations(images, codes, magnitudes)
    for index in range(len(images)):
        alone = apply_operations(images[index : index + 1], codes[index : index + 1], magnitudes[index : index + 1])
        assert torch.equal(together[index], alone[0])


@pytest.mark.parametrize(
    ("ours", "theirs", "level"),
    [
        (augment._ranges(0.99, 32, 135, 0.99, 2, "cpu"), TrivialAugmentWide()._augmentation_space(31), 30),
        (augment._ranges(0.3, 150 / 331 * 32, 30, 0.9, 4, "cpu"), RandAugment()._augmentation_space(31, (32, 32)), 9),
    ],
)
def test_ranges_are_torchvisions(ours, theirs, level):
    for name, (space, signed) in theirs.items():
        lowest, highest, ours_signed = ours[OPERATIONS.index(name)].tolist()
        magnitude = lowest + (highest - lowest) * level / 30
        expected = space[level].item() if space.ndim else space.item()
        assert (round(magnitude) if name == "Posterize" else magnitude) == pytest.approx(expected, abs=1e-4)
        assert bool(ours_signed) == signed


@pytest.mark.parametrize("policy", [augment.trivial_augment_wide, augment.rand_augment])
def test_policies_draw_every_operation_for_every_image(policy):
    drawn = []
    policy(
        torch.zeros(14_000, 3, 32, 32, dtype=torch.uint8),
        lambda images, codes, magnitudes: drawn.append((codes, magnitudes)) or images,
    )
    assert len(drawn) == (1 if policy is augment.trivial_augment_wide else 2)
    codes, magnitudes = drawn[0]
    assert codes.bincount(minlength=14).min() > 800
    turned = magnitudes[codes == OPERATIONS.index("Rotate")]
    assert (turned > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert len(turned.abs().unique()) == (31 if policy is augment.trivial_augment_wide else 1)


def test_crop_and_flip_are_torchvisions(images):
    count = len(images)
    top, left = torch.randint(0, 9, (2, count))
    flip = torch.rand(count) < 0.5
    ours = augment.crop_and_flip(images, top, left, flip, padding=4)
    for index, image in enumerate(images):
        expected = reference.crop(reference.pad(image, 4), top[index], left[index], 32, 32)
        expected = reference.hflip(expected) if flip[index] else expected
        assert torch.equal(ours[index], expected)


def test_crops_reach_every_place():
    marked = torch.zeros(2000, 1, 32, 32, dtype=torch.uint8)
    marked[:, :, 16, 16] = 1
    seen = augment.random_crop_and_flip(marked).sum(dim=(0, 1))
    assert (seen > 0).sum() == 9 * 10  # 9 rows; 9 columns, and 9 mirrored ones that are one off
    assert seen.sum() == 2000


def test_erase_is_torchvisions():
    inputs = torch.randn(20, 3, 32, 32)
    top, left = torch.randint(0, 20, (2, 20))
    height, width = torch.randint(1, 12, (2, 20))
    ours = augment.erase(inputs, *(side.float() for side in (top, left, height, width)))
    for index in range(20):
        place = (value[index].item() for value in (top, left, height, width))
        assert torch.equal(ours[index], reference.erase(inputs[index], *place, v=torch.zeros(1)))


def test_random_erasing_erases_as_often_and_as_much_as_torchvision():
    inputs = torch.ones(3000, 1, 32, 32)
    ours = 1 - augment.random_erase(inputs, 0.5).mean((1, 2, 3))
    eraser = v2.RandomErasing(p=0.5)
    theirs = 1 - torch.stack([eraser(image).mean() for image in inputs])
    assert (ours > 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=0.08)
    quantiles = torch.tensor([0.6, 0.8, 0.95])
    torch.testing.assert_close(ours.quantile(quantiles), theirs.quantile(quantiles), atol=0.02, rtol=0)


def test_mixup_is_torchvisions():
    inputs, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    mixup = v2.MixUp(num_classes=8)
    params = {"lam": 0.3, "labels": labels, "batch_size": 8}
    shares = augment.mixup_shares(inputs, torch.full((8,), 0.3))
    ours = augment.mix(inputs, torch.eye(8), shares)
    torch.testing.assert_close(ours[0], mixup.transform(inputs, params))
    torch.testing.assert_close(ours[1], mixup.transform(labels, params))


def test_cutmix_is_torchvisions():
    inputs, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    share, place_y, place_x = 0.6, 0.85, 0.4
    half = int(0.5 * math.sqrt(1 - share) * 32)
    y, x = int(place_y * 32), int(place_x * 32)
    box = (max(x - half, 0), max(y - half, 0), min(x + half, 32), min(y + half, 32))
    kept = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 32**2
    params = {"box": box, "lam_adjusted": kept, "labels": labels, "batch_size": 8}
    cutmix = v2.CutMix(num_classes=8)
    shares = augment.cutmix_shares(inputs, *(torch.full((8,), value) for value in (share, place_y, place_x)))
    ours = augment.mix(inputs, torch.eye(8), shares)
    torch.testing.assert_close(ours[0], cutmix.transform(inputs, params))
    torch.testing.assert_close(ours[1], cutmix.transform(labels, params))


@pytest.mark.parametrize("policy", augment.POLICIES)
@pytest.mark.parametrize("mixing", [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_augment_gives_what_the_network_trains_on(policy, mixing, images):
    labels = torch.arange(len(images)) % 10
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    inputs, targets = Augment(policy, mean, std, 10, *mixing, random_erasing=0.5)(images, labels)
    assert (inputs.shape, inputs.dtype) == (images.shape, torch.float32)
    if mixing == (0.0, 0.0):
        assert torch.equal(targets, labels)
        return
    torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))
    own = targets.gather(1, labels[:, None]).squeeze(1)
    assert len(own.unique()) > len(images) / 2  # each image has drawn its own share


def test_the_share_of_mixed_images_is_what_was_asked_for(images):
    many = images.repeat(100, 1, 1, 1)
    labels = torch.arange(len(many)) % 10
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    inputs, targets = Augment("none", mean, std, 10, mixup=0.8, cutmix=1.0, mix_prob=0.3)(many, labels)
    whole = targets.amax(dim=1) == 1
    assert whole.float().mean().item() == pytest.approx(0.7, abs=0.05)
    torch.testing.assert_close(inputs[whole], normalize(many[whole], mean, std))
