"""Writes the results: text on stdout or in a file, portable bytecode in a file, a bundle in a folder.

Guaranteed: a file or a bundle is written completely, or the previous one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...runtime.core import files
from ...runtime.core.errors import BundleError, FxhloError
from .. import console
from .request import Request, is_folder
from .stages import Made, Report

SPLIT = "// -----"
"""MLIR's own mark between modules of one file."""
WIDTH = 120


def write_modules(made: Sequence[Made], request: Request, report: Report) -> None:
    """Writes the modules to the path of -o, or their text on stdout. Raises FxhloError."""
    output = request.output
    if output is not None and is_folder(output):
        _write_bundle(output, made, report)
    elif output is not None and output.suffix == ".mlirbc":
        write_file(output, made[0].module.bytecode, report)
    elif output is not None:
        write_file(output, module_text(made, request.texts or ("portable",)), report)
    elif not request.as_json and (request.texts or (request.stop_after == "hlo" and request.html is None)):
        console.put(module_text(made, request.texts or ("portable",)))


def module_text(made: Sequence[Made], texts: Sequence[str]) -> str:
    """The wanted texts of each bucket, one after the other."""
    parts = []
    for one in made:
        for which in texts:
            heading = "" if len(made) * len(texts) == 1 else f"// {one.label}: {which}\n"
            parts.append(heading + _text(one, which))
    return f"\n{SPLIT}\n".join(parts)


def _text(one: Made, which: str) -> str:
    from ...passes import mlir

    if which == "portable":
        return broken_signatures(one.module.text)
    if which == "legalized":
        assert one.legalized is not None
        module = mlir.parse(one.legalized.bytecode, mlir.context())
        return broken_signatures(mlir.text(module, locations=True))
    if one.compiled is None:
        raise FxhloError(
            f"there is no optimized HLO of {one.label}: it does not fit on the device, so it was not compiled",
            next_step="--bucket with smaller sizes, or leave out --optimized for the report",
        )
    return one.compiled.text


def broken_signatures(text: str) -> str:
    """MLIR text whose long function signatures have a line for each argument and result."""
    return "\n".join(
        _broken(line) if line.lstrip().startswith("func.func ") and len(line) > WIDTH else line
        for line in text.split("\n")
    )


def _broken(line: str) -> str:
    """Breaks after the commas between a signature's arguments and between its results."""
    made, depth, quoted = [], 0, False
    for place, char in enumerate(line):
        made.append(char)
        if char == '"' and line[place - 1] != "\\":
            quoted = not quoted
        if quoted:
            continue
        if char in "([{<":
            depth += 1
        elif char in ")]}" or (char == ">" and line[place - 1] != "-"):
            depth -= 1
        if (char == "," and depth == 1) or (char == "(" and depth == 1 and line[place + 1] != ")"):
            made.append("\n     ")
            if char == "(":
                made.append(" ")
    return "".join(made)


def write_text(output: Path, text: str, report: Report) -> None:
    """Writes a text to a file, with a newline at the end."""
    write_file(output, text if text.endswith("\n") else text + "\n", report)


def write_file(output: Path, content: bytes | str, report: Report) -> None:
    """Writes a file completely or not at all. Raises FxhloError."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with files.explained("the output cannot be written", output, FxhloError):
        if output.exists() and not output.is_file():
            output.write_bytes(data)  # a pipe or a device, which must not be replaced by a file
        else:
            files.replace_file(output.resolve(), data)
    report.written.append(str(output))


def _write_bundle(folder: Path, made: Sequence[Made], report: Report) -> None:
    """Writes a bundle with an entry per bucket, and the weights where the model has values, as a .pt2 does."""
    from ...runtime.core.bundle import Bundle

    with files.explained("the bundle cannot be written", folder, BundleError), Bundle.create(folder) as writer:
        for one in made:
            module, legalized = one.module, one.legalized
            assert legalized is not None
            writer.add_entry(one.label, module.bytecode, module.signature, bindings=module.bindings)
            writer.add_target(
                one.label,
                module.target,
                module=legalized.bytecode,
                executable=one.compiled,
                custom_calls=legalized.custom_calls,
            )
        weights = {name: array for one in made for name, array in one.module.arrays().items()}
        if weights:
            writer.add_weights(weights)
    report.written.append(str(folder))
    wanted = made[0].module.signature.weights
    if wanted and not weights:
        console.say(
            f"the bundle holds no weights: a model folder is captured from its config.json alone. Whoever loads it binds "
            f"{len(wanted)} arrays by name (`lower-model inspect {folder}` lists them)"
        )
