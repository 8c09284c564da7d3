"""docs/environment.md lists every environment variable that fxhlo reads."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ("fxhlo", "kernels", "lowering", "passes", "runtime", "tools")
READ = re.compile(r"""(?:environ(?:\.get|\.setdefault|\.pop)?[\(\[]|getenv\()\s*["']([A-Z][A-Z0-9_]+)["']""")
NOT_OF_USERS = {
    "FXHLO_STARTUP_REPORT",
    "HF_HUB_OFFLINE",
    "PATH",
    "PYTHONPATH",
    "PYTHONSAFEPATH",
    "TRANSFORMERS_VERBOSITY",
}
"""Set by fxhlo itself for its own processes, or everybody's."""


def test_every_variable_is_on_the_page() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    read: dict[str, str] = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            for name in READ.findall(path.read_text()):
                read.setdefault(name, str(path.relative_to(ROOT)))
    assert "FXHLO_CACHE_DIR" in read, "the pattern finds what is known to be read"
    missing = {name: path for name, path in read.items() if name not in NOT_OF_USERS and f"`{name}`" not in page}
    assert not missing, missing


def test_nothing_on_the_page_is_made_up() -> None:
    """fxhlo's own variables on the page are read somewhere."""
    named = set(re.findall(r"`(FXHLO_[A-Z_]+)", (ROOT / "docs" / "environment.md").read_text()))
    sources = [path.read_text() for floor in (*FLOORS, "tests") for path in (ROOT / floor).rglob("*.py")]
    assert not {name for name in named if not any(name in text for text in sources)}
