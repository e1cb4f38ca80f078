"""What was measured of the shipped networks: the records in shipped.json, and the tables that are generated from them.

records = read_records()       # {run: {part: {"checkpoint_sha256": ..., ...}}}, written by showcase.py
write_tables(records)          # the tables of model/README.md, docs/explanations.md and docs/comparison.md

A test checks that every record belongs to the weights in model/, and that the tables match the records.
"""

import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import build_model, count_parameters
from tables import replace_text, write_blocks
from vit_cifar10.evaluation.robustness import CLEAN
from vit_cifar10.evaluation.tables import markdown_table, percent
from vit_cifar10.explain.faithfulness import AREAS
from vit_cifar10.explain.removal import FILLS
from vit_cifar10.plots.explanations import BASELINE_LABELS
from vit_cifar10.runs import checkpoint

RECORDS = ROOT / "benchmarks" / "shipped.json"
MODEL_CARD = ROOT / "model" / "README.md"
EXPLANATIONS = ROOT / "docs" / "explanations.md"
COMPARISON = ROOT / "docs" / "comparison.md"
ROBUSTNESS = ROOT / "examples" / "robustness.csv"  # as compare.py wrote it
MAIN_VIT, MAIN_CNN = "vit-layer12-32-cifar10", "cnn-32-cifar10"  # their explanations have tables of their own
BEST_METHODS = {"vit": "AttnLRP", "cnn": "DeepLIFT"}  # among those that are fast
PARTS = ("scores", "live", "faithfulness")  # of a record
CONFIDENT_BINS = 3  # of the 15 bins of confidence: those above 80 %
FEWEST_IN_BIN = 100  # images, for a bin's gap between confidence and accuracy to count


def shipped_runs():
    """The names of the runs whose weights are in git, the best ViT first and the CNN last."""
    runs = [path.parent.name for path in ROOT.glob("model/*-32-cifar10/best.pt")]
    order = ["vit-best-32-cifar10", MAIN_VIT, "vit-layer6-32-cifar10", MAIN_CNN]
    return [run for run in order if run in runs]


def read_records():
    """Return the records of the shipped runs, {run: {part: record}}, without those of other weights."""
    saved = json.loads(RECORDS.read_text("utf-8")) if RECORDS.exists() else {}
    records = {}
    for run in shipped_runs():
        sha256 = checkpoint.hash_file(ROOT / "model" / run / "best.pt")
        parts = saved.get(run, {}).items()
        records[run] = {part: record for part, record in parts if record["checkpoint_sha256"] == sha256}
    return records


def record(run, part, values):
    """Save what was measured of one part, and generate the tables again if that makes them complete."""
    records = read_records()
    sha256 = checkpoint.hash_file(ROOT / "model" / run / "best.pt")
    records[run][part] = {"checkpoint_sha256": sha256, **values}
    replace_text(RECORDS, json.dumps(records, indent=1) + "\n")
    write_tables(records)


def write_tables(records):
    """Generate each table for which all networks have been measured."""
    write_blocks(generated_blocks(records))


def generated_blocks(records):
    """Return the generated text of all parts that are complete, {(file, name of its markers): text}."""
    blocks = {}
    if has_all(records, "scores"):
        blocks[MODEL_CARD, "networks"] = networks_table(records)
        blocks[MODEL_CARD, "scores"] = scores_table(records)
    if has_all(records, "live"):
        blocks[EXPLANATIONS, "live page"] = live_table(records)
    if has_all(records, "faithfulness"):
        for run in (MAIN_VIT, MAIN_CNN):
            measured = records[run]["faithfulness"]
            blocks[EXPLANATIONS, f"areas of {run}"] = areas_table(measured)
        blocks[EXPLANATIONS, f"methods of {MAIN_VIT}"] = methods_table(records[MAIN_VIT]["faithfulness"])
        blocks[EXPLANATIONS, "gains"] = gains_table(records)
    return {**blocks, (COMPARISON, "robustness"): robustness_table(read_csv(ROBUSTNESS))}


