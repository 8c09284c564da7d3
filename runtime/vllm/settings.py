"""Settings: fxhlo's own options of an engine, `--additional-config '{"fxhlo": {...}}'`.

Comes in: vLLM's config. Goes out: `Settings`. Guaranteed: an unknown option, a value of the wrong type, and a key that only looks like ours
is refused by name; other keys of additional_config are other programs'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..core.errors import UnsupportedError
from ..core.names import suggestion
from ..core.targets import Target

if TYPE_CHECKING:
    from vllm.config import VllmConfig

KEY = "fxhlo"
WHERE = "--additional-config"
NEAR = 0.8
"""How much of a key has to be "fxhlo" to be taken for a misspelling of it (difflib's ratio)."""


class SettingsError(UnsupportedError):
    """--additional-config that is no mapping, or whose part for fxhlo holds what fxhlo does not take."""


class Note(dict[str, int]):
    """What fxhlo itself keeps in additional_config, for the process that gets the config: a type that no command line can give."""


@dataclass(frozen=True)
class Settings:
    """target: where programs run, such as "tpu-v6e" or "cpu" (docs/targets.md); None: what is found (core/selection.py).
    bundle: folder of `lower-model engine -o` with the engine's programs; None: they are in the cache, or made. A bundle has a plan.
    plan: a file of `lower-model plan --json`. lengths: of requests, a file or a server's URL, to plan for. budget: of programs, "12", "30s" or
    "50MB". A plan was made for its own, so it is given without the other two.
    attention_data_parallel: into how many groups the devices of a layer are parted, each of which has the KV caches of other requests
    (docs/meshes.md)."""

    target: str | None = None
    bundle: str | None = None
    plan: str | None = None
    lengths: str | None = None
    budget: str | None = None
    attention_data_parallel: int = 1

    @classmethod
    def of(cls, config: VllmConfig) -> Settings:
        """Reads them from vLLM's config. Raises SettingsError for what they are not."""
        additional = config.additional_config if isinstance(config.additional_config, dict) else {}
        _check_keys(name for name, value in additional.items() if not isinstance(value, Note))
        given = additional.get(KEY, {})
        if not isinstance(given, dict):
            raise _wrong(f"{KEY!r} holds {json.dumps(given, default=str)}", "its options are a mapping")
        known = {field.name: type(field.default) for field in fields(cls)}
        for name in given:
            if name not in known:
                raise _wrong(f"fxhlo has no option {name!r}", suggestion(str(name), list(known), "its options are"))
        for name, value in given.items():
            if known[name] is int:
                if type(value) is not int or value < 1:
                    raise _wrong(
                        f"fxhlo's option {name!r} is a number of groups of devices, not {json.dumps(value, default=str)}",
                        "give a number from 1 on",
                    )
            elif value is not None and (not isinstance(value, str) or not value):
                raise _wrong(
                    f"fxhlo's option {name!r} is a text, not {json.dumps(value, default=str)}", "write it in quotes"
                )
        settings = cls(**given)
        if settings.plan and (settings.lengths or settings.budget):
            raise _wrong("fxhlo's options name a plan, and lengths or a budget beside it", "give either")
        if settings.bundle and (settings.plan or settings.lengths or settings.budget):
            raise _wrong(
                "fxhlo's options name a bundle, and a plan of programs beside it",
                "give either: a bundle has its own plan",
            )
        if settings.target is not None:
            _check_target(settings.target)
        return settings


def _check_keys(names: Iterable[str]) -> None:
    """Refuses keys of the user's that look like ours: nothing would read them."""
    for name in names:
        folded = str(name).lower()
        if name != KEY and (folded.startswith(KEY) or get_close_matches(folded, [KEY], 1, NEAR)):
            raise _wrong(f"there is no key {name!r}", f"did you mean {KEY}? fxhlo's options are below it")


def _check_target(name: str) -> None:
    try:
        Target.parse(name)
    except UnsupportedError as problem:
        raise _wrong(problem.message, problem.next_step) from None


def not_a_mapping(problem: BaseException) -> SettingsError | None:
    """What to say in place of pydantic's error about additional_config; None for other errors."""
    found: list[dict[str, Any]] = getattr(problem, "errors", list)() if type(problem).__name__ == "ValidationError" else []
    given = next((one["input"] for one in found if one["loc"][:1] == ("additional_config",)), None)
    if given is None:
        return None
    shown = given if isinstance(given, str) else json.dumps(given, default=str)
    return _wrong(f"{shown} is no mapping", f"write it as '{json.dumps({KEY: {'target': 'cpu'}})}'")


def _wrong(what: str, next_step: str | None) -> SettingsError:
    return SettingsError(f"{WHERE}: {what}", next_step=next_step)
