"""Run recipes, and write down what came out: a row a run in results.csv, and the tables made from it.

    python benchmarks/reproduce.py                                  # every recipe, with as many seeds as it deserves
    python benchmarks/reproduce.py cnn-12ep vit-fast --seeds 0 1    # some of them
    python benchmarks/reproduce.py vit-layer6 --ship                # and put the weights where git keeps them
    python benchmarks/reproduce.py cnn-12ep --try                   # an epoch on few images, which writes nothing down
    python benchmarks/reproduce.py --tables                         # only make the tables anew

Each run is `python train.py @recipes/NAME.txt --seed SEED` as a user would start it. The table in the README and the
`# measured` lines at the head of the recipes are made from results.csv, and a test holds them together.
"""

import csv
import dataclasses
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


import train
from vit_cifar10.data import dataset
from vit_cifar10.evaluation.full_test import load_test_images
from vit_cifar10.evaluation.metrics import predict, scores
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.writer import git_commit
from vit_cifar10.utils.cli import ArgumentParser, command, number
from vit_cifar10.utils.device import pick_device
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import replacing

RECIPES = ROOT / "recipes"
RESULTS = ROOT / "benchmarks" / "results.csv"
README = ROOT / "README.md"
ORDER = (  # of the table: the quick ones, then those of earlier projects
    "vit-fast",
    "vit-best",
    "cnn-fast",
    "deit-ti",
    "vit-layer12",
    "vit-layer6",
    "vit-256x8",
    "vit-patch8-12ep",
    "cnn-12ep",
    "cnn-small",
    "vit-laptop",
    "vit-laptop-layer6",
)
THREE_SEEDS = ("vit-fast", "vit-best", "cnn-fast")
SHIPPED = {  # the runs whose weights are in git, and the recipes they can come from, the best first
    "vit-layer6-32-cifar10": ("vit-layer6", "vit-laptop-layer6"),
    "vit-layer12-32-cifar10": ("deit-ti", "vit-laptop"),
    "cnn-32-cifar10": ("cnn-fast", "cnn-12ep"),
    "vit-best-32-cifar10": ("vit-best",),
}
PATHS = ("data_path", "model_path", "output_path", "resume")
TRY = shlex.split("--epochs 1 --warmup_epochs 0 --num_train_images 1000 --num_test_images 500 --num_workers 0")


@dataclasses.dataclass
class Result:
    """A row of results.csv: one run of a recipe. Accuracies are shares of 1, times are seconds, memory is 10^9 bytes.

    `train_seconds` are those of the updates, without the first step, which compiles; `total_seconds` are those of all
    epochs, with compiling and testing. `kept` is how the weights were chosen.
    """

    recipe: str
    seed: int
    test_accuracy: float
    val_accuracy: float | None
    kept: str
    epochs: int
    parameters: int
    train_seconds: float
    total_seconds: float
    gpu_memory_gb: float | None
    device: str
    precision: str
    torch: str
    commit: str
    date: str


def read_results():
    """The rows of results.csv, in order."""
    if not RESULTS.exists():
        return []
    with open(RESULTS, newline="") as file:
        return [parse_row(row) for row in csv.DictReader(file)]


def parse_row(row):
    """A `Result` from a row of strings."""
    kinds = {"int": int, "float": float, "str": str}
    values = {}
    for field in dataclasses.fields(Result):
        kind, text = str(getattr(field.type, "__name__", field.type)), row[field.name]
        values[field.name] = None if not text and "None" in kind else kinds[kind.split(" ", maxsplit=1)[0]](text)
    return Result(**values)


def write_results(results):
    with replacing(RESULTS) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result) for result in results)


# Running


def run(recipe, seed, commit, args):
    """Train a recipe by the front door; returns its `Result`. Its files stay in model/ and output/."""
    name = f"{recipe}-try" if args.try_out else f"{recipe}-seed{seed}"
    flags = [f"@{RECIPES / recipe}.txt", "--seed", str(seed), "--run_name", name, "--overwrite"]
    flags += ["--data_path", args.data_path, "--device", args.device, "--dataset", args.dataset]
    flags += ["--model_path", args.model_path, "--output_path", args.output_path]
    finished = subprocess.run([sys.executable, ROOT / "train.py", *flags, *(TRY if args.try_out else ())], check=False)
    if finished.returncode:
        raise UserError(f"{recipe} ended with status {finished.returncode}; its message stands above")
    return collect(recipe, seed, Path(args.model_path) / name, Path(args.output_path) / name, commit)


