"""Compare trained runs: accuracy, curves, images they disagree on, and whether a difference may be due to chance.

    python compare.py model/VIT_RUN model/CNN_RUN                # any number of runs
    python compare.py model/vit-seed* model/cnn-seed*            # several seeds: mean and standard deviation
    python compare.py model/cnn-500 model/cnn-5000 model/cnn     # accuracy against the number of training images
    python compare.py model/VIT_RUN model/CNN_RUN --robustness   # also on corrupted images and under attack

Each RUN is a folder under model/ or output/, a checkpoint, or a name. Runs that cannot be read are reported and left
out, and the exit status is then 2. A run without a full test of its current weights is tested first.

Writes to --compare_path: comparison.md (tables and pictures), comparison.json (tables), comparison.csv (the first
table), model_comparison.png, class_accuracy.png, disagreements.png and, for runs with different numbers of training
images, accuracy_by_images.png. Pictures of an earlier comparison are replaced or, if they do not apply, removed. With
--robustness, it also writes robustness.csv and robustness.png, and can be stopped and continued.
"""

if __name__ == "__main__":
    import vit_cifar10

    vit_cifar10.end_on_ctrl_c()

    from vit_cifar10.flags.compare import parse
    from vit_cifar10.utils.cli import check_flags_first

    check_flags_first(parse)  # before PyTorch is imported, which takes seconds

import dataclasses
import statistics
import sys
from pathlib import Path

from vit_cifar10.data.classes import read_class_names
from vit_cifar10.data.corruptions import SIDE_MULTIPLE
from vit_cifar10.data.dataset import SUBSET_SEED, stratified_sample
from vit_cifar10.data.image_files import image_folders
from vit_cifar10.evaluation.comparison import (
    class_recalls,
    compare_pairs,
    disagreements,
    ensure_tested,
    group_by_images,
    group_seeds,
    load_trained_run,
    mean_recalls,
    most_different,
    sample_sizes,
    summarize,
    summarize_seeds,
)
from vit_cifar10.evaluation.robustness import measure_robustness, robustness_rows, write_robustness
from vit_cifar10.evaluation.tables import all_tables, conclusion, robustness_section, write_markdown, write_tables
from vit_cifar10.explain.methods import best_method
from vit_cifar10.flags.compare import parse
from vit_cifar10.plots.curves import save_comparison, save_sample_sizes
from vit_cifar10.plots.explanations import save_disagreements
from vit_cifar10.plots.scores import save_class_accuracy
from vit_cifar10.runs.run import ROBUSTNESS_FILE, TEST_FILES
from vit_cifar10.utils.cli import command
from vit_cifar10.utils.device import pick_device
from vit_cifar10.utils.errors import UserError, out_of_memory_advice
from vit_cifar10.utils.files import check_outputs, output_folder
from vit_cifar10.utils.text import folded, one_line, printable, shorten

TABLES = ("comparison.md", "comparison.csv", "comparison.json")
PICTURES = {
    "model_comparison.png": "Loss and accuracy by epoch",
    "class_accuracy.png": "Fraction of each class's test images that is classified correctly",
    "accuracy_by_images.png": "Test accuracy by the number of training images",
    "disagreements.png": "Images that one network gets right and the other gets wrong",
}
ROBUSTNESS_OUTPUTS = ("robustness.csv", "robustness.png")


@command
def main(argv=None):
    args = parse(argv)
    advice = out_of_memory_advice("lower --batch_size, or use --device cpu")
    with advice, output_folder(Path(args.compare_path)):
        compare(args)


