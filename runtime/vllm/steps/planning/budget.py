"""Budget: how many programs an engine may have, as a number, as seconds to compile them in, or as the memory that they take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ....core.errors import FxhloError
from .costs import Costs

SIZES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MOST = 64
"""Programs of any plan: with more, no step is padded by a noticeable part."""
WORDS = "a number of programs (12), seconds to compile them in (30s), or the memory that they take (50MB)"


@dataclass(frozen=True)
class Budget:
    """What each limit allows must hold; None is no limit. seconds: of the first start; memory: bytes of all programs."""

    programs: int | None = None
    seconds: float | None = None
    memory: float | None = None

    @classmethod
    def parse(cls, words: Iterable[str]) -> Budget | None:
        """The budget of words such as "12", "30s" and "50MB"; None for no words. Raises FxhloError for others."""
        limits: dict[str, float] = {}
        for word in words:
            found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|[KMG]i?B)?", word.strip(), re.IGNORECASE)
            number, unit = (float(found[1]), (found[2] or "").upper()) if found else (0.0, "")
            name = "seconds" if unit == "S" else "memory" if unit else "programs"
            if not number or name in limits or (name == "programs" and not number.is_integer()):
                raise FxhloError(f"the budget {word!r} is not understood, or given twice", next_step=f"give {WORDS}")
            limits[name] = number * SIZES.get(unit, 1)
        if not limits:
            return None
        programs = limits.get("programs")
        return cls(None if programs is None else int(programs), limits.get("seconds"), limits.get("memory"))

    def programs_of(self, costs: Costs) -> int:
        """How many programs it allows. Raises FxhloError where that is none."""
        allowed = [
            MOST if self.programs is None else self.programs,
            MOST if self.seconds is None else int(self.seconds / costs.seconds),
            MOST if self.memory is None else int(self.memory / costs.program_bytes),
        ]
        if min(allowed) < 1:
            raise FxhloError(
                f"the budget is less than one program, which takes about {costs.seconds:.1f} s and {costs.program_bytes / 1e6:.1f} MB",
                next_step="give a larger one",
            )
        return min(*allowed, MOST)
