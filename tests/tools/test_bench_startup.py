"""The stages of a start add up to the whole of it, whichever process and thread they are in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxhlo.tools.bench import stages
from fxhlo.tools.bench.startup import summed, tables

TIMED = """
import json, sys, threading
import stages_of_this_run as stages
stages.FUNCTIONS["colorsys"] = {"rgb_to_hls": "colours"}
import colorsys
colorsys.rgb_to_hls(0.1, 0.2, 0.3)
thread = threading.Thread(target=colorsys.rgb_to_hls, args=(0.1, 0.2, 0.3))
thread.start()
thread.join()
"""


def test_functions_and_imports_are_timed(tmp_path: Path) -> None:
    source = Path(stages.__file__).read_text().replace('FOLDER = ""', f"FOLDER = {str(tmp_path)!r}", 1)
    (tmp_path / "stages_of_this_run.py").write_text(source)
    subprocess.run([sys.executable, "-c", TIMED], check=True, env={"PYTHONPATH": str(tmp_path)})
    (file,) = tmp_path.glob("*.spans")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["process"] and lines[0]["began"] <= lines[1]["begin"]
    assert [line["aside"] for line in lines[1:] if line["name"] == "colours"] == [False, True]


def test_stages_add_up(tmp_path: Path) -> None:
    def write(process: int, began: float, spans: list[tuple[str, float, float, bool]]) -> None:
        head = {"process": process, "parent": 0, "began": began}
        rest = [
            {"name": name, "begin": begin, "own": own, "aside": aside, "inside": []}
            for name, begin, own, aside in spans
        ]
        (tmp_path / f"{process}.spans").write_text("\n".join(json.dumps(one) for one in [head, *rest]))

    front = [
        ("import vllm", 0.1, 2.0, False),
        (stages.WAITS, 2.5, 3.0, False),
        ("import vllm", 2.2, 0.5, False),
        ("tiny", 2.1, 0.01, False),
    ]
    write(1, 0.0, front)
    write(
        2,
        2.6,
        [
            ("engine core", 2.7, 1.0, False),
            ("weights", 3.0, 1.5, False),
            ("beside", 3.0, 9.0, True),
            ("later", 7.0, 1.0, False),
        ],
    )
    write(3, 2.8, [("weights", 3.0, 5.0, False)])
    found = summed(list(tmp_path.glob("*.spans")), 0.0, 6.0)
    assert found["front", "import vllm"] == 2.5 and found["engine", "weights"] == 1.5
    assert (
        ("engine", "beside") not in found and ("engine", "later") not in found and ("front", stages.WAITS) not in found
    )
    assert sum(found.values()) == pytest.approx(6.0)
    assert [table.title for table in tables([])] == [
        "first start to the first token",
        "second start to the first token",
        "vllm serve, first start to the first token",
        "vllm serve, second start to the first token",
    ]
