"""Packaging: the top-level folders are packages below `fxhlo`, and every subfolder with Python in it is listed.

`fxhlo` itself is the folder of that name; `lowering/` is `fxhlo.lowering`, and so on. The folders are never
importable under their bare names.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
FLOORS = ("kernels", "lowering", "passes", "runtime", "tools")


def packages() -> dict[str, str]:
    """Package name -> folder, for each floor and each of its subfolders that holds Python."""
    found = {"fxhlo": "fxhlo"}
    for floor in FLOORS:
        for folder in sorted({path.parent for path in (ROOT / floor).rglob("*.py")}):
            relative = folder.relative_to(ROOT)
            found["fxhlo." + ".".join(relative.parts)] = str(relative)
    return found


PACKAGES = packages()

setup(
    packages=sorted(PACKAGES),
    package_dir=PACKAGES,
    package_data={"fxhlo.runtime.core.native": ["*.cc", "*.h"], "fxhlo.tools.bench": ["*.cc"], "fxhlo": ["py.typed"]},
)
