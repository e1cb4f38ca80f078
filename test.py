"""Test a trained network: on the whole test set, on one of its images, or on any image file.

    python test.py --mode cifar                                  # accuracy, per-class scores, confusion matrix
    python test.py --mode cifar-single --index 5                 # classes of test image 5, and its attention GIF
    python test.py --mode custom --image_path img.png            # the same for an image file of any kind or size
    python test.py --mode custom --image_path img.png --html img.html    # and a page to explore its attention in
    python test.py --mode faithfulness --num_images 500          # how far its explanations can be trusted

The architecture comes from the checkpoint: --model_path takes a run's folder, or a checkpoint in it. The full test
writes its numbers and pictures under output/RUN/. cifar-single and custom write a GIF and a still under
attention_map_gif/, of a Vision Transformer's way through its layers or a CNN's Grad-CAM for its likeliest classes, and
show it in a window where there is a display.
"""

import csv
import functools
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from model import VisionTransformer
from vit_cifar10.data import dataset
from vit_cifar10.evaluation import full_test as results
from vit_cifar10.explain import explorer, faithfulness
from vit_cifar10.explain.methods import explain_layers, grad_cam
from vit_cifar10.plots import explanations
from vit_cifar10.plots.explanations import (
    attention_frames,
    class_frames,
    save_faithfulness,
    save_gif,
    save_relevance_grid,
)
from vit_cifar10.plots.style import shorten
from vit_cifar10.runs import checkpoint
from vit_cifar10.utils.cli import ArgumentParser, command, number, printable
from vit_cifar10.utils.device import pick_device
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.files import make_folder, replacing

MODEL_PATH = "model/vit-layer12-32-cifar10"
SCORES, MEANS = ("precision", "recall", "f1"), ("macro", "weighted")


