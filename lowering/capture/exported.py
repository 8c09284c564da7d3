"""Turns an ExportedProgram into a Program: decomposes it to ops that have rules, then adds names, dimensions and guards."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ...kernels.catalog import register_torch_ops
from ...passes.contract import SILENT, is_symbolic
from ...passes.fx.random_key import DISTRIBUTIONS
from ...passes.program import Argument, Program, Result, lazy_module
from ...passes.torch_private import ALIASED_MUTATION, CONSTANT_MUTATION, OpOverload, is_mutable
from ...runtime.core.structure import Structure
from ..decompositions.table import decompositions
from ..errors import CaptureError
from ..registry import find_rule, overload_name
from .decomposable import decomposable
from .program import check_layout, dims_of_exported, erase_assertions, erase_tokens, unique_names, without_none
from .results import names_in, renumbered, structure_of
from .sizes import Sizes, sizes_stay_symbolic
from .tracing import first_lines, our_decompositions

KINDS = {
    InputKind.PARAMETER: "weight",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def from_exported(exported: ExportedProgram, sizes: Sizes | None = None) -> Program:
    """Decomposes an ExportedProgram to ops that have rules and makes the Program of it.

    sizes: the user's names for the symbolic dimensions of each input, and how they were traced.
    Raises CaptureError, also where the decomposition specializes a symbolic size to a number.
    """
    register_torch_ops()
    sizes = sizes or Sizes()
    given = exported
    with sizes_stay_symbolic(exported, sizes):
        exported = _decomposed(exported)
    module = exported.graph_module
    if exported is not given:  # the user's own graph is never edited: passes remove dead code from their copies
        erase_tokens(module.graph)
        erase_assertions(module.graph)
        module = lazy_module(module, module.graph)
    inputs = [spec for spec in exported.graph_signature.input_specs if spec.kind is not InputKind.TOKEN]
    outputs = [spec for spec in exported.graph_signature.output_specs if spec.kind is not OutputKind.TOKEN]
    placeholders = {node.name: node for node in module.graph.nodes if node.op == "placeholder"}
    arguments, tensors = [], {}
    owned = {spec.target for spec in inputs if spec.target is not None}
    for spec in inputs:
        if spec.kind not in KINDS:
            raise CaptureError(
                f"the exported program has an input of kind {spec.kind.name} ({spec.arg.name})",
                next_step="export without custom objects",
            )
        name = spec.target if spec.target is not None else _apart(spec.arg.name, owned)
        check_layout(name, placeholders[spec.arg.name].meta.get("val"))
        arguments.append(Argument(name, KINDS[spec.kind]))  # type: ignore[arg-type]
        if spec.target is not None:
            tensors[name] = tensor_of(exported, spec)
    results = []
    names = {spec.arg.name: argument.name for spec, argument in zip(inputs, arguments, strict=True)}
    for index, spec in enumerate(outputs):
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            results.append(Result(f"{spec.target}.updated", updates=spec.target))
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            results.append(Result(f"{spec.target}.updated", updates=names[spec.target]))
        else:
            results.append(Result(getattr(spec.arg, "name", None) or f"output_{index}"))
    structure = _structure(given, [index for index, result in enumerate(results) if result.updates is None])
    for index, name in names_in(structure).items() if structure else ():
        results[index] = Result(name)
    results = unique_names(results)
    dims, guards = dims_of_exported(exported, sizes)
    source = given.graph_module if dims else None
    program = Program(
        module, tuple(arguments), tuple(results), dims, guards, tensors, structure=structure, source=source
    )
    program = without_none(program)
    program.check()
    return program


def _apart(name: str, owned: set[str]) -> str:
    """An input's name, distinct from those of weights and buffers: forward(self, weight) of a module that has a weight."""
    while name in owned:
        name += "_input"
    return name


def _structure(exported: ExportedProgram, own: list[int]) -> Structure | None:
    """How the module's own results nest. own: their places among all results, in order."""
    spec = exported.call_spec.out_spec
    if spec is None or spec.num_leaves != len(own):
        return None
    return renumbered(structure_of(spec), dict(enumerate(own)))


def _decomposed(exported: ExportedProgram) -> ExportedProgram:
    if _has_rules_only(exported):
        return exported
    exported = decomposable(exported)
    try:
        with our_decompositions():
            return exported.run_decompositions(decompositions())
    except Exception as problem:
        hint = "the program's decomposition failed inside torch: exported.run_decompositions() shows the whole story"
        if CONSTANT_MUTATION.is_in(problem):
            hint = "a tensor that is a plain attribute of the module is changed in place: register it, self.register_buffer(name, tensor)"
        if ALIASED_MUTATION.is_in(problem):
            hint = "a tensor that the model changes in place is a part of another one, or passed twice: take the part in forward, pass it once"
        raise CaptureError(
            f"torch could not decompose the exported program: {first_lines(problem)}", next_step=hint
        ) from problem


def _has_rules_only(exported: ExportedProgram) -> bool:
    """Whether the user has decomposed the program already, to ops that all have rules.

    torch's decomposition traces every op again, which takes thirty times as long as the rest of lowering.
    """
    tokens = any(spec.kind is InputKind.TOKEN for spec in exported.graph_signature.input_specs)
    # A program fresh from torch.export has dialect "TRAINING", and the model's views and in-place updates.
    if tokens or exported.dialect != "ATEN":
        return False
    ops = (node.target for node in exported.graph.nodes if node.op == "call_function" and not is_symbolic(node))
    return all(target is getitem or (isinstance(target, OpOverload) and _needs_nothing(target)) for target in ops)


def _needs_nothing(target: OpOverload) -> bool:
    return not is_mutable(target) and (
        target in DISTRIBUTIONS or overload_name(target) in SILENT or find_rule(target) is not None
    )


def tensor_of(exported: ExportedProgram, spec: Any) -> torch.Tensor:
    if spec.target in exported.state_dict:
        return exported.state_dict[spec.target]
    return exported.constants[spec.target]
