"""Attention and rollout against plain loops in float64."""

import numpy as np
import pytest
import torch

from explain import attention_maps, attention_rollout, attention_to_patches
from model import VisionTransformer


@pytest.fixture
def maps():
    return torch.rand(3, 2, 4, 10, 10).softmax(dim=-1)  # depth, images, heads, 1 + 3 x 3 tokens


def slow_rollout(maps, fuse, discard_ratio, global_pool):
    depth, images, _, tokens, _ = maps.shape
    grids = []
    for image in range(images):
        rollout = np.eye(tokens)
        for layer in range(depth):
            fused = fuse(maps[layer, image].double().numpy(), axis=0)
            cells = sorted((fused[i, j], i, j) for i in range(tokens) for j in range(1, tokens))
            for _, i, j in cells[: int(tokens * (tokens - 1) * discard_ratio)]:
                fused[i, j] = 0
            mixed = np.zeros((tokens, tokens))
            for i in range(tokens):
                for j in range(tokens):
                    mixed[i, j] = 0.5 * fused[i, j] + 0.5 * (i == j)
                mixed[i] /= mixed[i].sum()
            rollout = mixed @ rollout
        assert np.allclose(rollout.sum(axis=1), 1)
        row = rollout[0, 1:] if global_pool == "token" else rollout[1:, 1:].mean(axis=0)
        grids.append(row.reshape(3, 3))
    return np.stack(grids)


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("fusion", "fuse"), [("mean", np.mean), ("max", np.max), ("min", np.min)])
def test_rollout_is_the_slow_one(maps, fusion, fuse, discard_ratio, global_pool):
    ours = attention_rollout(maps, fusion, discard_ratio, global_pool)
    np.testing.assert_allclose(ours.numpy(), slow_rollout(maps, fuse, discard_ratio, global_pool), atol=1e-5)


def test_attention_to_patches_reads_the_row_that_the_head_reads(maps):
    ours = attention_to_patches(maps, "token")
    expected = maps[1, 0].double().mean(0)[0, 1:].reshape(3, 3)
    np.testing.assert_allclose(ours[1, 0].numpy(), expected.numpy(), atol=1e-6)
    over_patches = attention_to_patches(maps, "avg")[2, 1]
    np.testing.assert_allclose(over_patches.numpy(), maps[2, 1].mean(0)[1:, 1:].mean(0).reshape(3, 3), atol=1e-6)


def test_attention_maps_leave_the_network_as_it_was():
    model = VisionTransformer(patch_size=8, embed_dim=24, depth=3, num_heads=2, drop_rate=0.5).train()
    maps = attention_maps(model, torch.randn(2, 3, 32, 32))
    assert maps.shape == (3, 2, 2, 17, 17)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 2, 17))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
