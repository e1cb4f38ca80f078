"""Test a trained network: on the whole test set, on single test images, or on any image file.

    python test.py --mode cifar                                  # accuracy, per-class scores, confusion matrix
    python test.py --mode cifar-single --index 5                 # classify test image 5, with an attention GIF
    python test.py --mode custom --image_path img.png            # the same for any image file
    python test.py --mode custom --image_path img.png --html img.html    # and a page to explore the prediction
    python test.py --mode custom --image_path img.png --method attention rollout    # other maps in the GIF
    python test.py --mode faithfulness --num_images 500          # how far the explanations can be trusted

--model_path is a run's name, its folder, or a checkpoint; the architecture comes from the checkpoint. Without this
flag, the run that was trained last is tested or, if there is none, the ViT that comes with the project.

The full test writes its numbers and pictures to output/RUN/. cifar-single and custom write a GIF and a still to
attention_map_gif/: for a ViT, attention layer by layer and AttnLRP; for a CNN, DeepLIFT for its most probable classes.
--method chooses other maps. Both modes also open a window if there is a display.
"""

if __name__ == "__main__":
    import vit_cifar10

    vit_cifar10.end_on_ctrl_c()

import os
from pathlib import Path

from vit_cifar10.data.images import image_folders, open_image
from vit_cifar10.evaluation.faithfulness_test import run_faithfulness_test, write_faithfulness_test
from vit_cifar10.evaluation.full_test import load_test_images, run_full_test, write_full_test
from vit_cifar10.explain import explorer, faithfulness
from vit_cifar10.explain.maps import METHODS, best_method, masks_method, methods_for
from vit_cifar10.explain.masks import SAMPLES
from vit_cifar10.explain.methods import HEAD_FUSIONS, explain_layers
from vit_cifar10.plots import gif
from vit_cifar10.plots.explanations import (
    BASELINE_LABELS,
    MapRow,
    attention_frames,
    class_frames,
    save_relevance_grid,
)
from vit_cifar10.runs.checkpoint import load_network
from vit_cifar10.runs.run import FAITHFULNESS_FILES, SHIPPED_VIT, TEST_FILES, check_record, find_run, last_trained_run
from vit_cifar10.utils.cli import (
    FRACTION,
    NON_NEGATIVE_INT,
    POSITIVE_INT,
    WORKERS,
    ArgumentParser,
    command,
    not_empty,
    number,
)
from vit_cifar10.utils.device import DEVICES, pick_device
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.files import check_outputs, make_folder
from vit_cifar10.utils.limits import LARGEST_SAMPLES
from vit_cifar10.utils.text import printable, shorten

FEWEST_IMAGES = 10  # with which --mode faithfulness measures anything
SCORES, MEANS = ("precision", "recall", "f1"), ("macro", "weighted")


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    check_flags(args)
    device = pick_device(args.device)
    run, choice = pick_run(args)
    advice = "lower --batch_size, or use --device cpu" if args.mode == "cifar" else "use --device cpu"
    with out_of_memory_advice(advice):
        network = load_network(run.checkpoint_path, device)
        inputs = [path for path in (run.checkpoint_path, args.image_path) if path]
        folders = image_folders(network.saved["dataset"], args.data_path)
        check_outputs(output_files(run, network, args), inputs, folders)
        if args.mode in ("cifar", "faithfulness"):
            check_record(run.output_folder, network.saved["recipe"])
        print(printable(f"{run.checkpoint_path}{choice}: {describe(network)}"))
        check_methods(args, network.model)
        MODES[args.mode](run, network, args)


