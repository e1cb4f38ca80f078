"""Test a trained network: on the whole test set, on single test images, or on any image file.

    python test.py --mode cifar                                  # accuracy, per-class scores, confusion matrix
    python test.py --mode cifar-single --index 5                 # classify test image 5, with an attention GIF
    python test.py --mode custom --image_path img.png            # the same for any image file
    python test.py --mode custom --image_path photos             # classify all images of a folder
    python test.py --mode cifar --csv --embeddings               # write predictions and features of the test images
    python test.py --mode custom --image_path img.png --html img.html    # and a page to explore the prediction
    python test.py --html live.html --live                       # a page that contains the network, for any image
    python test.py --mode custom --image_path img.png --method attention rollout    # other maps in the GIF
    python test.py --mode faithfulness --num_images 500          # how far the explanations can be trusted

--model_path is a run's name, its folder, or a checkpoint; the architecture comes from the checkpoint. Without this
flag, the run that was trained last is tested or, if there is none, the ViT that comes with the project.

The full test writes its numbers and pictures to output/RUN/. cifar-single and custom write a GIF and a still to
attention_map_gif/: for a ViT, attention layer by layer and AttnLRP; for a CNN, DeepLIFT for its most probable classes.
--method chooses other maps. Both modes also open a window if there is a display. For a folder of images, custom writes
predictions.csv and overview.png to output/RUN-on-FOLDER/ instead.
"""

if __name__ == "__main__":
    import vit_cifar10

    vit_cifar10.end_on_ctrl_c()
    vit_cifar10.end_quickly()

    from vit_cifar10.flags.test import parse
    from vit_cifar10.utils.cli import check_flags_first

    check_flags_first(parse)  # before PyTorch is imported, which takes seconds

import dataclasses
import hashlib
import itertools
import sys
from pathlib import Path

from PIL import Image

from vit_cifar10.data.classes import read_class_names
from vit_cifar10.data.image_files import image_folders
from vit_cifar10.data.images import open_image
from vit_cifar10.data.tables import DATASETS
from vit_cifar10.explain.explanation import Explanation
from vit_cifar10.explain.methods import find, methods_for, shown_methods
from vit_cifar10.flags.test import MODES, has_rollout_flags, is_folder, parse, shows_example
from vit_cifar10.runs.checkpoint import load_network
from vit_cifar10.runs.run import (
    FAITHFULNESS_FILES,
    PREDICTION_FILES,
    SHIPPED_VIT,
    TEST_FILES,
    Run,
    check_record,
    find_run,
    last_trained_run,
)
from vit_cifar10.utils.choices import SAMPLES
from vit_cifar10.utils.cli import command
from vit_cifar10.utils.device import pick_device
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.files import check_outputs, output_folder
from vit_cifar10.utils.text import printable, shorten

EXAMPLES = ("cat", "deer", "truck", "bird")  # images in examples/ with which a live page opens

# Everything that draws is imported inside functions: it takes a second, which single images do not wait for.


@command
def main(argv=None):
    args = parse(argv)
    device = pick_device(args.device)
    run, choice = pick_run(args)
    has_batches = args.mode == "cifar" or is_folder(args)
    advice = "lower --batch_size, or use --device cpu" if has_batches else "use --device cpu"
    with out_of_memory_advice(advice):
        network = load_network(run.checkpoint_path, device)
        run, network = adapt(run, network, args)
        inputs = [path for path in (run.checkpoint_path, args.image_path, args.class_names) if path]
        folders = [args.image_path] if is_folder(args) else image_folders(network.dataset, args.data_path)
        check_outputs(output_files(run, network, args), inputs, folders)
        if is_folder(args) or (args.mode in ("cifar", "faithfulness") and not shows_example(args)):
            check_record(run.output_folder, network.saved["recipe"])
        print(printable(f"{run.checkpoint_path}{choice}: {network_summary(network)}"))
        check_methods(args, network.model)
        if args.html is not None and not is_folder(args):
            from vit_cifar10.explain.explorer import check_size

            check_size(network, args.live, len(set(args.index)) if args.mode == "cifar-single" else 1)
        test = write_example if shows_example(args) else TESTS[args.mode]
        test(run, network, args)


