"""Every method against plain loops in float64, against timm's network with the same weights, or against `grad-cam`."""

import copy
import itertools

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sklearn.linear_model import Ridge

import planted
from model import FastCNN, build_model
from vit_cifar10.explain.lens import head_contributions, logit_lens, patch_logits
from vit_cifar10.explain.maps import (
    attention_maps,
    attention_rollout,
    attention_to_patches,
    grad_cam,
    gradient_rollout,
)
from vit_cifar10.explain.masks import RIDGE, mask_maps
from vit_cifar10.explain.methods import best_method, find, methods_for
from vit_cifar10.explain.propagation import (
    GAMMA,
    attn_lrp,
    deep_lift,
    full_grad_plus,
    res_lrp,
    res_lrp_by_layer,
    residual_sum,
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
    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2} if kind == "vit" else {}
    model = build_model({"model": kind, "num_classes": 5, **sizes, **changes})
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


def test_attention_maps_match_timms_network():
    model = random_model("vit")
    image = torch.randn(1, 3, 32, 32)
    maps = attention_maps(model, image)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 1, 2, 17))
    theirs = np.stack([weights for weights, _ in timm_attentions(model, image[0], 0)])
    np.testing.assert_allclose(maps[:, 0].numpy(), theirs, atol=1e-5)


# Relevance propagation, against its rules written out in float64


def divide(relevance, contributions, total):
    """The rule LRP-0: relevance of a sum is divided in proportion to its terms."""
    return relevance * contributions / total