def build_parser():
    parser = ArgumentParser(prog="test.py", description="Test a trained network and explain its predictions.")
    add = parser.add_argument
    modes = (
        "cifar: the whole test set of the network's data set; cifar-single: single images of it; "
        "custom: any image file; faithfulness: how far the explanations can be trusted"
    )
    add("--mode", choices=tuple(MODES), default="cifar", help=modes)
    index = "cifar-single: numbers of the test images to classify; the first is 0"
    add("--index", type=NON_NEGATIVE_INT, nargs="+", default=[1], help=index)
    add("--image_path", type=not_empty, help="custom: the image file")
    model = "a run's name or folder, or a checkpoint; default: the run trained last, or else the ViT of this project"
    add("--model_path", type=not_empty, help=model)
    add("--data_path", type=not_empty, default="./data", help="folder of the data set; CIFAR is downloaded to it")
    add(
        "--output_path",
        type=not_empty,
        default="./output",
        help="cifar, faithfulness: folder for results, one sub-folder per run",
    )
    add(
        "--gif_path",
        type=not_empty,
        help="file for the GIF; the still is the .png next to it; default: attention_map_gif/IMAGE.gif",
    )
    add("--no_gif", action="store_true", help="write neither a GIF nor a still")
    methods = (
        "maps in the GIF; default: attention and attn-lrp for a ViT, deep-lift for a CNN; "
        "masks classifies hundreds of changed images, and is slow"
    )
    add("--method", choices=METHODS, nargs="+", help=methods)
    masks = f"masks: number of random masks per image (default {SAMPLES}); faithfulness: also measure masks"
    add("--samples", type=number(int, at_least=2, at_most=LARGEST_SAMPLES), help=masks)
    fusion = "GIF: how rollout combines the heads of a layer"
    add("--head_fusion", choices=HEAD_FUSIONS, default="mean", help=fusion)
    discard = "GIF: fraction of each layer's attention weights that rollout drops, starting with the smallest"
    add("--discard_ratio", type=FRACTION, default=0.0, help=discard)
    add("--html", help="cifar-single, custom: also write an HTML page to this file, for exploring the prediction")
    add("--no_image", action="store_true", help="do not open a window")
    add(
        "--tta",
        action="store_true",
        help="cifar: also report the accuracy of predictions averaged over each image and its mirror image",
    )
    subset = "faithfulness: size of the stratified subset of the test images"
    add("--num_images", type=POSITIVE_INT, default=500, help=subset)
    add("--device", choices=DEVICES, default="auto", help="device; auto prefers cuda, then mps, then cpu")
    add("--batch_size", type=POSITIVE_INT, default=1000, help="cifar: images per batch")
    add("--num_workers", type=WORKERS, default=2, help="processes that decode a folder of images")
    return parser


def check_flags(args):
    """Raise `UserError`, before anything is computed, for flags that do not fit each other."""
    if args.gif_path and Path(args.gif_path).suffix.lower() != ".gif":
        raise UserError(f"--gif_path {args.gif_path} is not a GIF file; its name must end in .gif")
    if args.gif_path and args.mode == "cifar-single" and len(args.index) > 1:
        raise UserError("--gif_path takes only one image; leave out the flag, or give one --index")
    if args.image_path and args.mode != "custom":
        raise UserError("--image_path needs --mode custom")
    if args.mode == "custom" and not args.image_path:
        raise UserError("--mode custom needs --image_path, the image file to classify")
    if args.html is not None:
        check_html(args)
    has_gif_flags = has_rollout_flags(args) or args.method
    if has_gif_flags and args.mode not in SINGLE_MODES:
        names = "--method" if args.method else "--head_fusion and --discard_ratio"
        raise UserError(f"only GIFs depend on {names}; add --mode cifar-single or --mode custom")
    if has_gif_flags and args.no_gif and args.no_image:
        raise UserError("--no_gif and --no_image leave nothing to draw; leave out one of them, or the flags about maps")
    if args.mode == "faithfulness" and args.num_images < FEWEST_IMAGES:
        raise UserError(f"--num_images {args.num_images} is too few for intervals; choose {FEWEST_IMAGES} or more")
    if args.samples and args.mode != "faithfulness" and "masks" not in (args.method or ()):
        raise UserError("--samples is the number of random masks; add --method masks, or --mode faithfulness")


def has_rollout_flags(args):
    return args.head_fusion != "mean" or args.discard_ratio > 0


def check_methods(args, model):
    """Raise `UserError` if the network cannot be explained as the flags ask."""
    if has_rollout_flags(args) and not model.has_attention:
        raise UserError("--head_fusion and --discard_ratio need a Vision Transformer; leave them out")
    if has_rollout_flags(args) and args.method and "rollout" not in args.method:
        raise UserError("--head_fusion and --discard_ratio change only rollout; add rollout to --method")
    unfit = [flag for flag in args.method or () if flag not in methods_for(model)]
    if unfit:
        raise UserError(f"--method {unfit[0]} does not fit this network; choose from {', '.join(methods_for(model))}")
    patches = model.grid_size**2
    if args.samples and args.samples < patches:
        raise UserError(f"--samples {args.samples} is too few for {patches} patches; choose {4 * patches} or more")


