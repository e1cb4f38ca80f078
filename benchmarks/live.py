"""How fast and how exact is the network in the live page? In Chromium, against PyTorch with the same weights.

    python benchmarks/live.py --model_path vit-layer6-32-cifar10 --num_images 200

The page shows one test image after another, each with a random set of patches removed. A change takes from the change
of the page's state until the new probabilities are drawn. The accuracies are of all test images, with float32 weights
and with the 8-bit weights of the page. It needs `pip install -r requirements-dev.txt` and Chromium.
"""

import base64
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pages import open_page
from vit_cifar10.evaluation.metrics import predict
from vit_cifar10.evaluation.tables import markdown_table, percent
from vit_cifar10.explain.live import rounded
from vit_cifar10.explain.removal import at_pixels
from vit_cifar10.runs.checkpoint import load_network
from vit_cifar10.runs.run import find_run
from vit_cifar10.utils.cli import POSITIVE_INT, ArgumentParser, command

SHOW = """async ([pixels, removed, target]) => {
    versions += 1;
    const started = performance.now();
    change({ pixels: bytes(pixels), version: versions, removed: new Set(removed), target, answer: null });
    while (!state.answer) await new Promise(requestAnimationFrame);
    const drawn = performance.now() - started;
    while (!state.answer.explanations.has(target)) await new Promise(requestAnimationFrame);
    return { drawn, explained: performance.now() - started, scores: Array.from(state.answer.scores) };
}"""


@command
def main(argv=None):
    parser = ArgumentParser(prog="live.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model_path", default="vit-layer6-32-cifar10", help="a run's name or folder")
    parser.add_argument("--data_path", default="./data", help="folder of the data set")
    parser.add_argument("--num_images", type=POSITIVE_INT, default=200, help="number of test images to show")
    args = parser.parse_args(argv)
    print_table(measure(args.model_path, args.data_path, args.num_images))


def measure(run, data_path, num_images=200):
    """Measure the live page of a run.

    Returns:
        A dict: `megabytes` of the page; `first_seconds` until the first answer; `drawn_ms` and `explained_ms`, median
        and 95th percentile of the time until the new probabilities and until all explanations; `images`, their number;
        `largest_difference` of a logit to PyTorch's; `accuracies` in float32 and with 8-bit weights.

    Raises:
        UserError: Chromium is not installed, or the run or the test images cannot be read.
    """
    network = load_network(find_run(run).checkpoint_path, torch.device("cpu"))
    test = network.normalized_for(network.load_test_images(data_path))
    with open_page(network, test.images[0], "test image 0") as (page, path):
        megabytes = path.stat().st_size / 1e6
        started = time.perf_counter()
        page.goto(path.as_uri())
        while not page.evaluate("Boolean(state.answer)"):
            time.sleep(0.01)
        first = time.perf_counter() - started
        difference, times = show_images(page, network, test.images[:num_images])
    accuracies = [accuracy(network, test)]
    with rounded(network.model):
        accuracies.append(accuracy(network, test))
    drawn, explained = map(list, zip(*times, strict=True))  # in milliseconds
    return {
        "network": network.name,
        "megabytes": megabytes,
        "first_seconds": first,
        "drawn_ms": median_and_percentile(drawn),
        "explained_ms": median_and_percentile(explained),
        "images": len(times),
        "largest_difference": difference,
        "accuracies": accuracies,
    }


def show_images(page, network, images):
    """Show images with random removals. Return the largest difference of a logit, and the times of each change."""
    generator = torch.Generator().manual_seed(0)
    grid, size = network.model.grid_size, network.image_size
    largest, times = 0.0, []
    for number, image in enumerate(images):
        removed = torch.rand(grid * grid, generator=generator) < 0.3 * torch.rand(1, generator=generator)
        pixels = base64.b64encode(image.permute(1, 2, 0).contiguous().numpy().tobytes()).decode()
        shown = page.evaluate(SHOW, [pixels, removed.nonzero().flatten().tolist(), number % len(network.classes)])
        times.append((shown["drawn"], shown["explained"]))
        inputs = network.prepare(image[None])
        inputs = torch.where(at_pixels(removed.view(1, grid, grid), size).bool(), 0.0, inputs)
        with rounded(network.model), torch.inference_mode():
            logits = network.model(inputs)[0]
        largest = max(largest, (logits - torch.tensor(shown["scores"])).abs().max().item())
    return largest, times


def accuracy(network, test):
    return (predict(network.model, test).argmax(dim=1) == test.labels).float().mean().item()


def median_and_percentile(values):
    """The median and the 95th percentile."""
    return [statistics.median(values), sorted(values)[int(0.95 * len(values))]]


def print_table(measured):
    """Print what `measure` returns."""
    drawn, explained = (", ".join(f"{value:.0f} ms" for value in measured[key]) for key in ("drawn_ms", "explained_ms"))
    columns = {
        "network": measured["network"],
        "file": f"{measured['megabytes']:.1f} MB",
        "first answer": f"{measured['first_seconds']:.1f} s",
        "new probabilities: median, 95th percentile": drawn,
        "all explanations": explained,
        "largest difference of a logit": f"{measured['largest_difference']:.0e}",
        "accuracy in float32, in 8 bits": ", ".join(map(percent, measured["accuracies"])),
    }
    print(markdown_table(columns, [columns.values()]))
    print(f"\n{measured['images']} images")


if __name__ == "__main__":
    main()
