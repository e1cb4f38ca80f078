"""Do others rank the explanations as we do? Our measurements next to the ROAD score of the grad-cam package.

    python benchmarks/road.py --model_path model/vit-layer12-32-cifar10 --num_images 100 --data_path data

The package removes the most and the least relevant 20, 40, 60 and 80 % of the pixels, fills them in with its own noisy
linear imputation, and reports half the difference between the two changes of the class's probability: higher is better.
The table shows it next to our area between the insertion and the deletion curve, with ROAD's fill, and Spearman's
correlation of both rankings. It needs `pip install -r requirements-dev.txt`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy import stats
from torch.nn import functional as F

from vit_cifar10.data.dataset import normalize
from vit_cifar10.evaluation.tables import markdown_table
from vit_cifar10.explain import faithfulness
from vit_cifar10.explain.removal import CURVES, FILLS, baseline_maps
from vit_cifar10.runs.checkpoint import load_network
from vit_cifar10.runs.run import find_run
from vit_cifar10.utils.cli import POSITIVE_INT, ArgumentParser, command


@command
def main(argv=None):
    parser = ArgumentParser(prog="road.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model_path", default="model/vit-layer12-32-cifar10", help="a run's name or folder")
    parser.add_argument("--data_path", default="./data", help="folder of the data set")
    parser.add_argument("--num_images", type=POSITIVE_INT, default=100, help="size of the subset of the test images")
    args = parser.parse_args(argv)
    network = load_network(find_run(args.model_path).checkpoint_path, torch.device("cpu"))
    test = network.normalized_for(network.load_test_images(args.data_path, args.num_images))
    model, methods = network.model, faithfulness.measured_methods(network.model)
    inputs = normalize(test.images, test.mean, test.std)
    with torch.inference_mode():
        classes = model(inputs).argmax(dim=1)
    maps = {
        name: pair[:, 0]
        for name, pair in faithfulness.explain_classes(model, methods, inputs, classes[:, None])[0].items()
    }
    maps |= baseline_maps(inputs, model.grid_size, torch.Generator().manual_seed(0))
    theirs = {name: their_score(model, inputs, classes, relevance) for name, relevance in maps.items()}
    ours = our_score(model, inputs, classes, maps)
    ranked = sorted(theirs, key=theirs.get, reverse=True)
    rows = [[name, f"{100 * theirs[name]:.1f}", f"{100 * ours[name]:.1f}"] for name in ranked]
    print(markdown_table(["method", "grad-cam's ROAD, combined", "ours: insertion − deletion, ROAD"], rows))
    correlation = stats.spearmanr(list(theirs.values()), [ours[name] for name in theirs]).statistic
    print(f"\nrank correlation {correlation:.2f}, {len(inputs)} images")


def their_score(model, inputs, classes, relevance):
    """The mean ROAD score of the grad-cam package. Patches are enlarged to pixels."""
    pixels = F.interpolate(relevance[:, None], inputs.shape[-2:], mode="nearest")[:, 0].detach().numpy()
    targets = [ClassifierOutputSoftmaxTarget(int(target)) for target in classes]
    return ROADCombined(percentiles=[20, 40, 60, 80])(inputs, pixels, targets, model).mean().item()


def our_score(model, inputs, classes, maps):
    """{method: mean area under the insertion curve minus mean area under the deletion curve}, with ROAD's fill."""
    curves = faithfulness.measure_removal(model, inputs, classes, maps, torch.Generator().manual_seed(0))
    areas = faithfulness.areas(curves[:, :, FILLS.index("ROAD")].numpy()).mean(axis=0)
    return {
        name: row[CURVES.index("insertion")] - row[CURVES.index("deletion")]
        for name, row in zip(maps, areas, strict=True)
    }


if __name__ == "__main__":
    main()
