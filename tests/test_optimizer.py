"""Tests of the learning-rate schedules, the optimizers and the averaged weights against PyTorch and timm."""

import warnings

import pytest
import torch
from timm.optim import param_groups_weight_decay

from model import FastCNN, SimpleCNN, VisionTransformer
from vit_cifar10.flags.train import parse
from vit_cifar10.training.optim import ModelEma, Muon, build_optimizer, orthogonalize
from vit_cifar10.training.patches import PatchSchedule
from vit_cifar10.training.schedule import Schedule
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.schedules import FINAL_FACTOR, SCHEDULES, Entry

pytestmark = pytest.mark.quick

TOTAL, WARMUP = 200, 20


def factors(schedule, total=TOTAL, warmup=WARMUP):
    """The learning rate of each step, relative to its peak."""
    return [SCHEDULES[schedule].factor(step, total, warmup) for step in range(total)]


def test_patches_grow_in_eighths_to_all_at_the_last_step():
    patches = PatchSchedule(total_steps=100, small_steps=20, first_keep=0.4)
    keep = [patches.keep(step) for step in range(100)]
    assert [patches.is_small(step) for step in range(100)] == [True] * 20 + [False] * 80
    assert keep[:20] == [1.0] * 20
    assert keep[20:] == sorted(keep[20:])
    assert set(keep) == {3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1.0}
    assert sum(keep[20:]) / 80 == pytest.approx(0.7, abs=0.01)
    assert patches.work(0, 20) == 5
    assert patches.work(20, 100) == pytest.approx(sum(keep[20:]))
    assert {PatchSchedule(100).keep(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "onecycle"])
def test_schedules_rise_to_one_peak_and_fall_to_the_final_rate_at_the_last_step(schedule):
    values = factors(schedule)
    assert values[0] > 0
    assert values.count(1.0) == 1
    peak = WARMUP - (schedule == "onecycle")
    assert values.index(1.0) == peak
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert values[-1] == pytest.approx(1 / 250_000 if schedule == "onecycle" else FINAL_FACTOR)


def test_warmup_and_decay_have_the_right_shapes():
    assert factors("linear")[4] == pytest.approx(5 / 21)
    assert factors("linear", 101, 0)[50] == pytest.approx((1 + FINAL_FACTOR) / 2)
    assert factors("cosine", 101, 0)[50] == pytest.approx((1 + FINAL_FACTOR) / 2)
    assert factors("cosine", 101, 0)[25] > 0.8 > factors("linear", 101, 0)[25]
    for schedule in ("constant", "plateau"):
        assert factors(schedule)[WARMUP:] == [1.0] * (TOTAL - WARMUP)


def test_a_new_schedule_is_a_function_and_an_entry(monkeypatch):
    entry = Entry(lambda step, total_steps, warmup_steps: 0.5, "stays at half", warmup=0.5, needs_val_loss=True)
    monkeypatch.setitem(SCHEDULES, "half", entry)
    optimizer = small_optimizer(1.0)
    assert Schedule(optimizer, "half", TOTAL).set_step(0) == 0.5
    args = parse(["--schedule", "half", "--epochs", "8"])
    assert args.warmup_epochs == 4
    with pytest.raises(UserError, match="--schedule half watches the validation loss"):
        parse(["--schedule", "half", "--val_images", "0"])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 1), (3, 2)])
def test_the_shortest_runs_have_rates_above_zero(schedule, total, warmup):
    assert all(0 < value <= 1 for value in factors(schedule, total, warmup))


def small_optimizer(*rates):
    """SGD with one parameter group per learning rate."""
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def test_one_cycle_matches_pytorch():
    optimizer = small_optimizer(1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=TOTAL, pct_start=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in factors("onecycle", warmup=int(0.3 * TOTAL)):
            assert value == pytest.approx(optimizer.param_groups[0]["lr"])
            if theirs.last_epoch < TOTAL - 1:
                theirs.step()


def test_plateau_matches_pytorch():
    losses = [1.0, 0.8, 0.9, *[0.81] * 14, 0.5, *[0.49998] * 25, 0.2]
    optimizer, reference = small_optimizer(1.0), small_optimizer(1.0)
    ours = Schedule(optimizer, "plateau", total_steps=1000)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(reference)
    for step, loss in enumerate(losses):
        assert ours.set_step(step) == pytest.approx(reference.param_groups[0]["lr"])
        ours.end_epoch(loss)
        theirs.step(loss)
    assert ours.set_step(999) < 0.01


def test_schedule_scales_the_learning_rate_of_each_parameter_group():
    optimizer = small_optimizer(1.0, 0.1)
    Schedule(optimizer, "linear", TOTAL, WARMUP).set_step(0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1 / 21, 0.1 / 21])


