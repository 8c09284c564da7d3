"""Makes .dev/fxhlo/{kernels,lowering,...}: links that show mypy, pyright and import-linter the tree as it is imported.

setup.py maps the top-level folders to `fxhlo.*`; tools that only read files do not use that map. Run from any
folder; correct links are kept.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def link(root: Path = ROOT) -> Path:
    """The folder .dev of `root`, with one link per floor and per file of fxhlo/."""
    package = root / ".dev" / "fxhlo"
    package.mkdir(parents=True, exist_ok=True)
    floors = [path.parent for path in root.glob("*/__init__.py") if path.parent.name not in ("fxhlo", "tests")]
    wanted = {
        path.name: path
        for path in [*floors, *(path for path in (root / "fxhlo").iterdir() if path.suffix in (".py", ".typed"))]
    }
    for stale in set(os.listdir(package)) - set(wanted):
        if (package / stale).is_symlink():
            (package / stale).unlink()
    for name, path in wanted.items():
        place = package / name
        target = os.path.relpath(path, package)
        if place.is_symlink() and os.readlink(place) == target:
            continue
        place.unlink(missing_ok=True)
        place.symlink_to(target)
    return package.parent


if __name__ == "__main__":
    link()