def pick_methods(args, model):
    """The methods whose maps the GIF shows: those of --method, or the best fast one, for a ViT next to attention."""
    if args.method:
        methods = [METHODS[flag] for flag in dict.fromkeys(args.method)]
    else:
        methods = [METHODS["attention"]] * model.has_attention + [best_method(model)]
        methods += [METHODS["rollout"]] * has_rollout_flags(args)
    return [masks_method(args.samples or SAMPLES) if method.name == "masks" else method for method in methods]


def check_html(args):
    """Raise `UserError` if the page that --html asks for cannot be written."""
    path = Path(args.html)
    if path.suffix.lower() not in (".html", ".htm") or args.html.endswith(("/", "\\")) or path.is_dir():
        raise UserError(f"--html {args.html!r} is not an HTML file; choose a file name that ends in .html")
    if args.mode not in SINGLE_MODES:
        raise UserError("--html shows single images; add --mode cifar-single or --mode custom")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"cannot write {path}; choose a folder you may write to")


def pick_run(args):
    """The run to test, and a note on how it was chosen, which is empty if the user chose it."""
    if args.model_path is not None:
        return find_run(args.model_path, output_path=args.output_path), ""
    run = last_trained_run(output_path=args.output_path)
    if run:
        return run, " (the run trained last; --model_path chooses another)"
    shipped = Path("model") / SHIPPED_VIT
    shipped = shipped if shipped.exists() else Path(__file__).parent / shipped
    run = find_run(shipped, output_path=args.output_path)
    return run, " (comes with the project; --model_path chooses another)"


def output_files(run, network, args):
    """The paths of all files that the command may write."""
    if args.mode in ("cifar", "faithfulness"):
        return [run.output_folder / name for name in (TEST_FILES if args.mode == "cifar" else FAITHFULNESS_FILES)]
    names = [Path(args.image_path).stem] if args.mode == "custom" else [index_name(network, i) for i in args.index]
    gifs = [] if args.no_gif else [gif_path(name, args) for name in names]
    return [*gifs, *(path.with_suffix(".png") for path in gifs), *filter(None, [args.html])]


def gif_path(name, args):
    """The file for the GIF of an image; the still is next to it. `name` is its default, without suffix."""
    return Path(args.gif_path or f"attention_map_gif/{name}.gif")


def index_name(network, index):
    """The default name, without suffix, of the GIF of a test image."""
    trained_on = network.saved["dataset"]
    return f"{'cifar' if trained_on == 'cifar10' else trained_on}-index-{index}"


def describe(network):
    """The network's type, training and accuracy as a line of text."""
    saved = network.saved
    text = f"{saved['model_config']['model']} trained on {saved['dataset']}, epoch {saved['epoch']}"
    accuracy = saved["metrics"].get("test_accuracy")
    if accuracy is None:
        return text
    subset = saved["recipe"].get("num_test_images")
    return f"{text}, test accuracy {100 * accuracy:.2f} %" + (f" on {subset:,} images" if subset else "")


def full_test(run, network, args):
    """Test the network on the whole test set; print the scores and write the results to output/RUN/."""
    test = network.normalized_for(load_test_images(network, args.data_path, num_workers=args.num_workers))
    make_folder(run.output_folder)
    tested = run_full_test(network, run.checkpoint_path, test, args.batch_size, args.tta)
    print_scores(tested.results)
    write_full_test(tested, network, test, run.output_folder)
    print(printable(f"wrote {', '.join(TEST_FILES)} to {run.output_folder}"))


def print_scores(results):
    """Print the contents of test_results.json."""
    print_class_scores(results)
    print_confusion_matrix(results)
    low, high = (100 * end for end in results["accuracy_interval"])
    print(
        f"\ntest accuracy {100 * results['accuracy']:.2f} % (95 % interval {low:.2f} to {high:.2f}),"
        f" top-5 {100 * results['top5']:.2f} %, loss {results['loss']:.4f},"
        f" calibration error {100 * results['calibration']['error']:.2f} %, {results['images']} images"
    )
    if "flip" in results:
        flip = results["flip"]
        print(f"averaged with mirror images: test accuracy {100 * flip['accuracy']:.2f} %, loss {flip['loss']:.4f}")


def print_class_scores(results):
    """Print precision, recall, F1 and number of images per class, and their means."""
    by_class, classes = results["by_class"], results["classes"]
    width = max(map(len, [*classes, "weighted mean"]))
    rows = [(name, *(by_class[key][i] for key in SCORES), by_class["support"][i]) for i, name in enumerate(classes)]
    rows += [(f"{kind} mean", *(results[kind][key] for key in SCORES), results["images"]) for kind in MEANS]
    print(f"\n{'class':<{width}}  precision   recall       F1  images")
    for name, precision, recall, f1, images in rows:
        print(f"{name:<{width}}   {100 * precision:6.2f} % {100 * recall:6.2f} % {100 * f1:6.2f} %  {images:>6}")