def build_parser():
    parser = ArgumentParser(prog="test.py", description="Test a trained network and look at its attention.")
    count = number(int, at_least=1)
    parser.add_argument(
        "--mode",
        choices=tuple(MODES),
        default="cifar",
        help=(
            "cifar: the whole test set the network was trained for; cifar-single: one image of it; custom: "
            "any image file; faithfulness: how far its explanations can be trusted"
        ),
    )
    parser.add_argument(
        "--index", type=int, nargs="+", default=[1], help="cifar-single: which test image, or images, from 0"
    )
    parser.add_argument("--image_path", help="custom: the image file")
    parser.add_argument(
        "--model_path",
        help=f"a run's folder or a checkpoint; default: {MODEL_PATH}, or the newest run under model/",
    )
    parser.add_argument("--data_path", default="./data", help="where the data set is, or is downloaded to")
    parser.add_argument(
        "--output_path", default="./output", help="cifar, faithfulness: folder for results, one folder a run"
    )
    parser.add_argument("--gif_path", help="file for the GIF; default: named after the image in attention_map_gif/")
    parser.add_argument("--no_gif", action="store_true", help="write no GIF")
    parser.add_argument(
        "--html", help="cifar-single, custom: also write this page, in which the network's decisions can be explored"
    )
    parser.add_argument(
        "--no_image", action="store_true", help="open no window; without a display none is opened anyway"
    )
    parser.add_argument(
        "--tta", action="store_true", help="cifar: also average each image with its mirror image, and report it beside"
    )
    parser.add_argument(
        "--num_images", type=count, default=500, help="faithfulness: test images, alike from each class"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    parser.add_argument("--batch_size", type=count, default=1000, help="cifar: images at once")
    parser.add_argument(
        "--num_workers", type=number(int, at_least=0), default=2, help="processes that decode a folder of images"
    )
    return parser


def find_checkpoint(model_path):
    """The path asked for, else the default run, else the newest one there is, else the default that comes with this.

    A run may also be asked for by its name, or its folder under output/.
    """
    if model_path:
        named = Path("model") / Path(model_path).name
        has_none = not any(Path(model_path, *file).is_file() for file in ((), ("best.pt",)))
        return named if has_none and (named / "best.pt").is_file() else Path(model_path)
    runs = sorted(Path("model").glob("*/best.pt"), key=lambda path: path.stat().st_mtime)
    if Path(MODEL_PATH).exists():
        return Path(MODEL_PATH)
    return runs[-1].parent if runs else Path(__file__).parent / MODEL_PATH


def describe(network):
    """What a network is and how it did, as a line of text."""
    saved = network.saved
    accuracy = saved["metrics"].get("test_accuracy")
    measured = "" if accuracy is None else f", test accuracy {100 * accuracy:.2f} %"
    few = saved["recipe"].get("num_test_images")
    measured += f" of {few:,} images" if measured and few else ""
    return f"{saved['model_config']['model']} trained on {saved['dataset']}, epoch {saved['epoch']}{measured}"


def load_test_images(network, args):
    """The data set's test images, to be normalised as the network's training images were."""
    test = dataset.load_test(
        network.saved["dataset"],
        args.data_path,
        image_size=network.image_size,
        num_images=args.num_images if args.mode == "faithfulness" else None,
        num_workers=args.num_workers,
    )
    return network.adopt(test)


def full_test(network, args):
    """Measure the whole test set; print, and write results and pictures under output/RUN/."""
    test = load_test_images(network, args)
    folder = Path(args.output_path) / network.name
    make_folder(folder)
    found = results.measure(network, args.model_path, test, args.batch_size, args.tta)
    print_scores(found.results)
    results.write(found, network, test, folder)
    print(f"wrote {', '.join(results.FILES)} to {folder}")


def print_scores(measured):
    """What test_results.json holds, on the screen."""
    print_class_scores(measured)
    print_confusion_matrix(measured)
    low, high = (100 * end for end in measured["accuracy_interval"])
    print(
        f"\ntest accuracy {100 * measured['accuracy']:.2f} % (95 % interval {low:.2f} to {high:.2f}),"
        f" top-5 {100 * measured['top5']:.2f} %, loss {measured['loss']:.4f},"
        f" calibration error {100 * measured['calibration']['error']:.2f} %, {measured['images']} images"
    )
    if "flip" in measured:
        flip = measured["flip"]
        print(f"averaged with the mirror images: test accuracy {100 * flip['accuracy']:.2f} %, loss {flip['loss']:.4f}")


def print_class_scores(measured):
    """Precision, recall, F1 and number of images, a line a class, and their means."""
    by_class, classes = measured["by_class"], measured["classes"]
    width = max(map(len, [*classes, "weighted mean"]))
    rows = [(name, *(by_class[key][i] for key in SCORES), by_class["support"][i]) for i, name in enumerate(classes)]
    rows += [(f"{kind} mean", *(measured[kind][key] for key in SCORES), measured["images"]) for kind in MEANS]
    print(f"\n{'class':<{width}}  precision   recall       F1  images")
    for name, precision, recall, f1, images in rows:
        print(f"{name:<{width}}   {100 * precision:6.2f} % {100 * recall:6.2f} % {100 * f1:6.2f} %  {images:>6}")


def print_confusion_matrix(measured):
    """Counts, a row a true class, a column a predicted one; with many classes it is left to the picture."""
    classes = measured["classes"]
    if len(classes) > 12:
        return
    width = max(map(len, classes)) + 4
    numbers = "".join(f"{place:>6}" for place in range(len(classes)))
    print(f"\n{'true class':<{width}}  and how many of it were taken for\n{'':<{width}}{numbers}")
    for place, (name, counts) in enumerate(zip(classes, measured["confusion_matrix"], strict=True)):
        print(f"{place:>2} {name:<{width - 3}}" + "".join(f"{count:>6}" for count in counts))


def single_test(network, args):
    """Classify test images and show the network's attention."""
    test = load_test_images(network, args)
    wrong = [index for index in args.index if not 0 <= index < len(test)]
    if wrong:
        raise UserError(f"--index {wrong[0]} is out of range; the test images are 0 to {len(test) - 1}")
    trained_on = network.saved["dataset"]
    prefix = "cifar" if trained_on == "cifar10" else trained_on
    explored = []
    for index in dict.fromkeys(args.index):
        label = f"true class: {network.classes[test.labels[index]]}"
        classify(network, test.images[index], f"{prefix}-index-{index}", label, args)
        explored.append((test.images[index], f"test image {index}", label))
    explore(network, explored, args)


def custom_test(network, args):
    """Classify an image file and show the network's attention."""
    if not args.image_path:
        raise UserError("--mode custom needs --image_path, the image file to classify")
    image = dataset.open_image(args.image_path, network.image_size)
    path = Path(args.image_path)
    name = printable(path.name)
    classify(network, image, path.stem, f"image: {shorten(name)}", args)
    explore(network, [(image, name, "")], args)


def explore(network, images, args):
    """Write the page that --html asks for, of images with their names and labels."""
    if args.html is not None:
        entries = [explorer.explain_image(network, *image) for image in images]
        explorer.write_page(args.html, network, entries)
        print(f"wrote {args.html} ({Path(args.html).stat().st_size / 1000:,.0f} KB), to be opened in a browser")


def classify(network, image, name, label, args):
    """Print the likeliest classes of an image, uint8 (3, H, W); write and show its GIF.

    `name` is the GIF's, `label` says which image it is.
    """
    inputs = network.prepare(image[None])
    with torch.inference_mode():
        probabilities = network.model(inputs).softmax(dim=1)[0].cpu()
    top = probabilities.topk(min(5, len(network.classes)))
    print(label)
    for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"{100 * probability:6.2f} %  {network.classes[index]}")
    if args.no_gif and args.no_image:
        return
    caption = f"{label}   ·   predicted: {network.classes[top.indices[0]]} {100 * top.values[0]:.0f} %"
    pixels = image.permute(1, 2, 0).cpu().numpy()
    picture = vit_picture if isinstance(network.model, VisionTransformer) else cnn_picture
    frames, save_still = picture(network, inputs, pixels, probabilities.numpy(), top.indices, caption)
    if not args.no_gif:
        path = Path(args.gif_path or f"attention_map_gif/{name}.gif")
        save_gif(frames, path)
        save_still(path.with_suffix(".png"))
        print(f"wrote {path} and {path.with_suffix('.png')}")
    if not args.no_image:
        explanations.show(frames[-1], caption)


