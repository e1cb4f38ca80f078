import pytest
import timm
import torch
from timm.utils import AttentionExtract

from model import SimpleCNN, VisionTransformer, build_model

SIZES = [
    {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3},
    {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0},
    {"img_size": 48, "patch_size": 6, "embed_dim": 30, "depth": 2, "num_heads": 5, "num_classes": 7, "in_chans": 1},
    {"img_size": 224, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 100},
]


def random_weights(model):
    """Every weight drawn anew, so that no zero or one can hide a difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model.eval()


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("size", SIZES)
def test_weights_and_logits_are_timms(size, global_pool):
    ours = random_weights(VisionTransformer(**size, global_pool=global_pool))
    theirs = timm.models.VisionTransformer(**{"num_classes": 10, **size}, global_pool=global_pool).eval()
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
    kept = branch(torch.ones(4000, 5, 7))
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_written_out_attention_is_the_fused_one(global_pool):
    model = random_weights(VisionTransformer(**SIZES[0], global_pool=global_pool))
    images = torch.randn(2, 3, 32, 32)
    logits, attentions = model.forward_with_attention(images)
    torch.testing.assert_close(logits, model(images), atol=1e-5, rtol=1e-5)
    assert [tuple(weights.shape) for weights in attentions] == [(2, 3, 65, 65)] * 3
    torch.testing.assert_close(torch.stack(attentions).sum(-1), torch.ones(3, 2, 3, 65))
    gradients = torch.autograd.grad(logits[:, 0].sum(), attentions)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_attention_dropout_has_the_same_strength_both_ways():
    model = VisionTransformer(**SIZES[0], attn_drop_rate=0.5)
    attention = random_weights(model).blocks[0].attn.train()
    tokens = torch.randn(1, 65, 48).expand(2000, -1, -1)
    fused, written_out = attention(tokens), attention.forward_with_weights(tokens)[0]
    undisturbed = attention.eval()(tokens[:1])
    for disturbed in (fused, written_out):
        torch.testing.assert_close(disturbed.mean((0, 1)), undisturbed.mean((0, 1)), atol=0.02, rtol=0.02)
    assert fused.std(0).mean().item() == pytest.approx(written_out.std(0).mean().item(), rel=0.02)
    assert fused.std(0).mean() > 0.05


@pytest.mark.parametrize("method", ["fx", "hook"])
def test_timms_tools_read_its_attention(method):
    model = random_weights(VisionTransformer(**SIZES[0]))
    images = torch.randn(2, 3, 32, 32)
    _, ours = model.forward_with_attention(images)
    for block in model.blocks:
        block.attn.fused_attn = False
    theirs = AttentionExtract(model, method=method)(images)
    assert len(theirs) == 3
    for one, other in zip(ours, theirs.values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"img_size": 32, "patch_size": 5}, "1, 2, 4, 8, 16, 32"),
        ({"embed_dim": 100, "num_heads": 3}, "99"),
        ({"global_pool": "max"}, "avg"),
    ],
)
def test_sizes_that_do_not_fit_say_what_would(arguments, advice):
    with pytest.raises(ValueError, match=advice):
        VisionTransformer(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(AssertionError, match="32x32"):
        VisionTransformer(depth=1)(torch.zeros(1, 3, 64, 64))


def test_cnn_is_the_four_convolutions():
    model = SimpleCNN().eval()
    features = model.features(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, 256, 2, 2)
    widths = [module.weight.shape[:2] for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert widths == [(32, 3), (64, 32), (128, 64), (256, 128)]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert SimpleCNN(img_size=64)(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_build_model_follows_its_dict_and_refuses_others():
    vit = build_model({"model": "vit", "depth": 1, "embed_dim": 12, "num_heads": 2, "num_classes": 4})
    assert isinstance(vit, VisionTransformer)
    assert vit(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    assert isinstance(build_model({"model": "cnn"}), SimpleCNN)
    for config in ({}, {"model": "mlp"}, {"model": "cnn", "depth": 3}):
        with pytest.raises(ValueError, match="network"):
            build_model(config)