def compare(args):
    runs, unreadable = load_runs(args, pick_device(args.device))
    folder = Path(args.compare_path)
    inputs = [run.checkpoint_path for run in runs] + [args.class_names] * bool(args.class_names)
    check_outputs(output_files(runs, folder), inputs, folders_of_images(runs, args))
    earlier = [name for name in PICTURES if (folder / name).exists()]
    test_images = test_all(runs, args)
    rows = [summarize(run) for run in runs]
    pairs, seeds = compare_pairs(runs), summarize_seeds(runs, rows)
    classes = [{"dataset": group[0].dataset, "classes": class_recalls(group)} for group in group_by_images(runs)]
    text, sentence = all_tables(rows, seeds, pairs, classes), conclusion(group_seeds(runs), pairs)
    print(text)
    tables = {"seeds": seeds, "pairs": pairs, "classes": classes}
    write_tables(folder, rows, **tables)
    write_markdown(folder, sentence, text, pictures={})
    pictures = {name: PICTURES[name] for name in draw(folder, runs, test_images)}
    write_markdown(folder, sentence, text, pictures)
    print(folded(printable(f"wrote {', '.join([*TABLES, *pictures])} to {folder}")))
    removed = ", ".join(name for name in earlier if name not in pictures)
    if removed:
        print(folded(f"removed pictures of an earlier comparison that cannot be drawn for these runs: {removed}"))
    if args.robustness:
        measured = compare_robustness(runs, test_images, args.num_images)
        tables["robustness"] = robustness_rows(measured)
        write_robustness(folder, tables["robustness"], measured)
        found = robustness_section(tables["robustness"])
        print(f"\n{found}")
        write_tables(folder, rows, **tables)
        pictures["robustness.png"] = "Accuracy retained on corrupted images"
        write_markdown(folder, sentence, f"{text}\n{found}", pictures)
        print(folded(printable(f"wrote {', '.join(ROBUSTNESS_OUTPUTS)} to {folder}")))
    if sentence:
        print(folded(f"\n{sentence}"))
    if unreadable:
        raise UserError(f"{unreadable} of the runs could not be compared; see above")


def output_files(runs, folder):
    """The paths of all files that the command may write or remove."""
    results = [run.run.output_folder / name for run in runs for name in (*TEST_FILES, ROBUSTNESS_FILE)]
    return [*results, *(folder / name for name in (*TABLES, *PICTURES, *ROBUSTNESS_OUTPUTS))]


def folders_of_images(runs, args):
    """The folders of images that any of the runs is tested on."""
    return [folder for name in {run.dataset for run in runs} for folder in image_folders(name, args.data_path)]


def load_runs(args, device):
    """Load the runs, each once, and count those that cannot be read; report on standard error what is missing.

    Raises:
        UserError: nothing is left to compare.
    """
    runs, errors = [], []
    for typed in args.runs:
        try:
            run = load_trained_run(typed, args.model_path, args.output_path, device)
            name_classes(run, args.class_names)
        except UserError as error:
            errors.append(str(error))
            continue
        path, same_name = run.checkpoint_path, [other for other in runs if other.name == run.name]
        if any(path.resolve() != other.checkpoint_path.resolve() for other in same_name):
            errors.append(f"{typed} is left out: another run is also named {run.name}; rename its folder")
        elif not same_name:
            runs.append(run)
    for note in [*errors, *(note for run in runs for note in run.notes)]:
        warn(note)
    if not runs:
        raise UserError("none of the given runs can be read; give the folders of trained runs, such as model/RUN")
    if errors and len(runs) == 1:
        raise UserError(f"only {runs[0].name} is left; there is nothing to compare it with")
    return runs, len(errors)


def name_classes(run, path):
    """Give a run the names of classes in a file, if there is one. If they are its own, they keep its order."""
    names = path and read_class_names(path, run.network.classes)
    if names and set(names) != set(run.network.classes):
        run.network = dataclasses.replace(run.network, classes=names)


def warn(message):
    print(f"compare.py: {one_line(message)}", file=sys.stderr)


def test_all(runs, args):
    """Test every run on the images of its data set, and return {`images_key`: Split or None}. Each set is read once.

    If the images are missing, the results of earlier tests are used.
    """
    splits, seen = {}, set().union(*(run.network.seen for run in runs))
    for run in runs:
        key = images_key(run)
        if key not in splits:
            try:
                splits[key] = run.network.load_test_images(args.data_path, num_workers=args.num_workers, seen=seen)
            except UserError as error:
                splits[key] = None
                warn(str(error))
        try:
            ensure_tested(run, splits[key], args.batch_size)
        except UserError as error:
            warn(f"{run.name}: {error}" if run.tested else f"{run.name} cannot be tested: {error}")
        if splits[key] is None and not run.tested:
            warn(f"{run.name} cannot be tested without its test images")
    names = sorted({run.dataset for run in runs})
    if len(names) > 1:
        warn(f"the runs use different data sets ({', '.join(names)}); only runs on the same one are compared in pairs")
    return splits


def images_key(run):
    """The test images that a run needs: the data set, the side of its images in pixels, and how they become square."""
    return run.dataset, run.network.image_size, run.network.resize