def check_methods(args, model):
    """Raise `UserError` if the network cannot be explained as the flags ask."""
    if args.attention and not model.has_attention:
        raise UserError("--attention needs a Vision Transformer; leave it out")
    if has_rollout_flags(args) and not model.has_attention:
        raise UserError("--head_fusion and --discard_ratio need a Vision Transformer; leave them out")
    if args.head_scale != "image" and not model.has_attention:
        raise UserError("--head_scale needs a Vision Transformer; leave it out")
    unfit = [flag for flag in args.method or () if flag not in methods_for(model)]
    if unfit:
        raise UserError(f"--method {unfit[0]} does not fit this network; choose from {', '.join(methods_for(model))}")
    patches = model.grid_size**2
    if args.samples and args.samples < patches:
        raise UserError(f"--samples {args.samples} is too few for {patches} patches; choose {4 * patches} or more")


def pick_methods(args, model):
    """The methods whose maps the GIF shows: those of --method, or the best fast one, for a ViT next to attention."""
    flags = args.method or (*shown_methods(model), *["rollout"] * has_rollout_flags(args))
    options = {
        "rollout": {"head_fusion": args.head_fusion, "discard_ratio": args.discard_ratio},
        "masks": {"samples": args.samples or SAMPLES},
    }
    return [find(flag, **options.get(flag, {})) for flag in dict.fromkeys(flags)]


def pick_run(args):
    """The run to test, and a note on how it was chosen, which is empty if the user chose it."""
    if args.model_path is not None:
        return find_run(args.model_path, output_path=args.output_path), ""
    run = last_trained_run(output_path=args.output_path)
    if run:
        return run, " (the run trained last; --model_path chooses another)"
    run = find_run(SHIPPED_VIT, output_path=args.output_path)
    return run, " (comes with the project; --model_path chooses another)"


def adapt(run, network, args):
    """The run and the network with the class names, the data set and the way of resizing that the flags ask for.

    Results on other images do not replace those on the run's own: they go to output/RUN-on-DATASET/, output/RUN-squash/
    or, for a folder of images to classify, output/RUN-on-FOLDER/.
    """
    output = run.output_folder.name
    if args.class_names:
        network = dataclasses.replace(network, classes=read_class_names(args.class_names, network.classes))
    if args.dataset and args.dataset != network.saved["dataset"]:
        network, output = dataclasses.replace(network, tested_on=args.dataset), f"{output}-on-{args.dataset}"
    if is_folder(args):
        output += f"-on-{Path(args.image_path).resolve().name}"
    if args.resize and args.mode != "custom" and not DATASETS[network.dataset].is_own:
        raise UserError(f"--resize is for images of your own; those of {network.dataset} are square")
    if args.resize and args.resize != network.resize:
        network, output = dataclasses.replace(network, resize=args.resize), f"{output}-{args.resize}"
    return Run(run.model_folder, run.output_folder.with_name(output), run.named_checkpoint), network


def output_files(run, network, args):
    """The paths of all files that the command may write."""
    if shows_example(args):
        return [args.html]
    files = [*prediction_files(run, args).values(), *filter(None, [args.html])]
    if is_folder(args):
        return files
    if args.mode in ("cifar", "faithfulness"):
        names = TEST_FILES if args.mode == "cifar" else FAITHFULNESS_FILES
        return [*files, *(run.output_folder / name for name in names)]
    names = [custom_name(args)] if args.mode == "custom" else [index_name(network, i) for i in args.index]
    gifs = [] if args.no_gif else [gif_path(name, args) for name in names]
    return [*gifs, *(path.with_suffix(".png") for path in gifs), *files]


def prediction_files(run, args):
    """The paths of the files that hold predictions or features of many images, {kind: path}."""
    wanted = {"csv": args.csv or is_folder(args), "embeddings": args.embeddings, "overview": is_folder(args)}
    typed = {"csv": args.csv, "embeddings": args.embeddings}
    names = zip(wanted, PREDICTION_FILES, strict=True)
    return {
        kind: Path(typed[kind]) if isinstance(typed.get(kind), str) else run.output_folder / name
        for kind, name in names
        if wanted[kind]
    }


def gif_path(name, args):
    """The file for the GIF of an image; the still is next to it. `name` is its default, without suffix."""
    return Path(args.gif_path or f"attention_map_gif/{name}.gif")


def custom_name(args):
    """The default name, without suffix, of the GIF of an image file. The GIF of another file of this name is kept."""
    stem, hashed = Path(args.image_path).stem, image_comment(args.image_path)
    if args.gif_path:
        return stem
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if gif_comment(gif_path(name, args)) in (None, hashed))


