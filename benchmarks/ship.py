"""Copy a run to the folders that git tracks: its weights in half precision, its flags, metrics and curves.

    python benchmarks/ship.py cnn-small-seed0 cnn-32-cifar10 --data_path data

The test loss and accuracy in the new checkpoint are measured with the half-precision weights. The paths of this machine
are replaced by the flags' defaults. Then run showcase.py, which makes everything again that shows these weights.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tables import replace_text
from vit_cifar10.evaluation.metrics import predict, scores
from vit_cifar10.flags.train import build_parser
from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import find_run
from vit_cifar10.utils.cli import ArgumentParser, command

PATH_FLAGS = ("data_path", "model_path", "output_path", "resume")


def ship(run, name, data_path):
    """Copy a run to model/`name` and output/`name`. Return the test accuracy of the half-precision weights."""
    folder, records = ROOT / "model" / name, ROOT / "output" / name
    state = checkpoint.load(run.model_folder)
    weights = state["weights"].items()
    state["weights"] = {key: value.half() if value.is_floating_point() else value for key, value in weights}
    state["recipe"] |= {flag: build_parser().get_default(flag) for flag in PATH_FLAGS}
    checkpoint.save(folder / "best.pt", state)
    network = checkpoint.load_network(folder, torch.device("cpu"))
    test = network.normalized_for(network.load_test_images(data_path))
    measured = scores(predict(network.model, test), test.labels)
    state["metrics"] |= {f"test_{quantity}": measured[quantity] for quantity in ("loss", "accuracy")}
    checkpoint.save(folder / "best.pt", state)
    records.mkdir(parents=True, exist_ok=True)
    for file in (run.metrics_path, run.curves_path):
        shutil.copy(file, records)
    config = run.read_config()
    config |= {"flags": state["recipe"], "machine": config["machine"].split("-")[0]}
    replace_text(records / "config.json", json.dumps(config, indent=2) + "\n")
    return measured["accuracy"]


@command
def main(argv=None):
    parser = ArgumentParser(prog="ship.py", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", metavar="RUN", help="a run's name or folder")
    parser.add_argument("name", metavar="NAME", help="name of the folders in git")
    parser.add_argument("--data_path", default=str(ROOT / "data"), help="folder of the data set")
    args = parser.parse_args(argv)
    run = find_run(args.run, ROOT / "model", ROOT / "output")
    accuracy = ship(run, args.name, args.data_path)
    print(f"model/{args.name}: test accuracy {100 * accuracy:.2f} %")


if __name__ == "__main__":
    main()
