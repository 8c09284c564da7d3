"""Suggestions for a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(name: str, known: Iterable[str], listing: str) -> str:
    """What to write instead of `name`: "did you mean tokens? its dimensions are tokens, requests".

    known: every name that exists, in the order in which they are listed after `listing`.
    """
    names = list(dict.fromkeys(known))
    folded = {each.lower(): each for each in names}
    near = [each for each in names if len(name) > 2 and name.lower() in each.lower()][:2]
    near = near or [folded[each] for each in get_close_matches(name.lower(), folded, 2, 0.5)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}{listing} {', '.join(names)}"