def image_comment(path):
    """What the GIF of an image file says about its source."""
    return f"image {hashlib.sha256(Path(path).read_bytes()).hexdigest()}".encode()


def gif_comment(path):
    """What a GIF says about its source; None if there is no GIF, or if it says nothing."""
    try:
        with Image.open(path, formats=["GIF"]) as gif:
            comment = gif.info.get("comment", b"")
    except (OSError, ValueError):
        return None
    return comment if comment.startswith(b"image ") else None


def index_name(network, index):
    """The default name, without suffix, of the GIF of a test image."""
    return f"{'cifar' if network.dataset == 'cifar10' else network.dataset}-index-{index}"


def network_summary(network):
    """The network's type, training and accuracy as a line of text."""
    saved = network.saved
    text = f"{saved['model_config']['model']} {network.origin}"
    if "converted_from" not in saved["recipe"]:
        text += f", epoch {saved['epoch']}"
    accuracy = saved["metrics"].get("test_accuracy")
    if accuracy is None:
        return text
    subset = saved["recipe"].get("num_test_images")
    return f"{text}, test accuracy {100 * accuracy:.2f} %" + (f" on {subset:,} images" if subset else "")


def full_test(run, network, args):
    """Test the network on the whole test set; print the scores and write the results to output/RUN/."""
    from vit_cifar10.evaluation.full_test import print_mistakes, print_scores, run_full_test, write_full_test

    test = network.normalized_for(network.load_test_images(args.data_path, num_workers=args.num_workers))
    with output_folder(run.output_folder):
        tested = run_full_test(network, run.checkpoint_path, test, args.batch_size, args.tta)
        print_scores(tested.results)
        if test.files:
            print_mistakes(tested, test)
        write_full_test(tested, network, test, run.output_folder)
    print(printable(f"wrote {', '.join(TEST_FILES)} to {run.output_folder}"))
    write_predictions(run, network, tested.logits, test, args)


def write_predictions(run, network, logits, split, args):
    """Write the predictions and features of the images of a split that the flags ask for."""
    from vit_cifar10.evaluation import predictions

    for kind, path in prediction_files(run, args).items():
        if kind == "csv":
            predictions.write_predictions(path, logits, split)
        elif kind == "embeddings":
            predictions.write_embeddings(path, network, logits, split, args.attention)
        else:
            title = f"{shorten(Path(args.image_path).resolve().name)}, classified by {shorten(network.name)}"
            predictions.save_overview(logits, split, path, title)
        print(printable(f"wrote {path}"))


def single_test(run, network, args):
    """Classify test images and show the network's attention."""
    test = network.normalized_for(network.load_test_images(args.data_path, num_workers=args.num_workers))
    wrong = [index for index in args.index if not 0 <= index < len(test)]
    if wrong:
        raise UserError(f"--index {wrong[0]} is out of range; the test images are 0 to {len(test) - 1}")
    explored = []
    for index in dict.fromkeys(args.index):
        label, name = f"true class: {network.classes[test.labels[index]]}", f"test image {index}"
        if test.files:
            name = printable(test.files[index])
            label = f"{shorten(name)}, {label}"
        explanation = classify(network, test.images[index], index_name(network, index), label, args)
        explored.append((explanation, name, label))
    write_explorer(network, explored, args, test)


def custom_test(run, network, args):
    """Classify an image file and show the network's attention, or classify all images of a folder."""
    if is_folder(args):
        return classify_folder(run, network, args)
    image = open_image(args.image_path, network.image_size, network.resize)
    path = Path(args.image_path)
    name = printable(path.name)
    explanation = classify(network, image, custom_name(args), f"image: {shorten(name)}", args)
    write_explorer(network, [(explanation, name, "")], args)


def classify_folder(run, network, args):
    """Classify all images of a folder; write the predictions and an overview."""
    from vit_cifar10.evaluation.predictions import classify_images, print_predictions, read_images

    images = read_images(network, args.image_path, args.num_workers)
    if args.html is not None:
        from vit_cifar10.explain.explorer import check_size

        check_size(network, args.live, len(images))
    with output_folder(run.output_folder):
        logits = classify_images(network, images, args.batch_size)
        print_predictions(logits, images)
        write_predictions(run, network, logits, images, args)
    if args.html is not None:
        named = zip(images.images, map(printable, images.files), strict=True)
        write_explorer(network, [(Explanation(network, image), name, "") for image, name in named], args)