@pytest.mark.parametrize("model", [VisionTransformer(depth=2, embed_dim=12, num_heads=2), SimpleCNN()])
def test_weight_decay_applies_to_the_same_weights_as_in_timm(model):
    ours = build_optimizer(model, 1e-3, 0.05)
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=("cls_token", "pos_embed"))
    assert isinstance(ours, torch.optim.AdamW)
    for decay in (0.0, 0.05):
        ids = [
            {id(parameter) for group in groups if group["weight_decay"] == decay for parameter in group["params"]}
            for groups in (ours.param_groups, theirs)
        ]
        assert ids[0] == ids[1] != set()


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    for model, first, last, hidden in (
        (VisionTransformer(depth=2, embed_dim=12, num_heads=2), "patch_embed.proj.weight", "head.weight", 8),
        (SimpleCNN(), "features.0.0.weight", "classifier.4.weight", 4),
    ):
        adamw, muon = build_optimizer(model, 1e-3, 0.05, {"lr": 0.01, "weight_decay": 0.5}).optimizers
        by_muon = {id(weight) for group in muon.param_groups for weight in group["params"]}
        by_adamw = {id(weight) for group in adamw.param_groups for weight in group["params"]}
        assert len(by_muon) == hidden
        assert not by_muon & by_adamw
        assert by_muon | by_adamw == {id(weight) for weight in model.parameters()}
        assert {id(model.get_parameter(first)), id(model.get_parameter(last))} <= by_adamw
        assert {len(weight.shape) for weight in muon.param_groups[0]["params"]} <= {2, 4}


def test_both_optimizers_skip_a_step_whose_gradients_overflow():
    model = SimpleCNN(width=4)
    optimizer = build_optimizer(model, 1e-3, 0.05, {"lr": 0.01})
    scaler = torch.amp.GradScaler("cpu")
    before = [weight.detach().clone() for weight in model.parameters()]
    for overflows in (True, False):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        if overflows:
            model.features[0][0].weight.grad[0] = torch.inf
        scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True)]
        assert any(moved) != overflows
        assert all(weight.isfinite().all() for weight in model.parameters())


def test_muon_matches_pytorch():
    shapes = [(24, 8), (8, 24), (24, 8), (16, 16), (8, 3, 3, 3)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(weight.detach().clone().flatten(1)) for weight in ours]
    options = {"lr": 0.1, "weight_decay": 0.5, "momentum": 0.9}
    muon, reference = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    muon.dtype = torch.bfloat16  # PyTorch's dtype; ours depends on the machine
    for _ in range(4):
        for weight, other in zip(ours, theirs, strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.flatten(1).clone()
        before = [weight.detach().clone() for weight in ours]
        muon.step()
        reference.step()
        for weight, other, old in zip(ours, theirs, before, strict=True):
            difference = (weight.flatten(1) - other).norm()
            assert difference < 0.02 * (weight - old).norm()  # bf16 has two to three decimal digits
            other.data.copy_(weight.flatten(1))


def slow_airbench_step(weights, gradients, momenta, rates, decay):
    """A step of airbench94 with Muon, weight by weight in float64: kernels, and then biases and the head."""
    for name, weight in weights.items():
        gradient, rate = gradients[name], rates[name]
        if name.endswith("conv"):
            momenta[name] = 0.6 * momenta[name] + gradient
            update = (gradient + 0.6 * momenta[name]).flatten(1)
            update = update / update.norm()
            for _ in range(5):
                a, b, c = 3.4445, -4.7750, 2.0315
                gram = update @ update.T
                update = a * update + (b * gram + c * gram @ gram) @ update
            weights[name] = weight * len(weight) ** 0.5 / weight.norm() - rate * update.view_as(weight)
        else:
            gradient = gradient + decay / rate * weight
            momenta[name] = 0.85 * momenta[name] + gradient
            weights[name] = weight - rate * (gradient + 0.85 * momenta[name])


def test_muon_sgd_matches_the_steps_of_its_authors():
    model = FastCNN(img_size=9, width=4)
    options = {"lr": 0.24, "momentum": 0.6, "keep_norm": True}
    optimizer = build_optimizer(model, learning_rate=0.5, weight_decay=0.01, muon=options, sgd=True)
    optimizer.optimizers[1].dtype = torch.float32
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = {name: f"{name} conv" if value.ndim == 4 else name for name, value in trained.items()}
    rates = {
        key: 0.24 if key.endswith("conv") else 0.5 * (1 if name == "head.weight" else 64) for name, key in names.items()
    }
    expected = {names[name]: value.detach().double().clone() for name, value in trained.items()}
    momenta = {key: torch.zeros_like(value) for key, value in expected.items()}
    for _ in range(3):
        gradients = {name: torch.randn_like(value) for name, value in trained.items()}
        for name, value in trained.items():
            value.grad = gradients[name]
        optimizer.step()
        by_key = {names[name]: gradient.double() for name, gradient in gradients.items()}
        slow_airbench_step(expected, by_key, momenta, rates, decay=0.5 * 0.01)
        for name, value in trained.items():
            torch.testing.assert_close(value.detach().double(), expected[names[name]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_muon_directions_are_nearly_orthogonal(shape):
    matrices = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    direction = orthogonalize(matrices)
    assert (torch.linalg.svdvals(direction) - 1).abs().max() < 0.35
    similarity = torch.nn.functional.cosine_similarity(direction.flatten(1), (left @ right).flatten(1))
    assert similarity.min() > 0.97


def test_averaged_weights_are_the_moving_average():
    model = SimpleCNN().train()
    average = ModelEma(model, 0.9)
    expected = {}
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model(torch.randn(4, 3, 32, 32))  # updates the buffers of batch normalization
        average.update()
        for name, value in model.state_dict().items():
            is_copied = name not in expected or "num_batches" in name
            expected[name] = value.double() if is_copied else 0.9 * expected[name] + 0.1 * value.double()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=1e-5)
    restored = ModelEma(model, 0.9)
    restored.load_state_dict(average.state_dict())
    for ema in (average, restored):
        ema.update()
    assert torch.equal(*(ema.module.state_dict()["features.0.0.weight"] for ema in (average, restored)))
