"""Reads a .pt2 of torch.export.save in a process that may know nothing of the model's own libraries.

Comes in: the file; what the user named with `--import` was imported before. Goes out: an ExportedProgram. Guaranteed: containers that only group
inputs and results (transformers' outputs and caches) need no library; ops that nobody registered here are listed all at
once, with count, file and line, and what to do. Tried with torch 2.13.0, whose file format and words it reads.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ...lowering.registry import near_misses
from ...passes.contract import Missing, cannot_be_lowered
from ...passes.program import source_in
from ...runtime.core.errors import FxhloError
from .. import console

CONTAINER = re.compile(r"Deserializing (\S+) in pytree is not registered")
UNREGISTERED = "to an operator"


def load(path: Path) -> ExportedProgram:
    """The exported program in `path`. Raises FxhloError."""
    while True:
        problem = None
        with _said() as causes:
            try:
                return torch.export.load(path)
            except Exception as raised:
                problem = causes[0] if causes else raised
        container = CONTAINER.search(str(problem))
        if container is None:
            break
        register_container(container[1])
    if UNREGISTERED in str(problem) and (missing := unregistered(path)):
        raise cannot_be_lowered(
            missing,
            next_step="name the module that registers them, as --import my_ops or --import my_ops.py; then this lists all that has no rule",
        ) from problem
    raise FxhloError(
        f"the exported program cannot be read: {console.first_line(problem).split('. ')[0]}",
        where=path,
        next_step=f"write it again with torch.export.save of torch {torch.__version__}",
    ) from problem


@contextmanager
def _said() -> Iterator[list[BaseException]]:
    """Collects the errors that torch.export.load logs and then hides behind another one."""
    causes: list[BaseException] = []

    def note(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            causes.append(record.exc_info[1])
            return False
        return True

    logger = logging.getLogger("torch.export")
    logger.addFilter(note)
    try:
        yield causes
    finally:
        logger.removeFilter(note)


def register_container(name: str) -> None:
    """Registers a placeholder class for a container of inputs or results that this process does not know; it keeps its children."""

    class Container:
        def __init__(self, children: list[object], context: object) -> None:
            self.children, self.context = children, context

    pytree.register_pytree_node(
        Container,
        lambda one: (one.children, one.context),
        lambda children, context: Container(list(children), context),
        serialized_type_name=name,
    )


def unregistered(path: Path) -> tuple[Missing, ...]:
    """The ops in the file that are not registered in this process, read from the archive's JSON."""
    found: dict[str, list[str | None]] = {}
    for node in _nodes(_graph(path)):
        name = node["target"].removeprefix("torch.ops.")
        if name != node["target"] and not _registered(name):
            found.setdefault(name, []).append(source_in(node["metadata"].get("stack_trace")))
    return tuple(
        Missing(name, len(places), places[0], tuple(near_misses(name)), "the op is not registered in this process")
        for name, places in found.items()
    )


def _graph(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("models/model.json"):
                return json.loads(archive.read(name))["graph_module"]
    return {}


def _nodes(value: object) -> Iterator[dict[str, Any]]:
    """The nodes of a serialized graph and of the regions of its control flow, at any depth."""
    if isinstance(value, dict):
        if isinstance(value.get("target"), str) and "metadata" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _nodes(one)


def _registered(name: str) -> bool:
    """Whether `namespace.op.overload` (or higher_order.op) is an op of this process."""
    op: Any = torch.ops
    try:
        for part in name.split("."):
            op = getattr(op, part)
    except (AttributeError, RuntimeError):
        return False
    return True
