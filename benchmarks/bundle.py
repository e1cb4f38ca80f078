"""Carry the runs of a borrowed machine home: pack what must be kept into small files, and put it in place elsewhere.

    pack(folder, latest, results, model_path, output_path)    # on the borrowed machine, after every run
    results = unpack(folder, model_path, output_path)         # at home

The folder holds records.zip (results.csv, and the flags, metrics and curves of every run) and the weights of the runs
with seed 0 in half precision, in parts that are small enough for most ways to copy files.
"""

import tempfile
import zipfile
from pathlib import Path

from tables import TABLE_RECIPES, format_rows, parse_rows
from vit_cifar10.runs import checkpoint
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_write

RECORDS = "records.zip"
RUN_FILES = ("config.json", "metrics.csv", "curves.png")
PART_BYTES = 15 * 2**20
LARGEST_RECORD = 50_000_000  # bytes of one file in records.zip


def pack(folder, latest, results, model_path, output_path):
    """Replace records.zip by one with these results, and write the weights of the latest of them if its seed is 0.

    Raises:
        UserError: a file cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if latest.seed == 0:
        pack_weights(folder, latest.run_name, model_path)
    with atomic_write(folder / RECORDS) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.csv", format_rows(results))
        for result in results:
            for name in RUN_FILES:
                archive.write(Path(output_path) / result.run_name / name, f"{result.run_name}/{name}")


def pack_weights(folder, run_name, model_path):
    """Write a run's best.pt in half precision, as RUN.pt.0, RUN.pt.1, and so on."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "half.pt"
        checkpoint.save(path, in_half_precision(checkpoint.load(Path(model_path) / run_name)))
        content = path.read_bytes()
    for part, start in enumerate(range(0, len(content), PART_BYTES)):
        with atomic_write(folder / f"{run_name}.pt.{part}") as partial:
            partial.write_bytes(content[start : start + PART_BYTES])
    (folder / f"{run_name}.pt.{part + 1}").unlink(missing_ok=True)  # of larger weights, written before


def in_half_precision(state):
    """A checkpoint whose weights are float16; integers stay."""
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state["weights"].items()}
    return {**state, "weights": halves}


def unpack(folder, model_path, output_path):
    """Put the runs of a packed folder in place, and return their results.

    Nothing is written if a file is damaged, or if there is another run of the same name.

    Raises:
        UserError: the folder holds no packed runs, they are damaged or incomplete, or they would replace other runs.
    """
    files = {}
    try:
        with zipfile.ZipFile(folder / RECORDS) as archive:
            results = parse_rows(read(archive, "results.csv").decode())
            for result in results:
                if result.recipe not in TABLE_RECIPES:
                    raise ValueError(f"there is no recipe {result.recipe}")
                for name in RUN_FILES:
                    path = Path(output_path) / result.run_name / name
                    files[path] = read(archive, f"{result.run_name}/{name}")
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {RECORDS}; give the folder that --out has written") from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{folder / RECORDS} is damaged ({error}); copy it again") from error
    for result in results:
        if result.seed == 0:
            files[Path(model_path) / result.run_name / checkpoint.BEST] = join_weights(folder, result.run_name)
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise UserError(f"{path.parent} belongs to another run of this name; move it away, or remove it")
    for path, content in files.items():
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    return results


def read(archive, name):
    """One file of an archive. Raises `ValueError` if it is larger than any record."""
    if archive.getinfo(name).file_size > LARGEST_RECORD:
        raise ValueError(f"{name} is too large")
    return archive.read(name)


def join_weights(folder, run_name):
    """The contents of a run's best.pt, joined from its parts. Raises `UserError` if they are damaged or incomplete."""
    parts = []
    while (path := folder / f"{run_name}.pt.{len(parts)}").exists():
        parts.append(path.read_bytes())
    content = b"".join(parts)
    with tempfile.TemporaryDirectory() as temporary:
        joined = Path(temporary) / "joined.pt"
        joined.write_bytes(content)
        try:
            checkpoint.load(joined)
        except UserError as error:
            raise UserError(f"{folder}/{run_name}.pt.* are damaged or incomplete; copy all parts again") from error
    return content
