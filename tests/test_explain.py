"""Every method against plain loops in float64, against timm's network with the same weights, or against `grad-cam`."""

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from model import build_model
from vit_cifar10.explain.methods import (
    attention_maps,
    attention_rollout,
    attention_to_patches,
    grad_cam,
    gradient_rollout,
)

# global_pool, and the number of class tokens
POOLS = [("token", 1), ("avg", 1), ("avg", 0)]


def random_maps(prefix=1):
    tokens = prefix + 9
    return torch.rand(3, 2, 4, tokens, tokens).softmax(dim=-1)  # depth, images, heads, tokens: 3 x 3 patches


def slow_rollout(maps, fuse, discard_ratio, global_pool, prefix):
    depth, images, _, tokens, _ = maps.shape
    grids = []
    for image in range(images):
        rollout = np.eye(tokens)
        for layer in range(depth):
            fused = fuse(maps[layer, image].double().numpy(), axis=0)
            cells = sorted((fused[i, j], i, j) for i in range(tokens) for j in range(prefix, tokens))
            for _, i, j in cells[: int(len(cells) * discard_ratio)]:
                fused[i, j] = 0
            mixed = np.zeros((tokens, tokens))
            for i in range(tokens):
                for j in range(tokens):
                    mixed[i, j] = 0.5 * fused[i, j] + 0.5 * (i == j)
                mixed[i] /= mixed[i].sum()
            rollout = mixed @ rollout
        assert np.allclose(rollout.sum(axis=1), 1)
        row = rollout[0, prefix:] if global_pool == "token" else rollout[prefix:, prefix:].mean(axis=0)
        grids.append(row.reshape(3, 3))
    return np.stack(grids)


@pytest.mark.parametrize(("global_pool", "prefix"), POOLS)
@pytest.mark.parametrize("discard_ratio", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("fusion", "fuse"), [("mean", np.mean), ("max", np.max), ("min", np.min)])
def test_rollout_matches_plain_loops(fusion, fuse, discard_ratio, global_pool, prefix):
    maps = random_maps(prefix)
    ours = attention_rollout(maps, fusion, discard_ratio, global_pool)
    expected = slow_rollout(maps, fuse, discard_ratio, global_pool, prefix)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_attention_to_patches_takes_the_row_of_the_output_token():
    maps = random_maps()
    ours = attention_to_patches(maps, "token")
    expected = maps[1, 0].double().mean(0)[0, 1:].reshape(3, 3)
    np.testing.assert_allclose(ours[1, 0].numpy(), expected.numpy(), atol=1e-6)
    over_patches = attention_to_patches(maps, "avg")[2, 1]
    np.testing.assert_allclose(over_patches.numpy(), maps[2, 1].mean(0)[1:, 1:].mean(0).reshape(3, 3), atol=1e-6)
    maps = random_maps(prefix=0)
    over_patches = attention_to_patches(maps, "avg")[2, 1]
    np.testing.assert_allclose(over_patches.numpy(), maps[2, 1].mean(0).mean(0).reshape(3, 3), atol=1e-6)


# Methods that use gradients. All weights are random, so that none is zero by initialization.


