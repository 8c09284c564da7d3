"""`python -P -m fxhlo.tools.gpu`: makes the bundle where it is missing, runs each part on the GPU, and writes docs/gpu.json and docs/gpu.md.

Without a GPU it makes the bundle and says how to go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from ...runtime.core import selection
from ...runtime.core.errors import FxhloError, UnsupportedError
from ...runtime.core.manifest import FILE
from ...runtime.core.plugins import has_cuda_plugin, has_gpu
from ...runtime.core.targets import Target
from .record import PAGE, RECORD, ROOT, page

BUNDLE = ROOT / "build" / "gpu"
SECONDS = {"step": 140, "attention": 35, "kernels": 55, "peer": 70}
"""What each part may take, in the order of their worth: five minutes together. What a part has said before its end counts."""


def main() -> int:
    options = _options()
    options.target = options.target or str(selection.card())
    try:
        if options.part:
            for row in rows(options.part, options.bundle, Target.parse(options.target), fast=options.fast):
                print(json.dumps(row), flush=True)
            return 0
        if not (options.bundle / FILE).exists():
            _make(options.bundle, options.target)
        check(options.target, options.bundle)
        found = measured(options)
    except FxhloError as problem:
        print(problem, file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / RECORD.name).write_text(json.dumps(found, indent=1) + "\n")
    (options.out / PAGE.name).write_text(page(found))
    print(f"wrote {options.out / RECORD.name} and {PAGE.name}")
    wrong = [row for row in found["parts"].get("kernels", {}).get("rows", ()) if not row["right"]]
    failed = [name for name, part in found["parts"].items() if part["problem"]]
    for row in wrong:
        print(
            f"not as its reference: {row['kernel']}, {row['case']}: {row['difference']} {row['problem']}",
            file=sys.stderr,
        )
    return 1 if wrong or failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundle's folder, made where it is missing")
    parser.add_argument("--out", type=Path, default=RECORD.parent, help="the folder of gpu.json and gpu.md")
    parser.add_argument("--target", help="of this machine's GPU where it is left out")
    parser.add_argument("--only", choices=tuple(SECONDS), nargs="+", default=list(SECONDS), help="some parts")
    parser.add_argument("--fast", action="store_true", help="few cases of each part")
    parser.add_argument("--part", choices=tuple(SECONDS), help="one part in this process: a line of JSON a row")
    return parser.parse_args()


def _make(folder: Path, target: str) -> None:
    """Raises FxhloError where vLLM is not installed."""
    try:
        from .make import make

        make(folder, target)
    except ModuleNotFoundError as problem:
        raise FxhloError(
            f"there is no bundle in {folder}, and none is made here: {problem}",
            next_step="make it on a machine with vLLM (`make gpu` there), and bring the folder along",
        ) from problem
    print(f"wrote the bundle {folder}")


def check(target: str, bundle: Path) -> None:
    """Raises UnsupportedError where the target's device is not here, before anything starts."""
    if Target.parse(target).family != "cuda":
        return
    there = f"take this tree with {bundle} to a machine with one, and run there: bash tools/gpu/on_device.sh"
    if not has_gpu():
        raise UnsupportedError("this machine has no GPU of NVIDIA's; nothing was measured", next_step=there)
    if not has_cuda_plugin():
        raise UnsupportedError(
            "this Python has no jax CUDA plugin; nothing was measured",
            next_step="pip install 'jax[cuda13]', or run it with a Python that has it",
        )


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Every part in a process of its own: the device's memory is free for the next, and a part that hangs is ended."""
    parts = {}
    for part in options.only:
        began = perf_counter()
        found, problem = _part(part, options)
        parts[part] = {"rows": found, "problem": problem, "seconds": round(perf_counter() - began, 1)}
        print(f"{part}: {len(found)} rows in {parts[part]['seconds']} s{': ' + problem if problem else ''}", flush=True)
    return {"date": datetime.now(UTC).date().isoformat(), "here": here(options.target), "parts": parts}


def _part(part: str, options: argparse.Namespace) -> tuple[list[Any], str]:
    """(its rows, why it ended early, or "")."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "fxhlo.tools.gpu",
        "--part",
        part,
        "--bundle",
        str(options.bundle),
        "--target",
        options.target,
    ]
    with subprocess.Popen(
        [*command, *(["--fast"] if options.fast else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS[part])
            ended = "" if process.returncode == 0 else f"exit {process.returncode}: {_last(err)}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            ended = f"no end within {SECONDS[part]} s"
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], ended


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[:600]


def rows(part: str, bundle: Path, target: Target, *, fast: bool = False) -> Iterator[Mapping[str, Any]]:
    """The rows of one part, in this process."""
    from ...runtime.core import pjrt
    from ...runtime.core.bundle import Bundle

    if part == "peer":
        from . import peer

        notes = Bundle.open(bundle).manifest.notes
        sizes = int(notes["requests"]), int(notes["context"])  # type: ignore[call-overload]
        yield from map(asdict, peer.measure(notes["config"], *sizes, fast=fast))  # type: ignore[arg-type]
        return
    pjrt.device(target)  # starts the device's client, and no other
    if part == "step":
        from . import step

        yield from map(asdict, step.measure(Bundle.open(bundle), target))
        return
    from . import kernels

    card = target if target.family == "cuda" else Target("cuda-h100")  # the host interprets the kernels of a card
    if part == "attention":
        shape = (4, 64) if target.family == "cpu" else (64, 1024)
        yield from map(asdict, kernels.sweep(card, *shape, fast=fast))
    else:
        yield from ({**asdict(one), "right": one.right} for one in kernels.compare(card, 2 if fast else None))


def here(target: str) -> dict[str, str]:
    """The card and the versions, asked in a process of its own so that this one holds no device."""
    code = (
        "import jax, sys; from fxhlo.runtime.core import pjrt; d = pjrt.device(sys.argv[1]).raw;"
        "print(d.device_kind, jax.__version__, sys.version.split()[0], d.client.platform_version.splitlines()[0], sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, target], capture_output=True, text=True)
    lines = done.stdout.splitlines() if done.returncode == 0 else [f"unknown: {_last(done.stderr)}"]
    return dict(zip(("card", "jaxlib", "python", "platform"), [*lines, *[""] * 4], strict=False))


if __name__ == "__main__":
    sys.exit(main())
