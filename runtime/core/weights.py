"""Weights in safetensors files: written aligned, and mapped rather than read, without torch.

Comes in: names and arrays, or a file. Goes out: `FileRecord`s; numpy views of the mapped file. Guaranteed: files are
plain safetensors; in the ones written here every tensor of a multiple of 64 bytes starts at a multiple of 64, so that a
host device takes it as it is (`Device.put_shared`). Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

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
    header: dict[str, dict[str, object]] = {}
    position = 0
    for name in ordered:
        array = tensors[name]
        if name == "__metadata__" or not _is_text(name):
            raise BundleError(
                f"{name!r} is no name for a weight: safetensors does not take it", next_step="give it another name"
            )
        code = DTYPES[array.dtype.name].safetensors if array.dtype.name in DTYPES else None
        if code is None:
            raise UnsupportedError(
                f"weight {name} is {array.dtype}, which safetensors does not have", next_step="convert it"
            )
        end = position + array.nbytes
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    chunks = (chunk for name in ordered for chunk in _bytes(tensors[name]))
    return files.write(path, chain([len(text).to_bytes(8, "little"), text], chunks), root)


def tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file. Raises BundleError where it is missing, truncated, damaged, or has a dtype that has no name here."""
    found: dict[str, Stored] = {}
    with opened(path) as file, open(path, "rb") as plain:
        position = 8 + int.from_bytes(
            plain.read(8), "little"
        )  # the library has checked that the tensors fill the rest without a gap
        for name in file.offset_keys():
            entry = file.get_slice(name)
            dtype = BY_SAFETENSORS.get(entry.get_dtype())
            if dtype is None:
                raise BundleError(
                    f"tensor {name} is {entry.get_dtype()}, which has no dtype here", where=path, next_step="convert it"
                )
            shape = tuple(entry.get_shape())
            end = position + math.prod(shape) * dtype.itemsize
            found[name] = Stored(dtype.name, shape, position, end)
            position = end
    return found


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """The file as safetensors' own library reads it. Raises BundleError where it is missing, truncated or damaged."""
    try:
        with files.explained("weights cannot be read", path, BundleError), safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as problem:
        raise BundleError(
            f"the safetensors file is truncated or damaged ({str(problem).removeprefix('Error while deserializing header: ')})",
            where=path,
            next_step="write or download it again",
        ) from problem


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


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _bytes(array: np.ndarray) -> Iterator[memoryview]:
    """The array's memory in C order and little-endian, in chunks, without a copy where it is both."""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    for start in range(0, flat.nbytes, files.CHUNK):
        yield flat[start : start + files.CHUNK].data
