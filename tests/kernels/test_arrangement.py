"""Every kernel's folder has the one arrangement of docs/add_a_kernel.md: which files there are, and what they import."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fxhlo.kernels
from fxhlo.kernels.catalog import MODULES, kernels

FOLDER = Path(fxhlo.kernels.__file__).parent
NEEDED = {"__init__", "reference"}
TARGETS = {"xla": "any", "cpu": "cpu", "tpu": "tpu", "cuda": "cuda"}
"""File -> the target of the implementation in it."""
OPTIONAL = {"tuning", "cases", "partition"}


def files(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.name != "__pycache__"}


def functions(file: Path) -> set[str]:
    """The names that a file has at its top: what it defines, and what it imports."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def test_every_folder_is_in_the_catalog() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(MODULES)
    assert {path.stem for path in FOLDER.glob("*.py")} == {"__init__", "catalog", "partition", "requests", "spec"}


@pytest.mark.parametrize("module", MODULES)
def test_a_folder_has_the_files_of_the_arrangement(module: str) -> None:
    found = files(FOLDER / module)
    assert found >= NEEDED
    for extra in found - NEEDED - OPTIONAL - set(TARGETS):
        whole, _, part = extra.partition("_")
        assert whole in {*TARGETS, "partition"} and whole in found and part, f"{module}/{extra}.py: part of which file?"


@pytest.mark.parametrize("module", MODULES)
def test_each_implementation_stands_in_the_file_of_its_target(module: str) -> None:
    (kernel,) = (one for one in kernels().values() if one.reference.__module__ == f"fxhlo.kernels.{module}.reference")
    folder = FOLDER / module
    there = {TARGETS[file] for file in files(folder) & set(TARGETS)}
    assert there == {one.target for one in kernel.implementations}
    for file in files(folder) & set(TARGETS):
        assert {"lower", "supports"} <= functions(folder / f"{file}.py"), f"{module}/{file}.py"
    assert {"fake", kernel.name} <= functions(folder / "reference.py")
    assert ("cases" in files(folder)) == bool(kernel.cases())


@pytest.mark.parametrize("module", MODULES)
def test_no_file_of_a_folder_imports_in_a_circle(module: str) -> None:
    folder, graph = FOLDER / module, {}
    for file in sorted(files(folder)):
        nodes = [
            node
            for node in ast.walk(ast.parse((folder / f"{file}.py").read_text()))
            if isinstance(node, ast.ImportFrom)
        ]
        graph[file] = {node.module for node in nodes if node.level == 1 and node.module} | {
            alias.name for node in nodes if node.level == 1 and not node.module for alias in node.names
        }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order[-1] == "__init__" or "__init__" in order
    for file, imported in graph.items():
        if file in ("reference", "tuning", "cases"):
            assert imported <= {"reference", "tuning", "cases"}, f"{module}/{file}.py imports an implementation"


@pytest.mark.parametrize("module", MODULES)
def test_the_catalog_imports_no_implementation(module: str) -> None:
    """jax and Pallas take two seconds to import: an implementation's file is imported when it is asked."""
    imported = {
        alias.name if not node.module else node.module
        for node in ast.walk(ast.parse((FOLDER / module / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported <= {"reference", "cases", "partition"}