def random_model(kind, **changes):
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, **changes} if kind == "vit" else {}
    model = build_model({"model": kind, "num_classes": 5, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def timm_attentions(model, image, target):
    """The attention of every layer of timm's network with the same weights, and its gradient, in float64."""
    pool = {"global_pool": model.global_pool, "class_token": model.num_prefix_tokens == 1}
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5, **pool
    )
    theirs.load_state_dict(model.state_dict())
    theirs.double().eval()
    seen = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    logits = theirs(image.double()[None])[0]
    gradients = torch.autograd.grad(logits[target], seen)
    return [
        (weights[0].detach().numpy(), gradient[0].numpy()) for weights, gradient in zip(seen, gradients, strict=True)
    ]


@pytest.mark.parametrize(("global_pool", "prefix"), POOLS)
def test_gradient_rollout_matches_plain_loops_on_timms_network(global_pool, prefix):
    model = random_model("vit", global_pool=global_pool, class_token=prefix == 1)
    tokens = prefix + 16
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    ours = gradient_rollout(model, images, targets)
    for image in range(2):
        relevance = np.eye(tokens)
        for weights, gradient in timm_attentions(model, images[image], targets[image]):
            step = np.zeros((tokens, tokens))
            for i in range(tokens):
                for j in range(tokens):
                    step[i, j] = np.mean([max(0.0, gradient[h, i, j] * weights[h, i, j]) for h in range(2)])
            relevance = relevance + step @ relevance
        relevance -= np.eye(tokens)
        row = relevance[0, prefix:] if global_pool == "token" else relevance[prefix:, prefix:].mean(axis=0)
        assert row.max() > 1e-3
        np.testing.assert_allclose(ours[image].numpy(), row.reshape(4, 4), atol=1e-5, rtol=1e-4)


def test_gradient_rollout_depends_on_the_class_and_not_on_the_order_of_heads():
    model = random_model("vit")
    images = torch.randn(2, 3, 32, 32)
    one, other = (gradient_rollout(model, images, torch.tensor([target] * 2)) for target in (0, 1))
    assert (one - other).abs().max() > 0.1 * one.max()
    predicted = model(images).argmax(1)
    torch.testing.assert_close(gradient_rollout(model, images), gradient_rollout(model, images, predicted))
    before = gradient_rollout(model, images)
    with torch.no_grad():
        for block in model.blocks:  # swap heads 0 and 1
            qkv, proj = block.attn.qkv, block.attn.proj
            for values in (qkv.weight, qkv.bias):
                values.copy_(values.unflatten(0, (3, 2, 12)).flip(1).flatten(0, 2))
            proj.weight.copy_(proj.weight.unflatten(1, (2, 12)).flip(1).flatten(1))
    torch.testing.assert_close(gradient_rollout(model, images), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_grad_cam_matches_the_grad_cam_package(kind):
    model = random_model(kind)
    images, targets = torch.randn(4, 3, 32, 32), [0, 1, 2, 3]
    if kind == "cnn":
        layer, reshape = model.features[-1][2], None
    else:
        layer, reshape = model.blocks[-1].norm1, lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    ours = grad_cam(model, images, torch.tensor(targets))
    assert ours.shape == (4, 4, 4)
    with GradCAM(model=model, target_layers=[layer], reshape_transform=reshape) as theirs:
        expected = theirs(input_tensor=images, targets=[ClassifierOutputTarget(target) for target in targets])
    assert expected.max() > 0.9
    # the package scales twice: each layer, then their mean
    enlarged = scale_cam_image(scale_cam_image(ours.numpy(), (32, 32)))
    np.testing.assert_allclose(enlarged, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "explain"),
    [("vit", attention_maps), ("vit", gradient_rollout), ("vit", grad_cam), ("cnn", grad_cam)],
)
def test_explaining_does_not_change_the_network(kind, explain):
    model = random_model(kind).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        images = torch.randn(2, 3, 32, 32)
        targets = [] if explain is attention_maps else [torch.tensor([3, 1])]
        first = explain(model, images, *targets)
    assert torch.equal(first, explain(model, images, *targets))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def explain_in_every_way(model, images):
    maps = attention_maps(model, images)
    return [maps, attention_rollout(maps), gradient_rollout(model, images), grad_cam(model, images)]


def test_explanations_are_float32_also_under_autocast():
    model, images = random_model("vit"), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = explain_in_every_way(model, images)
    outside = explain_in_every_way(model, images)
    for one, other in zip(inside, outside, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_attention_maps_match_timms_network():
    model = random_model("vit")
    image = torch.randn(1, 3, 32, 32)
    maps = attention_maps(model, image)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 1, 2, 17))
    theirs = np.stack([weights for weights, _ in timm_attentions(model, image[0], 0)])
    np.testing.assert_allclose(maps[:, 0].numpy(), theirs, atol=1e-5)


# A case with a known answer


def planted_images(count):
    """Images of 8 x 8 patches in faint colors, except a bright one, whose color is the class.

    Returns the images, their labels, and the index of the bright patch in each.
    """
    position, image = torch.randint(0, 16, (count,)), torch.arange(count)
    colors = torch.randint(0, 3, (count, 16))
    strength = torch.full((count, 16, 1), 0.5)
    strength[image, position] = 1.5
    patches = (torch.nn.functional.one_hot(colors, 3) * strength).transpose(1, 2).view(count, 3, 4, 4)
    enlarged = patches.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return enlarged + 0.3 * torch.randn(count, 3, 32, 32), colors[image, position], position


def train_on_planted(model, steps):
    """Train each logit separately to rise for its class. With a softmax, other logits could carry the evidence."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        images, labels, _ = planted_images(64)
        targets = torch.nn.functional.one_hot(labels, 3).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def fraction_found(relevance, positions):
    return (relevance.flatten(1).argmax(dim=1) == positions).float().mean().item()


def test_gradient_rollout_finds_the_decisive_patch(monkeypatch):
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    model = train_on_planted(build_model({"model": "vit", "num_classes": 3, **sizes}), steps=200)
    images, labels, positions = planted_images(400)
    assert (model(images).argmax(1) == labels).float().mean() > 0.98
    assert fraction_found(gradient_rollout(model, images), positions) >= 0.95

    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs: grad(outputs, inputs)[::-1])
    assert fraction_found(gradient_rollout(model, images), positions) < 0.95  # with the gradients of the wrong layers
