"""Resolves a command's argument MODEL and checks that it can be read, before anything slow is imported.

Comes in: a folder, a config.json, an exported program (.pt2), or a hub id. Goes out: a `Model`.
Guaranteed: an invalid model raises ModelError, which names the file and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from ..runtime.core import weights
from ..runtime.core.errors import FxhloError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TAKEN = "MODEL is a folder with a config.json, a config.json alone, a .pt2 of torch.export.save, or a hub id"


class ModelError(FxhloError):
    """A model does not exist or cannot be read."""


@dataclass(frozen=True)
class Model:
    """`path`: the folder with config.json, or the .pt2 file. `config` is {} for a .pt2."""

    name: str
    kind: Literal["folder", "exported"]
    path: Path
    config: Mapping[str, object]

    @property
    def title(self) -> str:
        """The name with the class of the model: "llama-3.1-8b (LlamaForCausalLM)"."""
        classes = self.config.get("architectures")
        return f"{self.name} ({', '.join(map(str, classes))})" if isinstance(classes, list) else self.name


@contextmanager
def opened(word: str) -> Iterator[Model]:
    """Opens the model named by `word`; a config.json alone, or from the hub, gets a temporary folder meanwhile."""
    path = Path(word).expanduser()
    if path.is_dir():
        config = read_config(path / "config.json")
        check_weights(path)
        yield Model(_name_of(path / "config.json"), "folder", path.resolve(), config)
    elif path.is_file() and path.suffix == ".pt2":
        yield Model(path.stem, "exported", path, {})
    elif path.is_file() and path.suffix == ".json":
        yield from _alone(_name_of(path), path)
    elif path.exists():
        raise ModelError(
            f"{word} is neither a folder nor a config.json nor a .pt2", where=path.resolve(), next_step=TAKEN
        )
    elif not HUB_ID.fullmatch(word) or word.startswith(".") or word.endswith((".json", ".pt2")):
        raise ModelError(f"there is no file or folder {word}", next_step=TAKEN)
    else:
        with TemporaryDirectory(prefix="fxhlo-hub-") as folder:
            path = _from_hub(word, Path(folder))
            yield Model(word, "folder", path.parent, read_config(path))


def _name_of(config: Path) -> str:
    """A model's name: its folder's; of a snapshot in the hub's cache the repository's; of x.json x."""
    folder = config.resolve().parent
    if config.name != "config.json":
        return config.stem
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _alone(name: str, config: Path) -> Iterator[Model]:
    """A temporary folder with this config.json alone."""
    content = read_config(config)
    with TemporaryDirectory(prefix="fxhlo-config-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(content))
        try:
            yield Model(name, "folder", Path(folder), content)
        except FxhloError as problem:
            if problem.where in (folder, f"{folder}/config.json"):
                problem.where = str(config)  # which the user knows
            raise


def _from_hub(word: str, folder: Path) -> Path:
    """config.json of a model on the hub, from its cache or by one request (its client retries for long)."""
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session

    cached = try_to_load_from_cache(word, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    try:
        answer = get_session().get(
            hf_hub_url(word, "config.json"), headers=build_hf_headers(), timeout=10, follow_redirects=True
        )
    except Exception as problem:  # the HTTP library's, which depends on the client's version
        raise ModelError(
            f"there is no folder {word} here, and the hub cannot be reached from this machine",
            next_step=f"where there is a network: hf download {word} --local-dir FOLDER; then name that folder",
        ) from problem
    if answer.status_code in (401, 403):
        raise ModelError(
            f"there is no folder {word} here; the hub knows no such model, or admits only some to it",
            next_step="hf auth login, or name a folder",
        )
    if answer.status_code != 200:
        raise ModelError(
            f"there is no folder {word} here, and no config.json of it on the hub (status {answer.status_code})",
            next_step=TAKEN,
        )
    (folder / "config.json").write_bytes(answer.content)
    return folder / "config.json"


def read_config(path: Path) -> dict[str, object]:
    """The content of a config.json that names its model. Raises ModelError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("the folder has no config.json", where=path.parent.resolve(), next_step=TAKEN) from None
    except OSError as problem:
        raise ModelError(f"config.json cannot be read: {problem.strerror}", where=path) from None
    except json.JSONDecodeError as problem:
        spot = f"{path}:{problem.lineno}:{problem.colno}"
        raise ModelError(
            f"config.json is not JSON: {problem.msg}", where=spot, next_step="get the file again from where it came"
        ) from None
    except UnicodeDecodeError:
        raise ModelError(
            "config.json is not text", where=path, next_step="get the file again from where it came"
        ) from None
    if not isinstance(config, dict):
        raise ModelError(
            f"config.json holds {'a list' if isinstance(config, list) else 'one value'}, not an object",
            where=path,
            next_step='a model\'s config.json begins with {"architectures": [...]: get the file again from where it came',
        )
    if not config.get("architectures"):
        raise ModelError(
            "config.json does not say which model it is: it has no `architectures`",
            where=path,
            next_step='name the class, as "architectures": ["LlamaForCausalLM"]; is this the config.json of a model?',
        )
    return config


def check_weights(folder: Path, *, needed: bool = False) -> list[Path]:
    """The safetensors files of a model folder, each as long as its header says. Raises ModelError, BundleError.

    needed: the absence of weights is an error too. Reads headers only.
    """
    found = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            wanted = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(
                "the index of the weights cannot be read", where=index, next_step="get the file again"
            ) from None
        if missing := [name for name in wanted if not (folder / name).exists()]:
            raise ModelError(
                f"{len(missing)} of {len(wanted)} weight files are missing: {', '.join(missing[:4])}",
                where=folder,
                next_step="get the missing files; the download was not complete",
            )
    for path in found:
        with weights.opened(path):
            pass
    if needed and not found and not [*folder.glob("*.bin"), *folder.glob("*.pt")]:
        raise ModelError(
            "the folder has no weights (no *.safetensors)",
            where=folder,
            next_step="get the weights as well; lowering alone (lower-model) needs none",
        )
    return found
