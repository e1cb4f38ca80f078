"""Measure and draw again what shows the shipped networks, after their weights have changed.

    python benchmarks/showcase.py --data_path data                       # everything; hours on a CPU
    python benchmarks/showcase.py scores gifs --data_path data           # only some parts

| part | what it makes |
|---|---|
| scores | the tables of model/README.md; confusion-matrix.png and reliability.png |
| gifs | the GIFs and stills in attention_map_gif/ |
| disagreements | vit-vs-cnn-disagreements.png |
| frontier | cpu-frontier.png, from results.csv; see frontier.py |
| map | network.svg, the map of the network in the README |
| robustness | the table of robustness in docs/comparison.md, robustness.csv and robustness.png |
| pages | explorer.png and live.gif; needs Chromium |
| live | the table about the live page in docs/explanations.md; needs Chromium |
| notebook | the stored outputs of visualize_attention_map.ipynb |
| faithfulness | the other tables of docs/explanations.md, and faithfulness.png; most of the time |

The pictures are in examples/, unless the table gives another folder. The figures are also recorded in shipped.json; see
shipped.py. A network whose figures were measured with its present weights is not measured again, unless `--again` is
given. Sentences about figures and pictures have to be checked by hand. It needs `pip install -r requirements-dev.txt`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import frontier
from shipped import (
    MAIN_CNN,
    MAIN_VIT,
    ROOT,
    describe_scores,
    read_csv,
    read_records,
    record,
    shipped_runs,
    write_tables,
)
from tables import read_results
from vit_cifar10.data.images import open_image
from vit_cifar10.explain import explorer
from vit_cifar10.runs import checkpoint
from vit_cifar10.utils.cli import POSITIVE_INT, ArgumentParser, command
from vit_cifar10.utils.errors import UserError

EXAMPLES, OUTPUT = ROOT / "examples", ROOT / "output"
GIF_INDICES = (19, 38, 40, 129)  # test images
PAGE_INDEX = 40
MASKS_OF_CNN = 256  # with so many samples, masks take minutes for the CNN; for a ViT they would double the time
NOISE_IMAGES = 1000
AREA_COLUMNS = ("method", "fill", "kind", "reference", "area", "gain", "gain_low", "gain_high")


@command
def main(argv=None):
    parser = ArgumentParser(prog="showcase.py", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--data_path", default="./data", help="folder of the data set")
    again = "measure all networks, also those that were measured with their present weights"
    parser.add_argument("--again", action="store_true", help=again)
    parser.add_argument(
        "--num_images", type=POSITIVE_INT, default=500, help="faithfulness, robustness: number of test images"
    )
    args = parser.parse_args(argv)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        raise UserError(f"there is no part {unknown[0]}; the parts are {', '.join(PARTS)}")
    args.data_path = str(Path(args.data_path).absolute())
    for part in args.parts or PARTS:
        print(f"{part} ...", flush=True)
        PARTS[part](args)


def run_script(script, flags, args):
    """Run a script of this project as a user would. Raises `UserError` if it fails."""
    command_line = [sys.executable, script, *flags, "--data_path", args.data_path]
    if subprocess.run(command_line, check=False, cwd=ROOT).returncode:
        raise UserError(f"{' '.join([script, *flags])} failed; see its message above")


def runs_to_measure(part, args):
    """The shipped runs without figures of this part for their present weights; with `--again`, all."""
    records = read_records()
    return [run for run in shipped_runs() if args.again or part not in records[run]]


def measure_scores(args):
    for run in runs_to_measure("scores", args):
        run_script("test.py", ["--mode", "cifar", "--tta", "--model_path", run], args)
        results = json.loads((OUTPUT / run / "test_results.json").read_text("utf-8"))
        record(run, "scores", describe_scores(results, classify_noise(run)))
        if run == MAIN_VIT:
            for name in ("confusion_matrix.png", "reliability.png"):
                shutil.copy(OUTPUT / run / name, EXAMPLES / name.replace("_", "-"))


def classify_noise(run):
    """What a network answers to uniform random noise: the most frequent class, its number, and the mean confidence."""
    network = checkpoint.load_network(ROOT / "model" / run, torch.device("cpu"))
    shape = (NOISE_IMAGES, 3, network.image_size, network.image_size)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    confidence, predicted = network.logits(noise).softmax(dim=1).max(dim=1)
    counts = predicted.bincount()
    most = counts.argmax().item()
    return {"class": network.classes[most], "images": counts[most].item(), "confidence": confidence.mean().item()}


def draw_gifs(args):
    indices = map(str, GIF_INDICES)
    run_script("test.py", ["--mode", "cifar-single", "--index", *indices, "--model_path", MAIN_VIT, "--no_image"], args)


def draw_disagreements(args):
    folder = OUTPUT / "showcase"
    run_script("compare.py", [MAIN_VIT, MAIN_CNN, "--compare_path", str(folder)], args)
    shutil.copy(folder / "disagreements.png", EXAMPLES / "vit-vs-cnn-disagreements.png")


def draw_frontier(args):
    frontier.draw(frontier.recipe_points(read_results()), EXAMPLES / "cpu-frontier.png")


def draw_network(args):
    network = checkpoint.load_network(ROOT / "model" / MAIN_VIT, torch.device("cpu"))
    explorer.write_map(EXAMPLES / "network.svg", network, open_image(EXAMPLES / "cat.png", network.image_size))


def measure_robustness(args):
    folder = OUTPUT / "showcase"
    flags = [MAIN_VIT, MAIN_CNN, "--robustness", "--num_images", str(args.num_images), "--compare_path", str(folder)]
    run_script("compare.py", flags, args)
    for name in ("robustness.csv", "robustness.png"):
        shutil.copy(folder / name, EXAMPLES)
    write_tables(read_records())


def draw_pages(args):
    from pages import draw_explorer, draw_live_page  # needs Chromium and Playwright, unlike most parts

    network = checkpoint.load_network(ROOT / "model" / MAIN_VIT, torch.device("cpu"))
    test = network.load_test_images(args.data_path)
    image, label = test.images[PAGE_INDEX], network.classes[test.labels[PAGE_INDEX]]
    shown = (network, image, f"test image {PAGE_INDEX}", f"true class: {label}")
    draw_explorer(*shown, EXAMPLES / "explorer.png")
    draw_live_page(*shown, EXAMPLES / "live.gif")


def measure_live(args):
    from live import measure

    for run in runs_to_measure("live", args):
        record(run, "live", measure(run, args.data_path))


def run_notebook(args):
    """Run the notebook, and store it with its outputs but without the names and times of this machine."""
    import nbformat
    from nbclient import NotebookClient

    path = ROOT / "visualize_attention_map.ipynb"
    os.environ["DATA_PATH"] = args.data_path
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)


def measure_faithfulness(args):
    for run in runs_to_measure("faithfulness", args):
        flags = ["--mode", "faithfulness", "--num_images", str(args.num_images), "--model_path", run]
        samples = ["--samples", str(MASKS_OF_CNN)] if run == MAIN_CNN else []
        run_script("test.py", [*flags, *samples], args)
        areas = read_csv(OUTPUT / run / "faithfulness.csv")
        methods = read_csv(OUTPUT / run / "faithfulness_methods.csv")
        areas = [{key: row[key] for key in AREA_COLUMNS} for row in areas]
        record(run, "faithfulness", {"images": args.num_images, "areas": areas, "methods": methods})
        if run == MAIN_VIT:
            shutil.copy(OUTPUT / run / "faithfulness.png", EXAMPLES)


PARTS = {
    "scores": measure_scores,
    "gifs": draw_gifs,
    "disagreements": draw_disagreements,
    "frontier": draw_frontier,
    "map": draw_network,
    "robustness": measure_robustness,
    "pages": draw_pages,
    "live": measure_live,
    "notebook": run_notebook,
    "faithfulness": measure_faithfulness,
}


if __name__ == "__main__":
    main()