def read_csv(path):
    """The rows of a CSV file, with numbers as numbers, and None for empty cells."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{key: parse_cell(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def parse_cell(cell):
    try:
        return float(cell)
    except ValueError:
        return cell or None


def has_all(records, part):
    return all(part in of_run for of_run in records.values())


# Robustness


def robustness_table(rows):
    """A line per kind of corruption, from the rows of robustness.csv of two runs."""
    names, lines = list(dict.fromkeys(row["run"] for row in rows)), {}
    for row in rows:
        lines.setdefault(row["corruption"], []).append(row)
    shown = []
    for kind, of_kind in lines.items():
        clean, levels = kind == CLEAN, [str(row["level"] or "").removesuffix(".0") for row in of_kind[::2]]
        cells = [
            ", ".join(f"{100 * row['accuracy' if clean else 'retained']:.1f}" for row in of_kind if row["run"] == name)
            for name in names
        ]
        last = "" if clean else mean_and_interval(of_kind[-1], "difference", 100, 1)
        shown.append(
            [f"{kind} (accuracy)" if clean else kind, ", ".join(levels), *(f"{cell} %" for cell in cells), last]
        )
    return markdown_table(["corruption", "level", *names, "difference at the last level"], shown)


# Scores


def describe_scores(results, noise):
    """Select and derive what the model card shows.

    Args:
        results: the contents of test_results.json, from a full test with `--tta`.
        noise: what `classify_noise` in showcase.py returns.

    Returns:
        Plain values. `recall` holds [class, fraction], the lowest first; `confusions` holds the largest counts, as
        [true class, predicted class, images]; `confident` describes the predictions with more than 80 % confidence;
        `largest_gap` is the bin of confidence with the largest difference between accuracy and mean confidence.
    """
    classes, matrix, bins = results["classes"], results["confusion_matrix"], results["calibration"]
    recall = sorted(zip(classes, results["by_class"]["recall"], strict=True), key=lambda pair: pair[1])
    confusions = [
        [classes[true], classes[predicted], count]
        for true, counts in enumerate(matrix)
        for predicted, count in enumerate(counts)
        if true != predicted
    ]
    return {
        "accuracy": results["accuracy"],
        "accuracy_interval": results["accuracy_interval"],
        "flip_accuracy": results["flip"]["accuracy"],
        "weighted_f1": results["weighted"]["f1"],
        "recall": [list(pair) for pair in recall],
        "confusions": sorted(confusions, key=lambda confusion: -confusion[2])[:3],
        "calibration_error": bins["error"],
        "confident": describe_confident(bins),
        "largest_gap": largest_gap(bins),
        "noise": noise,
    }


def describe_confident(bins):
    """The number, mean confidence and accuracy of the predictions in the uppermost bins."""
    images = bins["images"][-CONFIDENT_BINS:]
    count = sum(images)
    described = {"images": count}
    for quantity in ("confidence", "accuracy"):
        values = bins[quantity][-CONFIDENT_BINS:]
        total = sum(number * value for number, value in zip(images, values, strict=True) if number)
        described[quantity] = total / count if count else None
    return described


def largest_gap(bins):
    """The bin with the largest difference: [accuracy minus mean confidence, the bin's lower and upper bound]."""
    width = 1 / len(bins["images"])
    gaps = [
        [accuracy - confidence, number * width, (number + 1) * width]
        for number, (images, accuracy, confidence) in enumerate(
            zip(bins["images"], bins["accuracy"], bins["confidence"], strict=True)
        )
        if images >= FEWEST_IN_BIN
    ]
    return max(gaps, key=lambda gap: abs(gap[0]), default=None)


def networks_table(records):
    """What the networks are and how they were trained, one column per network."""
    return columns_table({run: network_cells(run) for run in records})


def network_cells(run):
    """The cells of one network, {title of the row: text}."""
    saved = checkpoint.load(ROOT / "model" / run)
    config, recipe = saved["model_config"], saved["recipe"]
    name = recipe["run_name"].removesuffix("-seed0")
    return {
        "recipe": f"[`{name}`](../recipes/{name}.txt)",
        "architecture": architecture(config),
        "parameters": f"{count_parameters(build_model(config)):,}",
        "size of `best.pt`": f"{(ROOT / 'model' / run / 'best.pt').stat().st_size / 1e6:.1f} MB",
        "epochs, batch size": f"{recipe['epochs']}, {recipe['batch_size']}",
        "optimizer, label smoothing": f"{recipe['optimizer']}, {recipe['label_smoothing']:g}",
        "augmentation": augmentation(recipe),
    }


def augmentation(recipe):
    """The augmentation of a run, such as "basic, CutMix for 50 % of the images"."""
    mixing = [name for name, alpha in (("Mixup", recipe["mixup"]), ("CutMix", recipe["cutmix"])) if alpha]
    share = f" for {percent(recipe['mix_prob'], 0)} of the images"
    return ", ".join([recipe["augment"], *([" or ".join(mixing) + share] if mixing else [])])


def architecture(config):
    """One line about a network."""
    if config["model"] == "cnn":
        return "CNN, 4 convolutions, 2 linear layers"
    sizes = f"{config['patch_size']}-pixel patches, width {config['embed_dim']}, {config['num_heads']} heads"
    output = {"token": "class token", "avg": "mean of the patches"}[config["global_pool"]]
    return f"ViT, {config['depth']} layers, {sizes}, {output}"


def scores_table(records):
    """The scores of the full tests, one column per network."""
    return columns_table({run: score_cells(of_run["scores"]) for run, of_run in records.items()})


def score_cells(scores):
    """The cells of one network, {title of the row: text}."""
    low, high = scores["accuracy_interval"]
    cells = {
        "accuracy (95 % Wilson interval)": f"{percent(scores['accuracy'])} ({100 * low:.2f} to {100 * high:.2f})",
        "accuracy with the mirror image": percent(scores["flip_accuracy"]),
        "weighted F1": percent(scores["weighted_f1"]),
    }
    places = {"lowest": 0, "second lowest": 1, "third lowest": 2, "highest": -1}
    for place, index in places.items():
        name, recall = scores["recall"][index]
        cells[f"{place} recall"] = f"{name}, {percent(recall, 1)}"
    for place, (true, predicted, images) in zip(("largest", "second", "third"), scores["confusions"], strict=True):
        cells[f"{place} confusion"] = f"{true} predicted as {predicted}, {images}"
    gap, start, end = scores["largest_gap"]
    confident, noise = scores["confident"], scores["noise"]
    both = (percent(confident[quantity], 1) for quantity in ("confidence", "accuracy") if confident["images"])
    return cells | {
        "expected calibration error (15 bins)": percent(scores["calibration_error"]),
        "accuracy minus confidence, largest gap": (
            f"{signed(100 * gap)} points, from {100 * start:.0f} to {100 * end:.0f} % confidence"
        ),
        "predictions with over 80 % confidence": f"{confident['images']:,}",
        "their mean confidence, their accuracy": ", ".join(both),
        "most frequent class for 1,000 images of noise": f"{noise['class']}, {noise['images']}",
        "mean confidence on these images": percent(noise["confidence"], 1),
    }


def columns_table(columns):
    """A table with one column per network from {network: {title of the row: cell}}."""
    titles = next(iter(columns.values()))
    rows = [[title, *(cells[title] for cells in columns.values())] for title in titles]
    return markdown_table(["", *(f"`{run}`" for run in columns)], rows)


# Explanations


def live_table(records):
    """The speed and accuracy of the live page, one row per network."""
    columns = (
        "network",
        "file",
        "first answer",
        "new probabilities",
        "with all explanations",
        "accuracy in float32",
        "in 8 bits",
    )
    rows = []
    for run, of_run in records.items():
        live = of_run["live"]
        times = (f"{live[key][0]:.0f} ms ({live[key][1]:.0f} ms)" for key in ("drawn_ms", "explained_ms"))
        file, first = f"{live['megabytes']:.1f} MB", f"{live['first_seconds']:.1f} s"
        rows.append([title_of(run), file, first, *times, *(percent(value) for value in live["accuracies"])])
    return markdown_table(columns, rows)


def title_of(run):
    """A short description of a network, such as "CNN" or "ViT, 12 layers"."""
    config = checkpoint.load(ROOT / "model" / run)["model_config"]
    return "CNN" if config["model"] == "cnn" else f"ViT, {config['depth']} layers"


def areas_table(measured):
    """Areas in %, and in brackets the intervals of the gains, one row per method."""
    rows, kinds = [], measured_kinds(measured)
    for method in dict.fromkeys(row["method"] for row in measured["areas"]):
        cells = []
        for row in rows_of(measured, method, kinds):
            gain = "" if method == row["reference"] else f" ({interval(row, 'gain', 100, 1)})"
            cells.append(f"{100 * row['area']:.1f}{gain}")
        rows.append([BASELINE_LABELS.get(method, method), *cells])
    return markdown_table(["", *area_columns(kinds)], rows)


def methods_table(measured):
    """Class sensitivity and randomization, one row per method."""
    rows = []
    for row in measured["methods"]:
        sensitivity, randomized = ("" if row[key] is None else row for key in ("class_sensitivity", "randomized"))
        rows.append(
            [
                row["method"],
                sensitivity and mean_and_interval(row, "class_sensitivity", 100, 1),
                randomized and mean_and_interval(row, "randomized", 1, 2),
            ]
        )
    return markdown_table(["", "class sensitivity (points)", "correlation after randomizing all weights"], rows)


def gains_table(records):
    """The gains of the best fast method, one row per network."""
    rows, kinds = [], measured_kinds(*(of_run["faithfulness"] for of_run in records.values()))
    for run, of_run in records.items():
        measured = of_run["faithfulness"]
        best = BEST_METHODS[run.split("-", maxsplit=1)[0]]
        gains = [mean_and_interval(row, "gain", 100, 1) for row in rows_of(measured, best, kinds)]
        reference = measured["areas"][0]["reference"]
        sensitivity = {row["method"]: row["class_sensitivity"] for row in measured["methods"]}
        cell = f"{100 * sensitivity[best]:.1f} ({100 * sensitivity[reference]:.1f})"
        rows.append([title_of(run), best, *gains, cell])
    last = "class sensitivity, points (of gradient rollout or Grad-CAM)"
    return markdown_table(["network", "method", *area_columns(kinds), last], rows)


def measured_kinds(*records):
    """The kinds of areas that all records hold. Older ones have no SRG."""
    held = [{row["kind"] for row in measured["areas"]} for measured in records]
    return [kind for kind in AREAS if all(kind in kinds for kinds in held)]


def area_columns(kinds):
    return [f"{kind}, {fill}" for fill in FILLS for kind in kinds]


def rows_of(measured, method, kinds):
    """The rows of one method, in the order of `area_columns`."""
    rows = {(row["fill"], row["kind"]): row for row in measured["areas"] if row["method"] == method}
    return [rows[fill, kind] for fill in FILLS for kind in kinds]


# Numbers


def signed(value, digits=1):
    """A number with its sign; the minus is a real one."""
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(row, key, scale, digits):
    return " to ".join(signed(scale * row[f"{key}_{end}"], digits) for end in ("low", "high"))


def mean_and_interval(row, key, scale, digits):
    return f"{signed(scale * row[key], digits)} ({interval(row, key, scale, digits)})"
