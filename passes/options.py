"""Options of passes as text: the fields of a pass's dataclass, and `PASS.FIELD=VALUE` as a change of one.

Comes in: words such as "paged-attention.block_size=64". Goes out: `Setting`s, and passes with them applied. Guaranteed: a name that
does not exist and a value of another type are an OptionError that says what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from types import NoneType, UnionType
from typing import Literal, get_args, get_origin, get_type_hints

import torch

from ..runtime.core.errors import FxhloError
from ..runtime.core.names import suggestion
from .base import Pass

Value = bool | int | float | str | torch.dtype | None


class OptionError(FxhloError):
    """A pass or an option of one that does not exist, or a value that it does not take."""


@dataclass(frozen=True)
class Option:
    """A field of a pass that a word can set. kinds: the types it takes. choices: of a Literal, else empty."""

    name: str
    kinds: tuple[type, ...]
    default: Value
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The default as it would be written."""
        value = self.default
        return (
            "none"
            if value is None
            else str(value).lower()
            if isinstance(value, bool)
            else str(value).removeprefix("torch.")
        )

    @property
    def takes(self) -> str:
        """What may be written, in words."""
        return " or ".join(self.choices or [NAMES[kind] for kind in self.kinds])

    def parse(self, text: str) -> Value:
        """The value that `text` stands for. Raises ValueError."""
        if self.choices:
            if text in self.choices:
                return text
            raise ValueError(text)
        for kind in self.kinds:
            try:
                return PARSERS[kind](text)
            except ValueError:
                continue
        raise ValueError(text)


def _bool(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


def _dtype(text: str) -> torch.dtype:
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(text)
    return found


PARSERS: dict[type, Callable[[str], Value]] = {
    bool: _bool,
    int: int,
    float: float,
    str: str,
    NoneType: _none,
    torch.dtype: _dtype,
}
NAMES: dict[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a word", NoneType: "none",
    torch.dtype: "a dtype such as bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """`option` of every pass named `step` is to be `value`."""

    step: str
    option: str
    value: Value


def options(step: Pass | type[Pass]) -> tuple[Option, ...]:
    """The options of a pass: its fields of plain types, each with its default (of an instance: its value)."""
    hints = get_type_hints(step if isinstance(step, type) else type(step))
    found = []
    for field in fields(step):
        kinds, choices = _kinds(hints[field.name])
        if not kinds:
            continue  # a table, say: set where the pass is made
        default = field.default if isinstance(step, type) else getattr(step, field.name)
        found.append(Option(field.name, kinds, None if default is MISSING else default, choices))
    return tuple(found)


def parse_setting(word: str, passes: Iterable[Pass]) -> Setting:
    """The setting that `PASS.OPTION=VALUE` asks for of one of `passes`. Raises OptionError."""
    left, equals, text = word.partition("=")
    name, dot, option_name = left.strip().rpartition(".")
    if not (equals and dot and name and option_name):
        raise OptionError(f"{word!r} is not PASS.OPTION=VALUE", next_step="write it as paged-attention.block_size=64")
    by_name = {step.name: step for step in passes}
    if name not in by_name:
        raise OptionError(f"there is no pass {name!r}", next_step=suggestion(name, by_name, "the passes are"))
    known = {option.name: option for option in options(by_name[name])}
    if option_name not in known:
        next_step = suggestion(option_name, known, f"options of {name}:") if known else f"{name} takes no options"
        raise OptionError(f"the pass {name} has no option {option_name!r}", next_step=next_step)
    option = known[option_name]
    try:
        value = option.parse(text.strip())
        replace(by_name[name], **{option_name: value})  # the pass itself may have something against it
    except ValueError as problem:
        reason = "" if str(problem) == text.strip() or option.choices else f": {problem}"
        raise OptionError(
            f"{name}.{option_name} cannot be {text.strip()!r}{reason}", next_step=f"it takes {option.takes}"
        ) from None
    return Setting(name, option_name, value)


def configured(passes: Sequence[Pass], settings: Iterable[Setting]) -> tuple[Pass, ...]:
    """The passes with the settings applied; the last of two for one option counts."""
    made = tuple(passes)
    for setting in settings:
        made = tuple(
            replace(step, **{setting.option: setting.value}) if step.name == setting.step else step for step in made
        )
    return made


def _kinds(hint: object) -> tuple[tuple[type, ...], tuple[str, ...]]:
    """The types that a field takes, None first so that "none" is not a word; and its choices."""
    if get_origin(hint) is Literal:
        return (str,), get_args(hint)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    plain = tuple(sorted((kind for kind in kinds if kind in PARSERS), key=lambda kind: kind is not NoneType))
    return (plain if len(plain) == len(kinds) else ()), ()
