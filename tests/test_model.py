"""Tests that the networks match timm and the papers, and refuse arguments that do not fit."""

import pytest
import timm
import torch
from timm.utils import AttentionExtract

from model import Dropout, FastCNN, PatchDropout, SimpleCNN, VisionTransformer, build_model

pytestmark = pytest.mark.quick

SIZES = [
    {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3},
    {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0},
    {"img_size": 48, "patch_size": 6, "embed_dim": 30, "depth": 2, "num_heads": 5, "num_classes": 7, "in_chans": 1},
    {"img_size": 224, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 100},
]


def random_weights(model):
    """Draw all weights at random: initial zeros and ones could hide a difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model.eval()


POOLS = [{"global_pool": "token"}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", SIZES)
def test_weights_and_logits_match_timm(size, pool):
    ours = random_weights(VisionTransformer(**size, **pool))
    theirs = timm.models.VisionTransformer(**{"num_classes": 10, **size, **pool}).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(3, size.get("in_chans", 3), size["img_size"], size["img_size"])
    with torch.no_grad():
        assert theirs(images).std() > 0.1
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_drop_path_grows_as_in_timm():
    ours = VisionTransformer(depth=5, embed_dim=12, num_heads=3, drop_path_rate=0.2)
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=4, depth=5, embed_dim=12, num_heads=3, drop_path_rate=0.2
    )
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    assert [block.drop_path1.drop_prob for block in ours.blocks] == pytest.approx(rates)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    branch = VisionTransformer(depth=2, embed_dim=12, num_heads=3, drop_path_rate=0.25).blocks[1].drop_path2.train()
    output = branch(torch.ones(4000, 5, 7))
    assert output.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (output == output[:, :1, :1]).all()
    assert output.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("pool", POOLS)
def test_written_out_attention_equals_the_fused_kernel(pool):
    model = random_weights(VisionTransformer(**SIZES[0], **pool))
    images = torch.randn(2, 3, 32, 32)
    logits, attentions = model.forward_with_attention(images)
    torch.testing.assert_close(logits, model(images), atol=1e-5, rtol=1e-5)
    tokens = 64 + model.num_prefix_tokens
    assert [tuple(weights.shape) for weights in attentions] == [(2, 3, tokens, tokens)] * 3
    torch.testing.assert_close(torch.stack(attentions).sum(-1), torch.ones(3, 2, 3, tokens))
    gradients = torch.autograd.grad(logits[:, 0].sum(), attentions)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_attention_dropout_is_equally_strong_fused_and_written_out():
    model = VisionTransformer(**SIZES[0], attn_drop_rate=0.5)
    attention = random_weights(model).blocks[0].attn.train()
    tokens = torch.randn(1, 65, 48).expand(2000, -1, -1)
    fused, written_out = attention(tokens), attention.forward_with_weights(tokens)[0]
    without_dropout = attention.eval()(tokens[:1])
    for with_dropout in (fused, written_out):
        torch.testing.assert_close(with_dropout.mean((0, 1)), without_dropout.mean((0, 1)), atol=0.02, rtol=0.02)
    assert fused.std(0).mean().item() == pytest.approx(written_out.std(0).mean().item(), rel=0.02)
    assert fused.std(0).mean() > 0.05


@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
def test_bf16_gradients_on_the_cpu_are_close_to_fp32(drop_rate):
    model = VisionTransformer(**SIZES[0], drop_rate=drop_rate)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        parameters = list(model.parameters())
        gradients[dtype] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    cosine = torch.nn.functional.cosine_similarity(*gradients.values(), dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_on_the_cpu_zeroes_the_right_fraction_and_keeps_the_mean(dtype):
    layer = Dropout(0.3).train()
    output = layer(torch.ones(1000, 999, dtype=dtype))
    assert output.dtype == dtype
    assert (output == 0).float().mean().item() == pytest.approx(0.3, abs=2e-3)
    assert output.unique().tolist() == [0.0, pytest.approx(1 / 0.7, rel=5e-3)]
    assert (output == 0).float().mean(dim=0).std() == pytest.approx((0.3 * 0.7 / 1000) ** 0.5, rel=0.1)
    assert not torch.equal(output, layer(torch.ones(1000, 999, dtype=dtype)))
    assert torch.equal(layer.eval()(output), output)


@pytest.mark.parametrize("method", ["fx", "hook"])
def test_timms_attention_extraction_works(method):
    model = random_weights(VisionTransformer(**SIZES[0], drop_rate=0.1, attn_drop_rate=0.1))
    images = torch.randn(2, 3, 32, 32)
    _, ours = model.forward_with_attention(images)
    for block in model.blocks:
        block.attn.fused_attn = False
    theirs = AttentionExtract(model, method=method)(images)
    assert len(theirs) == 3
    for our_weights, their_weights in zip(ours, theirs.values(), strict=True):
        torch.testing.assert_close(our_weights, their_weights)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"img_size": 32, "patch_size": 5}, "1, 2, 4, 8, 16, 32"),
        ({"embed_dim": 100, "num_heads": 3}, "99"),
        ({"global_pool": "max"}, "avg"),
        ({"class_token": False}, "avg"),
    ],
)
def test_errors_about_sizes_suggest_sizes_that_fit(arguments, advice):
    with pytest.raises(ValueError, match=advice):
        VisionTransformer(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(AssertionError, match="32x32"):
        VisionTransformer(depth=1)(torch.zeros(1, 3, 64, 64))


def test_patch_dropout_keeps_different_random_patches_of_each_image():
    drop = PatchDropout(keep=0.25)
    patches = torch.arange(64.0).expand(4000, -1)[:, :, None].repeat(1, 1, 2)  # patch i is (i, i)
    kept = drop(patches)
    assert kept.shape == (4000, 16, 2)
    assert all(len(image.unique()) == 16 for image in kept[:100])
    assert kept[..., 0].flatten().long().bincount() / 4000 == pytest.approx(torch.full((64,), 0.25), abs=0.05)
    assert drop.eval()(patches) is patches


@pytest.mark.parametrize("pool", [{}, {"global_pool": "avg", "class_token": False}], ids=["token", "avg"])
def test_images_of_other_sizes_match_timm_where_they_are_allowed(pool):
    ours = random_weights(VisionTransformer(embed_dim=24, depth=2, num_heads=2, **pool)).eval()
    size = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 10}
    theirs = timm.models.VisionTransformer(dynamic_img_size=True, **size, **pool).eval()
    theirs.load_state_dict(ours.state_dict())
    ours.patch_embed.strict_img_size = False
    for side in (16, 32, 40):
        images = torch.randn(2, 3, side, side)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_cnn_has_four_convolutions_of_the_right_widths():
    model = SimpleCNN().eval()
    features = model.features(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, 256, 2, 2)
    widths = [module.weight.shape[:2] for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert widths == [(32, 3), (64, 32), (128, 64), (256, 128)]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in SimpleCNN(width=25).parameters()) == 562_085
    assert SimpleCNN(img_size=64)(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_the_fast_cnn_computes_as_its_authors_describe():
    model = FastCNN().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_972_792
    features = images = torch.randn(2, 3, 32, 32)
    for name, value in model.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 2)
    model.whitening.bias.data.normal_()
    state, functional = model.state_dict(), torch.nn.functional
    features = functional.gelu(functional.conv2d(images, state["whitening.weight"], state["whitening.bias"]))
    for group in range(3):
        for conv, norm in ((0, 2), (4, 5)):
            weight = state[f"groups.{group}.{conv}.weight"]
            inputs = weight.shape[1]
            identity = torch.eye(inputs)[:, :, None, None] * torch.tensor([0, 1, 0]).outer(torch.tensor([0, 1, 0]))
            assert torch.equal(weight[:inputs], identity)
            features = functional.conv2d(features, weight, padding=1)
            features = functional.max_pool2d(features, 2) if conv == 0 else features
            mean, var, bias = (
                state[f"groups.{group}.{norm}.{name}"] for name in ("running_mean", "running_var", "bias")
            )
            shape = (1, -1, 1, 1)
            features = (features - mean.view(shape)) / var.view(shape).sqrt() + bias.view(shape)
            features = functional.gelu(features)
    logits = features.amax((2, 3)) @ state["head.weight"].T / 9
    torch.testing.assert_close(model(images), logits)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name in trained for name in ("whitening.weight", "groups.0.2.weight", "groups.2.5.weight"))
    assert len(trained) == 1 + 3 * 4 + 1  # a bias, then two kernels and two biases a group, and the head
    assert FastCNN(img_size=9, width=4)(torch.zeros(2, 3, 9, 9)).shape == (2, 10)


def test_whitening_makes_the_values_of_patches_uncorrelated():
    mixed = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 18, 18), 3, stride=1, padding=0).cumsum(dim=1)
    model = FastCNN(img_size=16)
    model.whiten(mixed)
    outputs = model.whitening(mixed)
    torch.testing.assert_close(outputs[:, :12], -outputs[:, 12:])
    values = outputs[:, :12].transpose(0, 1).flatten(1)
    covariance = (values @ values.T / values.shape[1]).detach()
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    assert ((covariance.diag() > 0.5) & (covariance.diag() < 1 + 1e-3)).all()  # the 5e-4 shrinks small eigenvalues


def test_build_model_follows_its_config_and_refuses_unknown_arguments():
    vit = build_model({"model": "vit", "depth": 1, "embed_dim": 12, "num_heads": 2, "num_classes": 4})
    assert isinstance(vit, VisionTransformer)
    assert vit(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    assert isinstance(build_model({"model": "cnn"}), SimpleCNN)
    for config in ({}, {"model": "mlp"}, {"model": "cnn", "depth": 3}):
        with pytest.raises(ValueError, match="network"):
            build_model(config)