def collect(recipe, seed, model_folder, output_folder, commit):
    """The `Result` of a finished run, from its own records."""
    best = checkpoint.load(model_folder)
    rows = checkpoint.load(model_folder, "last.pt")["training"]["rows"]
    config = json.loads((output_folder / "config.json").read_text())
    val_images = config["val_images"]
    return Result(
        recipe,
        seed,
        test_accuracy=round(best["metrics"]["test_accuracy"], 4),
        val_accuracy=best["metrics"]["val_accuracy"],
        kept=f"best of {val_images} validation images" if val_images else "last epoch",
        epochs=len(rows),
        parameters=config["parameters"],
        train_seconds=round(sum(row["train_seconds"] for row in rows), 1),
        total_seconds=round(sum(row["seconds"] for row in rows), 1),
        gpu_memory_gb=rows[-1]["gpu_memory_gb"] and round(rows[-1]["gpu_memory_gb"], 2),
        device=cpu_label(config["threads"]) if config["device"] == "cpu" else config["device"],
        precision=config["precision"],
        torch=config["versions"]["torch"].split("+")[0],
        commit=commit,
        date=date.today().isoformat(),
    )


def cpu_label(threads):
    """A processor as the table names it."""
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def shipped_name(recipe, results):
    """The run in git that a recipe's weights belong to, or None, as where a better recipe's are there already."""
    for name, recipes in SHIPPED.items():
        if recipe in recipes:
            better = recipes[: recipes.index(recipe)]
            return None if any(result.recipe in better for result in results) else name
    return None