def vit_picture(network, inputs, pixels, probabilities, top, caption):
    """The GIF's frames for one image through a ViT, a frame a layer, and what saves a still of them."""
    maps, heads = explain_layers(network.model, inputs)
    frames = attention_frames(pixels, maps, heads, probabilities, network.classes, caption)
    maps[f"gradient rollout\n{network.classes[top[0]]}"] = maps.pop("gradient rollout")
    layers = [f"layer {layer + 1}" for layer in range(len(heads))]
    return frames, lambda path: save_relevance_grid(path, pixels, maps, layers, caption)


def cnn_picture(network, inputs, pixels, probabilities, top, caption):
    """The same for a CNN: Grad-CAM for its likeliest classes in turn, the likeliest last."""
    targets = top.flip(0).to(network.device)
    maps = grad_cam(network.model, inputs.expand(len(targets), -1, -1, -1), targets).cpu().numpy()
    chosen = targets.tolist()
    frames = class_frames(pixels, maps, chosen, probabilities, network.classes, caption)
    names = [network.classes[index] for index in chosen]
    return frames, lambda path: save_relevance_grid(path, pixels, {"Grad-CAM": maps[::-1]}, names[::-1], caption)


def faithfulness_test(network, args):
    """Measure how far each explanation can be trusted; print, and write faithfulness.csv and .png."""
    test = load_test_images(network, args)
    start = time.perf_counter()
    progress = functools.partial(tqdm, desc="removing patches", disable=None)
    curves = faithfulness.measure_removal(network.model, test, progress=progress)
    few = test.subset(torch.arange(min(200, len(test))))
    correlations = faithfulness.measure_randomization(network.model, network.saved["model_config"], few)
    rows = faithfulness.summarize(curves)
    print_faithfulness(rows, correlations, len(test), time.perf_counter() - start)
    folder = Path(args.output_path) / network.name
    with replacing(folder / "faithfulness.csv") as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    save_faithfulness(
        folder / "faithfulness.png",
        faithfulness.FRACTIONS,
        {key: values.mean(axis=0) for key, values in curves.items()},
        correlations,
        [name for name, _ in faithfulness.randomization_stages(network.model)],
        f"{network.name}: how far to trust its explanations, {len(test)} test images",
    )
    print(f"wrote {folder / 'faithfulness.csv'} and {folder / 'faithfulness.png'}")