class SlowAttnLrp:
    """AttnLRP or, with `gamma`, ResLRP of a ViT for one image, rule by rule, in float64, without autograd.

    `absorbed` is the relevance that biases, positions and the class token receive, and that the softmax loses.
    `entering` is the relevance (1, N, D) of the tokens that enter each layer.
    """

    def __init__(self, model, image, gamma=0.0):
        self.model, self.image, self.absorbed = copy.deepcopy(model).double(), image.double(), 0.0
        self.gamma, self.entering = gamma, []

    def residual(self, relevance, stream, branch):
        """The relevance of both parts of a sum. The one with the sign of the sum counts 1 + gamma times."""
        total = stream + branch
        grown = [part * torch.where(part.sign() == total.sign(), 1 + self.gamma, 1) for part in (stream, branch)]
        return [divide(relevance, part, sum(grown)) for part in grown]

    def linear(self, layer, x, relevance):
        output = x @ layer.weight.T + layer.bias
        self.absorbed += divide(relevance, layer.bias, output).sum()
        return x * ((relevance / output) @ layer.weight)

    def norm(self, layer, x, relevance):
        std = (x.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt()
        output = (x - x.mean(-1, keepdim=True)) / std * layer.weight + layer.bias
        self.absorbed += divide(relevance, layer.bias, output).sum()
        slope = relevance / output * layer.weight / std
        return x * (slope - slope.mean(-1, keepdim=True))

    def matmul(self, one, other, relevance):
        """Half of the relevance of a product of two matrices for each of them."""
        ratio = relevance / (one @ other) / 2
        return one * (ratio @ other.transpose(-2, -1)), other * (one.transpose(-2, -1) @ ratio)

    def attention(self, layer, x, relevance):
        query, key, value = layer.project(x)
        scores = query @ key.transpose(-2, -1) * layer.scale
        weights = scores.softmax(-1)
        merged = (weights @ value).transpose(1, 2).flatten(2)
        of_heads = self.linear(layer.proj, merged, relevance).unflatten(2, (layer.num_heads, -1)).transpose(1, 2)
        of_weights, of_value = self.matmul(weights, value, of_heads)
        of_scores = scores * (of_weights - weights * of_weights.sum(-1, keepdim=True))
        self.absorbed += of_weights.sum() - of_scores.sum()
        of_query, of_key = self.matmul(query, key.transpose(-2, -1) * layer.scale, of_scores)
        joined = torch.stack([of_query, of_key.transpose(-2, -1), of_value]).permute(1, 3, 0, 2, 4).flatten(2)
        return self.linear(layer.qkv, x, joined)

    def block(self, block, x, relevance):
        mixed = block.attn(block.norm1(x))
        middle = x + mixed
        normed = block.norm2(middle)
        hidden = block.mlp.fc1(normed)
        branch = block.mlp.fc2(block.mlp.act(hidden))
        of_middle, of_branch = self.residual(relevance, middle, branch)
        of_hidden = self.linear(block.mlp.fc2, block.mlp.act(hidden), of_branch)  # the GELU passes it on
        of_middle = of_middle + self.norm(block.norm2, middle, self.linear(block.mlp.fc1, normed, of_hidden))
        of_x, of_mixed = self.residual(of_middle, x, mixed)
        return of_x + self.norm(block.norm1, x, self.attention(block.attn, block.norm1(x), of_mixed))

    @torch.no_grad()
    def explain(self, target):
        model, prefix = self.model, self.model.num_prefix_tokens
        states = [model.embed(self.image[None])]
        for block in model.blocks:
            states.append(block(states[-1]))
        last = model.norm(states[-1])
        pools = model.global_pool == "avg"
        pooled = last[:, prefix:].mean(1) if pools else last[:, 0]
        head = model.fc_norm(pooled)
        relevance = torch.zeros(1, model.head.out_features).double()
        relevance[0, target] = self.logit = model.head(head)[0, target]
        relevance = self.linear(model.head, head, relevance)
        if pools:
            relevance = self.norm(model.fc_norm, pooled, relevance)
            of_tokens = torch.zeros_like(last)
            of_tokens[:, prefix:] = divide(relevance[:, None], last[:, prefix:] / last[:, prefix:].shape[1], pooled)
        else:
            of_last = torch.zeros_like(last)
            of_last[:, 0] = relevance
            of_tokens = self.norm(model.norm, states[-1], of_last)
        for block, x in reversed(list(zip(model.blocks, states, strict=False))):
            of_tokens = self.block(block, x, of_tokens)
            self.entering.insert(0, of_tokens)
            assert (of_tokens.sum() + self.absorbed).item() == pytest.approx(self.logit.item(), rel=1e-9)
        return self.patches(states[0], of_tokens)

    def patches(self, tokens, relevance):
        prefix, layer = self.model.num_prefix_tokens, self.model.patch_embed.proj
        self.absorbed += relevance[:, :prefix].sum()
        tokens, relevance = tokens[:, prefix:], relevance[:, prefix:]
        self.absorbed += divide(relevance, self.model.pos_embed[:, prefix:] + layer.bias, tokens).sum()
        pixels = torch.nn.functional.unfold(self.image[None], 8, stride=8).transpose(1, 2)  # (1, 16, 3 * 8 * 8)
        return (pixels * ((relevance / tokens) @ layer.weight.flatten(1))).sum(2).view(4, 4)


@pytest.mark.parametrize(("global_pool", "prefix"), POOLS)
@pytest.mark.parametrize("gamma", [0, 0.25, 1])
def test_attn_lrp_and_res_lrp_match_their_rules_and_conserve_relevance(gamma, global_pool, prefix):
    model = random_model("vit", global_pool=global_pool, class_token=prefix == 1)
    images, targets = torch.randn(3, 3, 32, 32), torch.tensor([1, 4, 0])
    by_layer = res_lrp_by_layer(model, images, targets, gamma)
    assert torch.equal(by_layer[0], (res_lrp if gamma else attn_lrp)(model, images, targets, *[gamma] * bool(gamma)))
    for image in range(3):
        slow = SlowAttnLrp(model, images[image], gamma)
        expected = slow.explain(targets[image])
        assert expected.min() < 0 < expected.max()
        assert (expected.sum() + slow.absorbed).item() == pytest.approx(slow.logit.item(), rel=1e-9)
        of_layers = [tokens[0, prefix:].sum(1).view(4, 4) for tokens in slow.entering]
        for ours, theirs in zip(by_layer[:, image], [expected, *of_layers[1:]], strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5 * expected.abs().max().item())
    assert torch.equal(attn_lrp(model, images), attn_lrp(model, images, model(images).argmax(1)))


def test_res_lrp_divides_a_sum_by_the_sign_of_its_terms_and_keeps_its_value():
    """Checked by hand: of 5 = 6 - 1, the 6 counts 12 with gamma = 1, so it gets 12 / 11 of the relevance."""
    stream, branch = (torch.tensor(values, requires_grad=True) for values in ([6.0, 2, 3, 1], [-1.0, 1, -3, 0]))
    total = residual_sum(stream, branch, gamma=1.0)
    assert total.tolist() == [5, 3, 0, 1]
    of_stream, of_branch = torch.autograd.grad(total.sum(), (stream, branch))
    assert (of_stream * stream).tolist() == pytest.approx([5 * 12 / 11, 2, 3, 1])
    assert (of_branch * branch).tolist() == pytest.approx([-5 / 11, 1, -3, 0])


# FullGrad+, against its definition


class ConstantVit:
    """A ViT in float64 whose slopes are constants from one image, which makes it linear."""

    def __init__(self, model, image):
        self.model = model = copy.deepcopy(model).double()
        self.entering, self.constants = [model.embed(image.double()[None])], []
        for block in model.blocks:
            x = self.entering[-1]
            mixed, weights = block.attn.forward_with_weights(block.norm1(x))
            hidden = block.mlp.fc1(block.norm2(x + mixed))
            stds = self.std(block.norm1, x), self.std(block.norm2, x + mixed)
            self.constants.append((weights, *stds, block.mlp.act(hidden) / hidden))
            self.entering.append(block(x))
        self.last_norm = model.fc_norm if model.pools_first else model.norm
        self.last_std = self.std(self.last_norm, model.pool(self.entering[-1]))

    @staticmethod
    def std(norm, x):
        return (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()

    def logits(self, start, x, without=(None, None, None)):
        """The logits of tokens that enter a layer, `without` this bias (layer, name) at this token."""

        def bias(layer, name, module):
            values = module.bias.expand(x.shape[1], -1).clone()
            if without[:2] == (layer, name):
                values[without[2]] = 0
            return values

        def norm(module, x, std, values):
            return (x - x.mean(-1, keepdim=True)) / std * module.weight + values

        for layer in range(start, len(self.model.blocks)):
            block, (weights, std1, std2, factor) = self.model.blocks[layer], self.constants[layer]
            attn, mlp = block.attn, block.mlp
            qkv = norm(block.norm1, x, std1, bias(layer, "norm1", block.norm1)) @ attn.qkv.weight.T
            value = (qkv + bias(layer, "qkv", attn.qkv)).chunk(3, dim=-1)[2].unflatten(2, (attn.num_heads, -1))
            heads = (weights @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
            x = x + heads @ attn.proj.weight.T + bias(layer, "proj", attn.proj)
            hidden = norm(block.norm2, x, std2, bias(layer, "norm2", block.norm2)) @ mlp.fc1.weight.T
            hidden = (hidden + bias(layer, "fc1", mlp.fc1)) * factor
            x = x + hidden @ mlp.fc2.weight.T + bias(layer, "fc2", mlp.fc2)
        read = norm(self.last_norm, self.model.pool(x), self.last_std, self.last_norm.bias)
        return self.model.head(read.flatten(1))[0]

    @torch.no_grad()
    def full_grad_plus(self, target):
        """What the logit loses without each token or bias, summed over the layers and biases: (tokens,)."""
        whole = self.logits(0, self.entering[0])[target]
        lost = torch.zeros(self.entering[0].shape[1]).double()
        for layer, token in itertools.product(range(len(self.model.blocks)), range(len(lost))):
            x = self.entering[layer].clone()
            x[:, token] = 0
            lost[token] += whole - self.logits(layer, x)[target]
            for name in ("norm1", "qkv", "proj", "norm2", "fc1", "fc2"):
                lost[token] += whole - self.logits(0, self.entering[0], (layer, name, token))[target]
        return lost


@pytest.mark.parametrize(("global_pool", "prefix"), POOLS)
def test_full_grad_plus_matches_what_a_linear_network_loses(global_pool, prefix):
    model = random_model("vit", global_pool=global_pool, class_token=prefix == 1, depth=2)
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    ours = full_grad_plus(model, images, targets)
    for image in range(1, 2):
        slow = ConstantVit(model, images[image])
        torch.testing.assert_close(slow.logits(0, slow.entering[0]).float(), model(images)[image])
        expected = slow.full_grad_plus(targets[image])[prefix:].view(4, 4)
        np.testing.assert_allclose(ours[image].numpy(), expected.numpy(), atol=1e-5 * expected.abs().max().item())


def slow_deep_lift(model, image, target):
    """DeepLIFT's multipliers, module by module in float64, for one image and a reference of zeros."""
    leaves = {"Conv2d", "BatchNorm2d", "ReLU", "GELU", "MaxPool2d", "Flatten", "Dropout", "Linear"}
    modules = [
        module for module in model.modules() if type(module).__name__ in leaves
    ]  # in the order of the forward pass
    if isinstance(model, FastCNN):
        modules = [*modules[:-1], torch.nn.Flatten(), modules[-1]]
    states = [torch.stack([image, torch.zeros_like(image)]).double()]
    for module in modules:
        states.append(copy.deepcopy(module).double()(states[-1]))
    slope = torch.zeros(1, states[-1].shape[1]).double()
    slope[0, target] = 1
    for module, x, y in reversed(list(zip(modules, states, states[1:], strict=False))):
        kind = type(module).__name__
        if kind == "Linear":
            slope = slope @ module.weight.double() / (9 if isinstance(model, FastCNN) else 1)
        elif kind == "Flatten":
            slope = slope.view(1, *x.shape[1:])
        elif kind == "Conv2d":
            slope = torch.nn.functional.conv_transpose2d(slope, module.weight.double(), padding=module.padding)
        elif kind == "BatchNorm2d":
            slope = slope * (module.weight / (module.running_var + module.eps).sqrt()).double()[:, None, None]
        elif kind in ("ReLU", "GELU"):
            change = x[0] - x[1]
            slope = slope * torch.where(change == 0, 0.0, (y[0] - y[1]) / change)
        elif kind == "MaxPool2d":
            slope = slow_max_pool(slope, x, y, module.kernel_size)
    difference = y_difference(states[-1], target)
    return (slope[0] * image.double()).sum(0), difference / (9 if isinstance(model, FastCNN) else 1)


def y_difference(logits, target):
    return (logits[0] - logits[1])[target].item()


def slow_max_pool(slope, x, y, size):
    result = torch.zeros_like(x[:1])
    for channel, row, column in itertools.product(*map(range, y.shape[1:])):  # windows that fit, as PyTorch pools
        window = x[:, channel, size * row : size * (row + 1), size * column : size * (column + 1)].reshape(2, -1)
        (new, old), top = y[:, channel, row, column], max(y[0, channel, row, column], y[1, channel, row, column])
        tie = 1e-5 * x.abs().amax(dim=(1, 2, 3))  # the reference has windows of one value, apart from rounding errors
        places = [int((values >= values.max() - tie[i]).nonzero()[0]) for i, values in enumerate(window)]
        for place, change in zip(places, (top - old, new - top), strict=True):
            if change != 0:
                at = (0, channel, size * row + place // size, size * column + place % size)
                result[at] += slope[0, channel, row, column] * change / (window[0] - window[1])[place]
    return result


@pytest.mark.parametrize("kind", ["cnn", "fast-cnn"])
@pytest.mark.parametrize("size", [32, 30, 19])  # 4 divides only the first
def test_deep_lift_matches_its_rules_and_explains_the_whole_difference_to_the_reference(kind, size):
    torch.manual_seed(2)
    model = random_model(kind, width=4, img_size=size)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images, targets = torch.randn(2, 3, size, size), torch.tensor([1, 4])
    ours = deep_lift(model, images, targets)
    for image in range(2):
        expected, difference = slow_deep_lift(model, images[image], targets[image])
        cells = torch.zeros(size // 4, size // 4).double()
        for row, column in itertools.product(range(size), repeat=2):
            cells[row * (size // 4) // size, column * (size // 4) // size] += expected[row, column].detach()
        np.testing.assert_allclose(ours[image].numpy(), cells.detach().numpy(), atol=1e-5 * cells.abs().max().item())
        assert ours[image].sum().item() == pytest.approx(difference, rel=1e-4, abs=1e-5)


# Logits of patches


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("fc_norm", [True, False])
def test_patch_logits_are_those_of_the_logit_lens_on_average(fc_norm, prefix):
    model = random_model("vit", global_pool="avg", class_token=bool(prefix), fc_norm=fc_norm)
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    ours = patch_logits(model, images, targets)
    lens = logit_lens(model, images)[1:, torch.arange(2), targets]
    torch.testing.assert_close(ours.mean(dim=(2, 3)), lens, atol=1e-5, rtol=1e-4)
    assert ours.std(dim=(2, 3)).min() > 0.01
    if not fc_norm:  # the network's own head then reads each patch
        x = model.blocks[0](model.embed(images))
        expected = model.head(model.norm(x[:, prefix:]))[torch.arange(2), :, targets]
        torch.testing.assert_close(ours[0].flatten(1), expected, atol=1e-5, rtol=1e-4)


# Random masks


@pytest.mark.parametrize(("global_pool", "prefix"), POOLS)
def test_contributions_of_heads_match_slow_loops(global_pool, prefix):
    model = random_model("vit", global_pool=global_pool, class_token=bool(prefix)).double()
    image, target = torch.randn(1, 3, 32, 32, dtype=torch.float64), 4
    inputs, outputs = [], []
    for block in model.blocks:
        block.attn.proj.register_forward_pre_hook(lambda _module, args: inputs.append(args[0][0]))
    norm = model.norm if global_pool == "token" else model.fc_norm
    norm.register_forward_pre_hook(lambda _module, args: outputs.append(args[0][0]))
    with torch.inference_mode():
        model(image)
    pool = lambda tokens: tokens[0] if global_pool == "token" else tokens[prefix:].mean(0)  # noqa: E731
    stream = pool(outputs[0]) if global_pool == "token" else outputs[0]
    std, width = (stream.var(unbiased=False) + norm.eps).sqrt(), model.blocks[0].attn.qkv.in_features // 2
    ours = head_contributions(model, image, torch.tensor([target]))[:, 0]
    for layer, block in enumerate(model.blocks):
        for head in range(block.attn.num_heads):
            alone = torch.zeros_like(inputs[layer])
            columns = slice(head * width, (head + 1) * width)
            alone[:, columns] = inputs[layer][:, columns]
            added = pool(alone @ block.attn.proj.weight.T)
            moved = ((added - added.mean()) / std * norm.weight) @ model.head.weight[target]
            torch.testing.assert_close(ours[layer, head], moved)


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_masks_match_a_ridge_regression_of_scikit_learn(kind):
    model = random_model(kind)
    grid, images = model.grid_size, torch.randn(2, 3, 32, 32)
    ours = mask_maps(model, images, samples=101)
    generator = torch.Generator().manual_seed(0)
    half = (torch.rand(51, grid * grid, generator=generator) < 0.5).float()
    masks = torch.cat([half, 1 - half])[:101]
    for image in range(2):
        changed = torch.stack([images[image] * enlarge(mask.view(grid, grid)) for mask in masks])
        with torch.no_grad():
            logits = model(changed)
        expected = Ridge(alpha=RIDGE * 101).fit(masks.double().numpy(), logits.double().numpy()).coef_
        np.testing.assert_allclose(ours[image].flatten(1).numpy(), expected, atol=1e-4 * abs(expected).max())


def enlarge(mask):
    side = 32 // len(mask)
    return mask.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)


# All methods


def every_method():
    """(network, the value of --method) for each method and the first network that fits."""
    kinds = {"vit": random_model("vit"), "avg": average_pooled(), "cnn": random_model("cnn")}
    fitting = {(kind, flag) for kind, model in kinds.items() for flag in methods_for(model)}
    return sorted(pair for pair in fitting if pair[0] != "avg" or ("vit", pair[1]) not in fitting)


def test_only_a_vit_that_classifies_from_the_mean_has_logits_of_patches():
    offered = [("patch-logits" in methods_for(model)) for model in (random_model("vit"), average_pooled())]
    assert offered == [False, True]


def average_pooled():
    return random_model("vit", global_pool="avg", class_token=False)


@pytest.mark.parametrize(("kind", "flag"), every_method())
def test_explaining_does_not_change_the_network_and_is_float32_also_under_autocast(kind, flag):
    method, model = find(flag), average_pooled() if kind == "avg" else random_model(kind)
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([3, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        first = method.explain(model, images, targets)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(first, method.explain(model, images, targets))
    assert first.dtype == torch.float32
    assert (first.min() < 0) == method.is_signed
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all("forward" not in vars(module) and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    classes = torch.tensor([[3, 0], [1, 2]])
    both = method.for_classes(model, images, classes)
    torch.testing.assert_close(both[:, 0], first, atol=1e-5, rtol=1e-3)
    assert torch.equal(both[:, 0], both[:, 1]) == method.is_class_blind


def test_the_best_method_of_a_vit_depends_on_the_size_of_its_images():
    assert best_method(random_model("vit")).name == "AttnLRP"
    large, images = random_model("vit", img_size=224, patch_size=56), torch.randn(1, 3, 224, 224)
    best = best_method(large)
    assert best.name == "ResLRP"
    of_paper, of_small = (res_lrp(large, images, gamma=gamma) for gamma in (1, GAMMA))
    assert torch.equal(best.explain(large, images, None), of_paper)
    assert not torch.allclose(of_paper, of_small, rtol=0.01)


@pytest.mark.parametrize("layer", ["norm2", "mlp", None])
def test_grad_cam_refuses_a_layer_that_the_logit_does_not_reach(layer):
    model = random_model("vit")
    last = model.blocks[-1]
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="choose an earlier one"):
        grad_cam(model, images, layer=getattr(last, layer) if layer else last)
    assert grad_cam(model, images, layer=model.blocks[0].norm2).max() > 0
    pooled = random_model("vit", global_pool="avg")
    assert grad_cam(pooled, images, layer=pooled.blocks[-1].norm2, relu=False).any()


@pytest.mark.parametrize(
    ("network", "steps", "least"),
    [
        ("ViT, class token", 200, {"gradient rollout": 0.95, "AttnLRP": 0.99, "ResLRP": 0.99, "FullGrad+": 0.99}),
        ("ViT, mean of patches", 200, {"AttnLRP": 0.99, "ResLRP": 0.99, "FullGrad+": 0.99, "patch logits": 0.99}),
        ("CNN", 100, {"DeepLIFT": 0.99}),
    ],
)
def test_the_best_methods_find_planted_evidence(network, steps, least):
    accuracy, found = planted.measure(planted.NETWORKS[network], seed=0, steps=steps, leave_out=("masks",))
    assert accuracy > 0.98
    for method, fraction in least.items():
        assert found[method] >= fraction, method
