"""Do the explanations find evidence that was planted? Images whose class is the color of one bright patch.

    python benchmarks/planted.py

Each image has 4 x 4 patches in faint random colors, except for one bright patch, whose color is the class. The most
relevant patch of a good map is the bright one. The table shows how often it is, for every method, on three kinds of
networks and three seeds each. It takes about five minutes on two CPU cores.

In training, every fourth image has no bright patch and belongs to no class. Otherwise the network could recognize one
class by the absence of the others, and its bright patch would not be the reason for the answer.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional as F

from model import build_model
from vit_cifar10.evaluation.tables import markdown_table
from vit_cifar10.explain.methods import methods_for

VIT = {"model": "vit", "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 3}
NETWORKS = {
    "ViT, class token": VIT,
    "ViT, mean of patches": {**VIT, "global_pool": "avg", "class_token": False},
    "CNN": {"model": "cnn", "width": 8, "num_classes": 3},
}
STEPS = {"vit": 400, "cnn": 200}
SEEDS = (0, 1, 2)
IMAGES = 400


def draw_planted(count, brightness=1.5):
    """Planted images, float (count, 3, 32, 32), their classes, and the index of the bright one of the 16 patches."""
    position, image = torch.randint(0, 16, (count,)), torch.arange(count)
    colors = torch.randint(0, 3, (count, 16))
    strength = torch.full((count, 16, 1), 0.5)
    strength[image, position] = brightness
    patches = (F.one_hot(colors, 3) * strength).transpose(1, 2).view(count, 3, 4, 4)
    enlarged = patches.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return enlarged + 0.3 * torch.randn(count, 3, 32, 32), colors[image, position], position


def train_on_planted(config, steps, seed):
    """Train each logit separately to rise for its class. With a softmax, other logits could carry the evidence."""
    torch.manual_seed(seed)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        (images, classes, _), (faint_images, _, _) = draw_planted(48), draw_planted(16, brightness=0.5)
        logits = model(torch.cat([images, faint_images]))
        targets = torch.cat([F.one_hot(classes, 3), torch.zeros(16, 3)])
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def fraction_found(relevance, position):
    """How often the most relevant of the 16 patches is the bright one. Finer maps are averaged over each patch."""
    return (F.adaptive_avg_pool2d(relevance, 4).flatten(1).argmax(dim=1) == position).float().mean().item()


def measure(config, seed, steps=None, leave_out=()):
    """Train a network, and return its accuracy and {method: fraction of bright patches found}, on `IMAGES` images."""
    model = train_on_planted(config, steps or STEPS[config["model"]], seed)
    images, classes, position = draw_planted(IMAGES)
    accuracy = (model(images).argmax(dim=1) == classes).float().mean().item()
    found = {
        method.name: fraction_found(method.explain(model, images, classes), position)
        for method in methods_for(model).values()
        if method.name not in leave_out
    }
    return accuracy, found


def main():
    columns = {}
    for name, config in NETWORKS.items():
        results = [measure(config, seed) for seed in SEEDS]
        columns[name] = {
            "accuracy of the network": [accuracy for accuracy, _ in results],
            **{method: [found[method] for _, found in results] for method in results[0][1]},
        }
    titles = dict.fromkeys(title for column in columns.values() for title in column)
    rows = [
        [title, *(summary(column[title]) if title in column else "" for column in columns.values())] for title in titles
    ]
    print(markdown_table(["", *columns], rows))


def summary(fractions):
    """The mean of several fractions in %, and their range."""
    low, high = 100 * min(fractions), 100 * max(fractions)
    return f"{100 * statistics.mean(fractions):.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
