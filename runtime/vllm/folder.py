"""A model folder, looked at before an engine starts: are the weights there, and whole?

Reads file sizes and the headers of safetensors files, no weights. What is wrong is a ModelError, here and not minutes
later in another process. Folders that vLLM would download, and formats other than safetensors, are left to vLLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import FxhloError

PATTERNS = ("*.safetensors", "*.bin", "*.pt")
"""Weight files that vLLM's loader looks for."""


class ModelError(FxhloError):
    """A model folder from which no model can be made: no such architecture, weights missing, damaged or of other shapes."""


def check_folder(folder: Path) -> None:
    """Raises ModelError where the folder has no weights, or a safetensors file is missing or cut off."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in sorted(set(_json(index, index.read_bytes()).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                raise ModelError(
                    f"the weight file {name} is missing",
                    where=index,
                    next_step="copy or download it: the index names it as a part of this model",
                )
    if not any(next(folder.glob(pattern), None) for pattern in PATTERNS):
        raise ModelError(
            "there are no weights in the model folder",
            where=folder,
            next_step="put the model's *.safetensors files there, or use --load-format dummy for random ones",
        )
    for file in sorted(folder.glob("*.safetensors")):
        check_file(file)


def check_file(file: Path) -> None:
    """Raises ModelError where a safetensors file is not as long as its header says.

    The format: eight bytes with the header's length, the header as JSON, the data.
    https://github.com/huggingface/safetensors#format
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(
                file, f"it has {size} bytes, and its header alone takes {length + 8}" if size >= 8 else "it is empty"
            )
        header = _json(file, opened.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    needed = 8 + length + max(ends, default=0)
    if size != needed:
        raise _damaged(file, f"it has {size:,} bytes, and its header says {needed:,}")


def _json(file: Path, text: bytes) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        raise _damaged(file, "its header is not JSON") from None


def _damaged(file: Path, how: str) -> ModelError:
    return ModelError(
        f"a weight file is damaged or cut off: {how}", where=file, next_step="download or copy this file again"
    )