def print_faithfulness(rows, correlations, images, seconds):
    """The areas with their intervals, a line a method, and what the randomised network left of the maps."""
    cells = {(row["method"], row["fill"], row["kind"]): row for row in rows}
    columns = list(dict.fromkeys((row["fill"], row["kind"]) for row in rows))
    print(f"\nmean probability of the predicted class along the curve, in %, with 95 % intervals ({images} images)")
    print("deletion: lower is better; insertion: higher is better\n")
    print(" " * 18 + "".join(f"{f'{kind}, {fill}':<22}" for fill, kind in columns) + "randomised")
    for method in dict.fromkeys(row["method"] for row in rows):
        line = f"{method:<18}"
        for column in columns:
            row = cells[(method, *column)]
            area, low, high = (100 * row[key] for key in ("area", "low", "high"))
            line += f"{f'{area:5.1f} [{low:.1f}, {high:.1f}]':<22}"
        print(line + (f"{correlations[method][-1]:+.2f}" if method in correlations else ""))
    blind = [method for method in correlations if method in faithfulness.CLASS_BLIND]
    print("\nrandomised: rank correlation with the map of a network whose weights are all random; near 0 is good")
    if blind:
        print(f"{' and '.join(blind)} are blind to the class: they show where the network looks, not what decides")
    print(f"measured in {seconds:.0f} s\n")


MODES = {
    "cifar": full_test,
    "cifar-single": single_test,
    "custom": custom_test,
    "faithfulness": faithfulness_test,
}


def check_html(args):
    """Raises `UserError`, before anything is computed, if the page that --html asks for cannot be written."""
    path = Path(args.html)
    if path.suffix.lower() not in (".html", ".htm") or args.html.endswith(("/", "\\")) or path.is_dir():
        raise UserError(f"--html {args.html!r} is no name for a page; let it be a file that ends in .html")
    if args.mode not in ("cifar-single", "custom"):
        raise UserError("--html shows single images; add --mode cifar-single or --mode custom")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"cannot write {path}; choose a folder you may write to")


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.gif_path and Path(args.gif_path).suffix.lower() != ".gif":
        raise UserError(f"--gif_path {args.gif_path} is no name for a GIF; let it end in .gif")
    if args.gif_path and args.mode == "cifar-single" and len(args.index) > 1:
        raise UserError("--gif_path is one file; leave it out, or name one --index")
    if args.html is not None:
        check_html(args)
    if args.gif_path and args.image_path and Path(args.gif_path).absolute() == Path(args.image_path).absolute():
        raise UserError(f"--gif_path {args.gif_path} is the image itself; choose another file")
    device = pick_device(args.device)
    args.model_path = find_checkpoint(args.model_path)
    with out_of_memory_advice("lower --batch_size, or use --device cpu"):
        network = checkpoint.load_network(args.model_path, device)
        print(f"{args.model_path}: {describe(network)}")
        MODES[args.mode](network, args)


if __name__ == "__main__":
    main()
