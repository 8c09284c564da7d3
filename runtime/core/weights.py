"""Weights in safetensors files: written aligned, read by mapping, without torch and without reading them into memory.

Comes in: names and arrays, or a file. Goes out: `FileRecord`s; numpy views of the mapped file. Guaranteed: files are
plain safetensors; in the ones written here every tensor of a multiple of 64 bytes starts at a multiple of 64, so that a
host device takes it as it is (`Device.put_shared`). Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import files
from .dtypes import BY_SAFETENSORS, DTYPES, dtype_of
from .errors import BundleError, UnsupportedError

ALIGNMENT = 64


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in its file: bytes `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def write(path: Path, tensors: Mapping[str, np.ndarray], root: Path) -> files.FileRecord:
    """Writes one safetensors file. Raises UnsupportedError for a dtype that safetensors does not have, OSError."""
    ordered = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNMENT != 0)  # stable: the aligned ones first
    header: dict[str, Any] = {}
    position = 0
    for name in ordered:
        array = tensors[name]
        code = DTYPES[array.dtype.name].safetensors if array.dtype.name in DTYPES else None
        if code is None:
            raise UnsupportedError(f"weight {name} is {array.dtype}, which safetensors does not have")
        end = position + array.nbytes
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    chunks = (chunk for name in ordered for chunk in _bytes(tensors[name]))
    return files.write(path, _after([len(text).to_bytes(8, "little"), text], chunks), root)


def tensors(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds. Raises BundleError where it is missing, truncated or damaged."""
    with files.explained("weights cannot be read", path, BundleError), open(path, "rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 8 + length <= size else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found = {name: _stored(entry, 8 + length, size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BundleError(
            f"the safetensors file is truncated or damaged ({problem})",
            where=path,
            next_step="write or download it again",
        ) from problem
    return found


def view(stored: Stored, mapped: np.ndarray) -> np.ndarray:
    """The tensor as a read-only view of the mapped file."""
    return mapped[stored.start : stored.end].view(dtype_of(stored.dtype)).reshape(stored.shape)


def mapped(path: Path) -> np.ndarray:
    """The file's bytes, mapped: pages are read when they are used, and shared between processes."""
    with files.explained("weights cannot be mapped", path, BundleError):
        return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


def shards(arrays: Iterable[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    """Groups of less than `limit` bytes, in order; a tensor larger than that is a group of its own."""
    group: dict[str, np.ndarray] = {}
    size = 0
    for name, array in arrays:
        if group and size + array.nbytes > limit:
            yield group
            group, size = {}, 0
        group[name] = array
        size += array.nbytes
    if group:
        yield group


def _stored(entry: Mapping[str, Any], base: int, size: int) -> Stored:
    dtype = BY_SAFETENSORS.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"dtype {entry['dtype']} is not known")
    shape = tuple(entry["shape"])
    start, end = entry["data_offsets"]
    wanted = math.prod(shape) * dtype.itemsize
    if not 0 <= start <= end <= size - base or end - start != wanted:
        raise ValueError(f"a tensor of {wanted} bytes lies at {start} to {end} of {size - base}")
    return Stored(dtype.name, shape, base + start, base + end)


def _bytes(array: np.ndarray) -> Iterator[memoryview]:
    """The array's memory in C order, in chunks, without a copy where it is contiguous."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, flat.nbytes, files.CHUNK):
        yield flat[start : start + files.CHUNK].data


def _after(first: Iterable[Any], then: Iterable[Any]) -> Iterator[Any]:
    yield from first
    yield from then