def print_confusion_matrix(results):
    """Print the counts, one row per true class, unless there are too many classes for a terminal."""
    classes = results["classes"]
    if len(classes) > 12:
        return
    width = max(map(len, classes)) + 4
    numbers = "".join(f"{place:>6}" for place in range(len(classes)))
    print(f"\n{'true class':<{width}}  predicted class\n{'':<{width}}{numbers}")
    for place, (name, counts) in enumerate(zip(classes, results["confusion_matrix"], strict=True)):
        print(f"{place:>2} {name:<{width - 3}}" + "".join(f"{count:>6}" for count in counts))


def single_test(run, network, args):
    """Classify test images and show the network's attention."""
    test = network.normalized_for(load_test_images(network, args.data_path, num_workers=args.num_workers))
    wrong = [index for index in args.index if not 0 <= index < len(test)]
    if wrong:
        raise UserError(f"--index {wrong[0]} is out of range; the test images are 0 to {len(test) - 1}")
    explored = []
    for index in dict.fromkeys(args.index):
        label = f"true class: {network.classes[test.labels[index]]}"
        classify(network, test.images[index], index_name(network, index), label, args)
        explored.append((test.images[index], f"test image {index}", label))
    write_explorer(network, explored, args)


def custom_test(run, network, args):
    """Classify an image file and show the network's attention."""
    image = open_image(args.image_path, network.image_size)
    path = Path(args.image_path)
    name = printable(path.name)
    classify(network, image, path.stem, f"image: {shorten(name)}", args)
    write_explorer(network, [(image, name, "")], args)


def write_explorer(network, images, args):
    """Write the page that --html asks for. `images` is a list of (image, name, label)."""
    if args.html is not None:
        entries = [explorer.explain_image(network, *image) for image in images]
        explorer.write_page(args.html, network, entries)
        size = Path(args.html).stat().st_size
        print(printable(f"wrote {args.html} ({size / 1000:,.0f} KB); open it in a browser"))


def classify(network, image, name, label, args):
    """Print the most probable classes of an image, uint8 (3, H, W), and write and show its GIF.

    `name` is the GIF's default file name, without its suffix. `label` describes the image.
    """
    probabilities = network.logits(image[None]).softmax(dim=1)[0].cpu()
    top = probabilities.topk(min(5, len(network.classes)))
    print(label)
    for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"{100 * probability:6.2f} %  {network.classes[index]}")
    if args.no_gif and args.no_image:
        return
    caption = f"{label}   ·   predicted: {network.classes[top.indices[0]]} {100 * top.values[0]:.0f} %"
    frames, save_still = draw_maps(network, image, probabilities, top.indices, caption, args)
    if not args.no_gif:
        path = gif_path(name, args)
        gif.save_gif(frames, path)
        save_still(path.with_suffix(".png"))
        print(printable(f"wrote {path} and {path.with_suffix('.png')}"))
    if not args.no_image:
        gif.show(frames[-1], caption)


def draw_maps(network, image, probabilities, top, caption, args):
    """The GIF's frames for an image, uint8 (3, H, W), and a function that saves a still of its maps.

    The frames of a ViT are its layers; those of a CNN are its most probable classes `top`, the most probable one last.
    """
    if args.head_fusion != "mean":
        caption += f"   ·   rollout: {args.head_fusion} over heads"
    if args.discard_ratio:
        caption += f"   ·   rollout: smallest {100 * args.discard_ratio:g} % dropped"
    inputs, pixels = network.prepare(image[None]), image.permute(1, 2, 0).cpu().numpy()
    by_layer, heads = {}, None
    if network.model.has_attention:
        by_layer, heads = explain_layers(network.model, inputs, args.head_fusion, args.discard_ratio)
    rows = []
    for method in pick_methods(args, network.model):
        if method.name in by_layer:
            titles = [f"layer {layer + 1}" for layer in range(len(heads))]
            rows.append(MapRow(method.name, by_layer[method.name], titles, is_by_layer=True))
        else:
            maps = method.for_classes(network.model, inputs, top[None].to(network.device))[0].cpu().numpy()
            titles = [network.classes[index] for index in top]
            rows.append(MapRow(method.name, maps, titles, is_signed=method.is_signed))
    shown = probabilities.numpy(), network.classes, caption
    frames = (
        class_frames(pixels, rows, top.tolist(), *shown)
        if heads is None
        else attention_frames(pixels, rows, heads, *shown)
    )
    return frames, lambda path: save_relevance_grid(path, pixels, rows, caption)


