"""Tests of the structure: imports only point down and are never circular, and each part has few dependencies."""

import ast
import re
import sys
from graphlib import TopologicalSorter

import pytest
from helpers import ROOT

pytestmark = pytest.mark.quick

COMMANDS = ("train", "test", "compare", "convert")
LEVELS = {
    **dict.fromkeys((*COMMANDS, "hubconf"), 5),
    **{"training": 4, "evaluation": 3, "formats": 3, "explain": 2, "runs": 2, "flags": 2},
    **{"plots": 1, "data": 1, "utils": 0, "model": 0},
}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = [*ROOT.glob("*.py"), *(path for path in ROOT.glob("vit_cifar10/*/*.py") if path.name != "__init__.py")]
TREES = {module_name(path): ast.parse(path.read_text()) for path in FILES}


def imports(name):
    """The modules that a module imports, including those that it imports inside functions."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & TREES.keys() or {node.module}
    return found


def part(name):
    """The folder of a module, or the name of a top-level module: "vit_cifar10.data.images" -> "data"."""
    return name.split(".")[1] if name.startswith("vit_cifar10.") else name


def packages(name):
    """The top-level packages that a module imports, without the standard library."""
    return {other.split(".")[0] for other in imports(name)} - sys.stdlib_module_names


def test_all_modules_were_found():
    assert {part(name) for name in TREES} == set(LEVELS)
    assert imports("train") >= {"model", "vit_cifar10.data.dataset", "vit_cifar10.training.trainer"}


def test_imports_only_point_down():
    for name in TREES:
        for other in imports(name) & TREES.keys():
            if part(other) != part(name):
                assert LEVELS[part(other)] < LEVELS[part(name)], f"{name} imports {other}"


def test_there_are_no_circular_imports():
    order = TopologicalSorter({name: imports(name) & TREES.keys() for name in TREES}).static_order()
    assert set(order) == set(TREES)


def test_flags_need_only_the_standard_library():
    reached = [name for name in TREES if part(name) == "flags"]
    assert len(reached) == len(COMMANDS)
    for name in reached:  # grows in the loop
        reached += (imports(name) & TREES.keys()) - set(reached)
        assert packages(name) <= {"vit_cifar10"}, name


def test_torchvision_is_imported_only_inside_functions():
    for name, tree in TREES.items():
        at_the_top = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(re.match(r"(import|from) torchvision", line) for line in at_the_top), name


def test_model_py_imports_only_torch():
    assert packages("model") == {"torch"}


def test_plots_depend_neither_on_torch_nor_on_networks():
    for name in TREES:
        if part(name) == "plots":
            assert packages(name) <= {"numpy", "matplotlib", "PIL", "imageio", "vit_cifar10"}, name


def test_only_model_py_checks_the_type_of_a_network():
    benchmarks = {path.stem: ast.parse(path.read_text()) for path in ROOT.glob("benchmarks/*.py")}
    for name, tree in {**TREES, **benchmarks}.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        calls = [ast.unparse(call) for call in calls if ast.unparse(call.func) in ("isinstance", "issubclass", "type")]
        checks = [call for call in calls if "VisionTransformer" in call or "SimpleCNN" in call]
        assert name == "model" or not checks, f"{name}: {checks}"