def ship(recipe, name, args):
    """Put the weights of a recipe's first seed, in half precision, and its figures where git keeps them.

    What is shipped is what is measured: the accuracy inside is that of the halved weights. Paths of this machine stay
    behind.
    """
    run_name = f"{recipe}-seed0"
    state = checkpoint.load(Path(args.model_path) / run_name)
    state["weights"] = {
        key: value.half() if value.is_floating_point() else value for key, value in state["weights"].items()
    }
    folder = ROOT / "model" / name
    checkpoint.save(folder / "best.pt", state)
    device = pick_device(args.device)
    network = checkpoint.load_network(folder, device)
    test = network.normalized_for(load_test_images(network, args.data_path))
    measured = scores(predict(network.model, test), test.labels)
    state["metrics"] |= {f"test_{quantity}": measured[quantity] for quantity in ("loss", "accuracy")}
    for flag in PATHS:
        state["recipe"][flag] = train.build_parser().get_default(flag)
    checkpoint.save(folder / "best.pt", state)
    figures = ROOT / "output" / name
    figures.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "metrics.csv", "curves.png"):
        shutil.copy(Path(args.output_path) / run_name / file, figures)
    config = json.loads((figures / "config.json").read_text())
    config |= {"flags": state["recipe"], "machine": config["machine"].split("-")[0]}
    (figures / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = (folder / "best.pt").stat().st_size / 1e6
    print(f"{folder}: test accuracy {100 * measured['accuracy']:.2f} %, {size:.1f} MB")


# Tables


def head(recipe):
    """What the comments at a recipe's head say: {"title": ..., "earlier projects": ..., "measured": ...}."""
    lines = re.findall(r"^# (.*)$", (RECIPES / f"{recipe}.txt").read_text(), re.MULTILINE)
    return {"title": lines[0], **dict(line.split(": ", 1) for line in lines[1:] if ": " in line)}


def summaries(recipe, results):
    """A recipe's runs, those on one device together: [{column: text}], the newest device last."""
    ours = [result for result in results if result.recipe == recipe]
    rows = []
    for device in dict.fromkeys(result.device for result in ours):
        runs = [result for result in ours if result.device == device]
        accuracies = [100 * result.test_accuracy for result in runs]
        deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
        rows.append(
            {
                "accuracy": f"{statistics.mean(accuracies):.2f}{deviation} %",
                "seeds": ", ".join(str(result.seed) for result in runs),
                "time": duration(statistics.mean(result.train_seconds for result in runs)),
                "device": device,
                "precision": runs[-1].precision,
                "torch": runs[-1].torch,
                "kept": runs[-1].kept,
                "memory": "" if runs[-1].gpu_memory_gb is None else f", {runs[-1].gpu_memory_gb:g} GB",
                "epochs": str(runs[-1].epochs),
                "parameters": f"{runs[-1].parameters / 1e6:.2f} M",
            }
        )
    return rows


def duration(seconds):
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def measured_lines(recipe, results):
    """The `# measured` lines of a recipe."""
    rows = summaries(recipe, results)
    if not rows:
        return "# measured: not yet"
    return "\n".join(
        f"# measured: {row['accuracy']} on the test images (seed {row['seeds']}; {row['kept']}),"
        f" {row['time']} of training{row['memory']}, {row['device']}, {row['precision']}, torch {row['torch']}"
        for row in rows
    )


def table(results):
    """The README's table of results."""
    lines = [
        "| recipe | parameters | epochs | test accuracy | training | on | earlier projects |",
        "|---|---|---|---|---|---|---|",
    ]
    empty = {"parameters": "", "epochs": "", "accuracy": "", "time": "", "device": "", "seeds": ""}
    for recipe in ORDER:
        theirs = head(recipe).get("earlier projects", "")
        for row in summaries(recipe, results) or [empty]:
            cells = (recipe, row["parameters"], row["epochs"], row["accuracy"], row["time"], row["device"], theirs)
            lines.append("| " + " | ".join(f"`{cell}`" if cell == recipe else cell for cell in cells) + " |")
    return re.sub(r" +\|", " |", "\n".join(lines))


def write_tables(results):
    """The README's table and the recipes' heads anew."""
    for recipe in ORDER:
        path = RECIPES / f"{recipe}.txt"
        before, _, after = re.split(r"((?:^# measured: .*\n)+)", path.read_text(), flags=re.MULTILINE)
        path.write_text(f"{before}{measured_lines(recipe, results)}\n{after}")
    text = README.read_text()
    marked = r"(<!-- results -->\n).*?(<!-- end of results -->)"
    README.write_text(re.sub(marked, lambda found: f"{found[1]}{table(results)}\n{found[2]}", text, flags=re.DOTALL))


def build_parser():
    parser = ArgumentParser(prog="reproduce.py", description="Run recipes and write down what came out.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names under recipes/; default: all of them")
    parser.add_argument(
        "--seeds", nargs="+", type=number(int, at_least=0), help="default: 0, and 1 and 2 for the fast and best ones"
    )
    parser.add_argument(
        "--ship", action="store_true", help="put the weights of seed 0, in half precision, where git keeps them"
    )
    parser.add_argument(
        "--try", dest="try_out", action="store_true", help="train one epoch on few images and write nothing down"
    )
    parser.add_argument("--tables", action="store_true", help="only make the tables anew")
    parser.add_argument("--dataset", choices=dataset.DATASETS, default="cifar10", help="another one only with --try")
    parser.add_argument("--data_path", default=str(ROOT / "data"), help="where the data set is")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to train")
    parser.add_argument("--model_path", default=str(ROOT / "model"), help="folder for the runs' checkpoints")
    parser.add_argument("--output_path", default=str(ROOT / "output"), help="folder for the runs' figures")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.tables:
        write_tables(read_results())
        return
    recipes = args.recipes or list(ORDER)
    unknown = [recipe for recipe in recipes if recipe not in ORDER]
    if unknown:
        raise UserError(f"there is no recipe {unknown[0]}; the recipes are {', '.join(ORDER)}")
    if args.dataset != "cifar10" and not args.try_out:
        raise UserError("--dataset goes with --try: the results are CIFAR-10's")
    if args.ship and args.seeds and 0 not in args.seeds:
        raise UserError("--ship takes the weights of seed 0; add 0 to --seeds")
    commit = git_commit() or "unknown"  # before results.csv changes
    for recipe in recipes:
        seeds = args.seeds or ([0, 1, 2] if recipe in THREE_SEEDS and not args.try_out else [0])
        for seed in seeds:
            result = run(recipe, seed, commit, args)
            print(result)
            if not args.try_out:
                others = [
                    row
                    for row in read_results()
                    if (row.recipe, row.seed, row.device) != (result.recipe, result.seed, result.device)
                ]
                write_results([*others, result])
                write_tables(read_results())
        name = shipped_name(recipe, read_results())
        if args.ship and name and not args.try_out:
            ship(recipe, name, args)


if __name__ == "__main__":
    main()