def faithfulness_test(run, network, args):
    """Measure how far each explanation can be trusted; print it, and write tables and a picture to output/RUN/."""
    images = load_test_images(network, args.data_path, args.num_images, args.num_workers)
    test = network.normalized_for(images)
    if network.model.grid_size < 2:
        raise UserError("--mode faithfulness removes patches, but this network has only one; use one with more")
    make_folder(run.output_folder)
    path = run.output_folder / "faithfulness.pt"
    print(printable(f"measuring {len(test)} images; if it is stopped, the same command continues from {path}"))
    tested = run_faithfulness_test(network, run.checkpoint_path, test, run.output_folder, args.samples)
    print_faithfulness(*write_faithfulness_test(tested, network, run.output_folder), tested.methods)
    print(printable(f"wrote {', '.join(FAITHFULNESS_FILES)} to {run.output_folder}"))


def print_faithfulness(areas, by_method, methods):
    """Print the rows of both tables: areas and paired gains, one line per method, and what else was measured."""
    cells = {(row["method"], row["fill"], row["kind"]): row for row in areas}
    names, fills = (list(dict.fromkeys(row[key] for row in areas)) for key in ("method", "fill"))
    reference = areas[0]["reference"]
    for kind, better in (("deletion", "lower"), ("insertion", "higher")):
        print(f"\n{kind}: mean probability of the predicted class along the curve, in %; {better} is better")
        print(f"in brackets: gain over {reference} in points, image by image, 95 % interval; above 0 is better\n")
        print(" " * 20 + "".join(f"{fill:<22}" for fill in fills).rstrip())
        for name in names:
            print(
                f"{BASELINE_LABELS.get(name, name):<20}"
                + "".join(f"{format_area(cells[name, fill, kind]):<22}" for fill in fills).rstrip()
            )
    print("\n* no clear gain over the best baseline: its 95 % interval is not above 0")
    columns = {"class_sensitivity": "class sensitivity (%)", "randomized": "randomized"}
    if "masks" in methods:
        columns["agreement"] = "agrees with masks"
    print(f"\n{'':<20}{'ms':>6}    " + "".join(f"{title:<23}" for title in columns.values()).rstrip())
    for row in by_method:
        values = "".join(f"{format_interval(row, key):<23}" for key in columns)
        print(f"{row['method']:<20}{row['milliseconds']:>6.1f}    {values}".rstrip())
    print("\nms: time for one class of one image")
    print(
        "class sensitivity: how much more the runner-up's map raises the runner-up than the predicted class's map does"
    )
    images = f"{by_method[0]['randomized_images']} images; intervals over {faithfulness.DRAWS} draws"
    print(f"randomized: rank correlation with the maps of networks with random weights; near 0 is good ({images})")
    if "masks" in methods:
        print("agrees with masks: rank correlation with the maps of masks")
    class_blind = " and ".join(name for name, method in methods.items() if method.is_class_blind)
    if class_blind:
        print(f"{class_blind} are the same for every class: they show where the network looks")


def format_area(row):
    """An area in %, with the interval of its gain over the reference, and a star unless it beats all baselines."""
    star = "" if row["method"] in faithfulness.BASELINES or row["gain_over_baseline_low"] > 0 else "*"
    text = f"{100 * row['area']:5.1f}{star}"
    if row["method"] == row["reference"]:
        return text
    return f"{text} [{100 * row['gain_low']:+.1f}, {100 * row['gain_high']:+.1f}]"


def format_interval(row, key):
    """A mean with its interval, or nothing if it was not measured."""
    if row[key] is None:
        return ""
    scale, digits = (100, 1) if key == "class_sensitivity" else (1, 2)
    mean, low, high = (f"{scale * row[name]:+.{digits}f}" for name in (key, f"{key}_low", f"{key}_high"))
    return f"{mean} [{low}, {high}]"


SINGLE_MODES = ("cifar-single", "custom")
MODES = {
    "cifar": full_test,
    "cifar-single": single_test,
    "custom": custom_test,
    "faithfulness": faithfulness_test,
}


if __name__ == "__main__":
    main()
