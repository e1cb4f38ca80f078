"""How weights are updated: parameter groups, AdamW, Muon, and an exponential moving average of the weights."""

import copy

import torch

from vit_cifar10.utils.device import has_fast_bf16

SGD_MOMENTUM, BIAS_RATE = 0.85, 64.0  # airbench94's
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steep at 0, so that five steps suffice


def split_parameters(model):
    """The network's weight matrices and kernels, in order, and the rest: biases, norms, tokens, positions.

    Both include frozen weights.
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and name not in ("cls_token", "reg_token", "pos_embed")
        (matrices if is_matrix else rest).append(parameter)
    return matrices, rest


def muon_weights(model):
    """The hidden matrices and kernels: all except the first, which reads pixels, and the last, which makes logits."""
    return split_parameters(model)[0][1:-1]


def build_optimizer(model, learning_rate, weight_decay, muon=None, sgd=False):
    """AdamW (Loshchilov and Hutter, 2019), combined with Muon if `muon` holds Muon's options.

    Weight decay applies only to matrices and kernels. Muon updates `muon_weights`. Frozen weights are left out; if all
    of Muon's weights are frozen, AdamW remains.

    With `sgd`, SGD with Nesterov momentum takes AdamW's place, as in airbench94: biases have 64 times the learning
    rate, and decay as much in each step as the other weights.
    """
    matrices, rest = map(trainable, split_parameters(model))
    hidden = trainable(muon_weights(model)) if muon else []
    by_muon = set(map(id, hidden))
    decayed = [weight for weight in matrices if id(weight) not in by_muon]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if sgd:
        groups[1] |= {"lr": BIAS_RATE * learning_rate, "weight_decay": weight_decay / BIAS_RATE}
        first = torch.optim.SGD(groups, lr=learning_rate, momentum=SGD_MOMENTUM, nesterov=True)
    else:
        first = torch.optim.AdamW(groups, lr=learning_rate, fused=True)  # one kernel updates all weights
    return CombinedOptimizer(first, Muon(hidden, **muon)) if hidden else first


def trainable(weights):
    """The weights that are not frozen."""
    return [weight for weight in weights if weight.requires_grad]


def load_state(optimizer, saved):
    """Load a saved `state_dict`, but keep the optimizer's own options.

    Raises:
        ValueError: the state does not fit the optimizer and its weights. PyTorch does not check this, and its fused
            kernels would write out of bounds.
    """
    if isinstance(optimizer, CombinedOptimizer):
        for own, part in zip(optimizer.optimizers, saved["together"], strict=True):
            load_state(own, part)
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    names = STATES[type(optimizer)]
    if not saved["state"]:  # saved before the first step
        return
    if saved["state"].keys() != set(range(len(weights))):
        raise ValueError("the optimizer's state belongs to other weights")
    state = {}
    for index, weight in enumerate(weights):
        values = saved["state"][index]
        shapes = {name: torch.Size() if name == "step" else weight.shape for name in names}
        if {name: value.shape for name, value in values.items()} != shapes:
            raise ValueError("the optimizer's state has other shapes")
        # The kernels need the memory layout of the weight.
        state[index] = {
            name: value.float() if name == "step" else torch.empty_like(weight).copy_(value)
            for name, value in values.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class CombinedOptimizer:
    """Several optimizers, each with its own weights, used as one."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    @property
    def param_groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self):
        return {weight: state for optimizer in self.optimizers for weight, state in optimizer.state.items()}

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self):
        return {"together": [optimizer.state_dict() for optimizer in self.optimizers]}


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): momentum that is orthogonalized, so that a step is equally long in all directions.

    The updates equal the ones from `torch.optim.Muon`, but all matrices of one shape go through the Newton-Schulz steps
    as one batch, and kernels (out, in, h, w) are treated as matrices (out, in * h * w). Each step multiplies the
    weights by 1 - learning rate * `weight_decay`. With `compile`, the Newton-Schulz steps are compiled.

    With `keep_norm`, each step first sets the norm of a weight to the square root of its number of rows, as in
    airbench94 with Muon (https://github.com/KellerJordan/cifar10-airbench).
    """

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95, keep_norm=False, compile=False):
        self.keep_norm = keep_norm
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        device = self.param_groups[0]["params"][0].device
        self.dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
        self.orthogonalize = torch.compile(orthogonalize, dynamic=False) if compile else orthogonalize

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            by_shape = {}
            for weight in weights:
                by_shape.setdefault(weight.shape, []).append(weight)
            for same in by_shape.values():
                self.update(same, **{name: group[name] for name in ("lr", "weight_decay", "momentum")})

    def update(self, weights, lr, weight_decay, momentum):
        """Update weights of one shape, with Nesterov momentum."""
        gradients = [weight.grad for weight in weights]
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, momentum))
        matrices = ahead.flatten(2)
        direction = self.orthogonalize(matrices.to(self.dtype))
        direction = direction.to(ahead.dtype, memory_format=torch.contiguous_format).view_as(ahead)
        rows, columns = matrices.shape[1:]
        if self.keep_norm:
            torch._foreach_mul_(weights, [rows**0.5 / norm for norm in torch._foreach_norm(weights)])
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, direction.unbind(), alpha=-lr * max(1, rows / columns) ** 0.5)


def orthogonalize(matrices, steps=5):
    """Approximately the nearest orthogonal matrices, by Newton-Schulz steps: (n, rows, columns) -> the same shape.

    The singular values end up between 0.7 and 1.2, regardless of the precision of the matrices.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # now no singular value exceeds 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


STATES = {  # what an optimizer keeps for each weight
    Muon: {"momentum"},
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}


class ModelEma:
    """An exponential moving average of a network's weights and buffers, kept in `module`, a copy of the network.

    The first update copies the weights. All tensors are averaged in one call, without waiting for the device.
    """

    def __init__(self, model, decay):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self.averages, self.values = map(list, zip(*floating, strict=True))
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self):
        """Move the average toward the network's weights by the fraction 1 - decay, and copy integer buffers."""
        step = 1 - self.decay if self.updates else 1.0
        self.updates += 1
        torch._foreach_lerp_(self.averages, self.values, step)
        for average, value in self.counters:
            average.copy_(value)

    def state_dict(self):
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state):
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