def write_explorer(network, images, args, test=None, others=()):
    """Write the page that --html asks for. `images` are the arguments of `page_entry`, `others` names and images."""
    if args.html is not None:
        from tqdm import tqdm

        from vit_cifar10.explain import explorer

        bar = {"desc": "explaining", "unit": "image", "leave": False, "disable": None if len(images) > 1 else True}
        entries = [explorer.page_entry(*image) for image in tqdm(images, **bar)]
        entries += [explorer.image_entry(image, name, "") for name, image in others]
        explorer.write_page(args.html, network, entries, args.live, test)
        size = Path(args.html).stat().st_size
        print(printable(f"wrote {args.html} ({size / 1000:,.0f} KB); open it in a browser"))


def write_example(run, network, args):
    """Write the live page of a network without an image of the user's own: it opens with examples."""
    if network.dataset == "shapes":
        from vit_cifar10.data.shapes import draw_shapes

        images, labels = draw_shapes(4, network.image_size, seed=0)
        examples = [(f"drawn {network.classes[label]}", image) for image, label in zip(images, labels, strict=True)]
    else:
        files = {name: Path(__file__).parent / "examples" / f"{name}.png" for name in EXAMPLES}
        examples = [(name, open_image(file, network.image_size, prints_notes=False)) for name, file in files.items()]
    (name, first), *others = examples
    write_explorer(network, [(Explanation(network, first), name, "")], args, others=others)


def classify(network, image, name, label, args):
    """Print the most probable classes of an image, uint8 (3, H, W); write and show its GIF. Return its `Explanation`.

    `name` is the GIF's default file name, without its suffix. `label` describes the image.
    """
    explanation = Explanation(network, image, for_page=args.html is not None)
    top = [(100 * explanation.probabilities[index].item(), network.classes[index]) for index in explanation.classes[:5]]
    print(label)
    for percent, title in top:
        print(f"{percent:6.2f} %  {title}")
    if args.no_gif and args.no_image:
        return explanation
    sys.stdout.flush()  # shows the classes before the maps are drawn, even if the output is a file or a pipe
    from vit_cifar10.explain.animation import draw_maps
    from vit_cifar10.plots import gif

    caption = f"{label}   ·   predicted: {top[0][1]} {top[0][0]:.0f} %"
    if args.head_fusion != "mean":
        caption += f"   ·   rollout: {args.head_fusion} over heads"
    if args.discard_ratio:
        caption += f"   ·   rollout: smallest {100 * args.discard_ratio:g} % dropped"
    methods, has_own_scales = pick_methods(args, network.model), args.head_scale == "own"
    frames, save_still = draw_maps(explanation, methods, caption, has_own_scales)
    if not args.no_gif:
        path = gif_path(name, args)
        gif.save_gif(frames, path, comment=image_comment(args.image_path) if args.mode == "custom" else b"")
        save_still(path.with_suffix(".png"))
        print(printable(f"wrote {path} and {path.with_suffix('.png')}"))
    if not args.no_image:
        gif.show(frames[methods[-1].result], caption)
    return explanation


def faithfulness_test(run, network, args):
    """Measure how far each explanation can be trusted; print it, and write tables and a picture to output/RUN/."""
    from vit_cifar10.evaluation.faithfulness_report import (
        measure_faithfulness,
        print_faithfulness,
        write_faithfulness,
    )

    images = network.load_test_images(args.data_path, args.num_images, args.num_workers)
    test = network.normalized_for(images)
    if network.model.grid_size < 2:
        raise UserError("--mode faithfulness removes patches, but this network has only one; use one with more")
    with output_folder(run.output_folder):
        path = run.output_folder / "faithfulness.pt"
        print(printable(f"measuring {len(test)} images; if it is stopped, the same command continues from {path}"))
        tested = measure_faithfulness(network, test, run.output_folder, args.samples)
        print_faithfulness(*write_faithfulness(tested, network, run.output_folder), tested.methods)
    print(printable(f"wrote {', '.join(FAITHFULNESS_FILES)} to {run.output_folder}"))


TESTS = dict(zip(MODES, (full_test, single_test, custom_test, faithfulness_test), strict=True))


if __name__ == "__main__":
    main()