def compare_robustness(runs, test_images, num_images):
    """Measure the robustness of the runs that take the same test images as the first one.

    Raises:
        UserError: there are no test images, or their side cannot be divided into patches.
    """
    tested = [run for run in runs if run.tested and test_images[images_key(run)]]
    if not tested:
        raise UserError("--robustness needs the test images; give their folder with --data_path")
    key = images_key(tested[0])
    for run in runs:
        if run not in tested or images_key(run) != key:
            warn(f"--robustness leaves out {run.name}, whose test images are missing or others than the first run's")
    if key[1] % SIDE_MULTIPLE:
        raise UserError(
            f"--robustness needs images whose side is a multiple of {SIDE_MULTIPLE} pixels, but {tested[0].name} takes"
            f" {key[1]}; leave out --robustness"
        )
    test = test_images[key]
    subset = test.subset(stratified_sample(test.labels, min(num_images, len(test)), SUBSET_SEED))
    return measure_robustness([run for run in tested if images_key(run) == key], subset)


def draw(folder, runs, test_images):
    """Remove the `PICTURES` of an earlier comparison, draw the ones that apply now, and yield their file names."""
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    groups = group_seeds(runs)
    curves = [(label(group) + curve_note(group), [run.epochs for run in group if run.epochs]) for group in groups]
    curves = [(name, histories) for name, histories in curves if histories]
    if curves:
        save_comparison(curves, folder / "model_comparison.png")
        yield "model_comparison.png"
    for group in group_by_images(runs)[:1]:
        recalls = {label(seeds): mean_recalls(seeds) for seeds in group_seeds(group)}
        save_class_accuracy(recalls, group[0].network.classes, group[0].dataset, folder / "class_accuracy.png")
        yield "class_accuracy.png"
    sizes = {name: points for name, points in sample_sizes(runs).items() if len(points) > 1}
    if sizes:
        save_sample_sizes(sizes, folder / "accuracy_by_images.png")
        yield "accuracy_by_images.png"
    pair = most_different(runs)
    if pair and all(test_images[images_key(run)] for run in pair):
        panels = disagreement_panels(pair, [test_images[images_key(run)] for run in pair])
        if any(images for _, images in panels):
            names = [f"{shorten(run.name, 22)}\n{best_method(run.network.model).name}" for run in pair]
            save_disagreements(panels, names, folder / "disagreements.png")
            yield "disagreements.png"


def disagreement_panels(pair, splits):
    """The images that only one of two runs gets right: [(title, [`explain_both`, ...]), ...], one panel per run."""
    panels = []
    for one, other in (pair, pair[::-1]):
        title = f"{shorten(one.name, 30)} is right, {shorten(other.name, 30)} is wrong"
        panels.append((title, [explain_both(index, pair, splits) for index in disagreements(one, other)]))
    return panels


def explain_both(index, pair, splits):
    """A test image, its label, and for both networks what speaks for the class they predict: [(map, caption), ...]."""
    maps = []
    for run, split in zip(pair, splits, strict=True):
        model = run.network.model
        inputs = run.network.prepare(split.images[index : index + 1])
        probabilities = run.tested.logits[index].softmax(dim=0)
        predicted = probabilities.argmax()[None].to(run.network.device)
        relevance = best_method(model).explain(model, inputs, predicted)[0].cpu().numpy()
        name = shorten(run.network.classes[probabilities.argmax()], 16)
        maps.append((relevance, f"{name} {100 * probabilities.max():.0f} %"))
    image = splits[0].images[index].permute(1, 2, 0).cpu().numpy()
    return image, shorten(splits[0].classes[splits[0].labels[index]], 16), maps


def label(group):
    """The legend entry of a run, or of several seeds."""
    first = group[0]
    name = f"{shorten(first.name)} and {len(group) - 1} more" if len(group) > 1 else shorten(first.name)
    accuracies = [run.results["accuracy"] for run in group if run.tested]
    if accuracies:
        name += f": {'mean ' if len(group) > 1 else ''}{100 * statistics.mean(accuracies):.2f} %"
    return name if first.is_finished else f"{name} (unfinished)"


def curve_note(group):
    """A note for the legend if the epochs were not evaluated on all test images, otherwise an empty string."""
    counts = sorted({run.flags["num_test_images"] for run in group if not run.has_whole_test})
    return f" (curve: {' or '.join(map('{:,}'.format, counts))} test images)" if counts else ""


if __name__ == "__main__":
    main()
