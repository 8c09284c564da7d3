"""Runs in the other environment (docs/versions.md): a bundle of this one's loaded, run, compiled and written again. No torch.

Arguments: the bundle, a folder with the calls' inputs as `<entry>.npz` (arrays by argument name), and a folder for what comes out:
`<entry>.npz` per entry, `origins.json`, and `again`, a bundle that this version has written.
"""

import json
import sys
from pathlib import Path

import numpy as np

from fxhlo.passes import mlir
from fxhlo.runtime.core import native, pjrt
from fxhlo.runtime.core.bundle import Bundle, BundleWriter, load


def numbers(buffer):
    array = pjrt.get(buffer)
    return array.astype(np.float64) if array.dtype.name.startswith(("bfloat", "float8")) else array


def main(path: Path, calls: Path, out: Path) -> None:
    bundle, origins = load(path), {}
    bundle.verify()
    for name in bundle.entries:
        with np.load(calls / f"{name}.npz") as given:
            results = bundle[name](**given)
        np.savez(out / f"{name}.npz", *map(numbers, results))
        origins[name] = bundle[name].origin
    rewrite(bundle, out / "again")
    for name in load(path).entries:  # stored beside what was there, and taken from now on
        bundle.add_executable(bundle.executable(name))
        origins[f"{name}, stored"] = load(path).executable(name).origin
    facts = {"origins": origins, "made": dict(load(out / "again").manifest.made), "torch": "torch" in sys.modules}
    (out / "facts.json").write_text(json.dumps({**facts, "native": native.unavailable()}))


def rewrite(bundle: Bundle, path: Path) -> None:
    """The same programs, serialized and compiled by this version."""
    with BundleWriter(path) as writer:
        for name, entry in bundle.entries.items():
            portable = mlir.portable(mlir.parse((bundle.path / entry.module.file).read_bytes(), mlir.context()))
            writer.add_entry(name, portable, entry.signature, bindings=entry.bindings)
            build = entry.builds["cpu"]
            legalized = portable if build.module is None else (bundle.path / build.module.file).read_bytes()
            legalized = mlir.portable(mlir.parse(legalized, mlir.context()))
            compiled = pjrt.compile(legalized, options=build.options, custom_calls=build.custom_calls)
            writer.add_target(
                name,
                "cpu",
                module=legalized,
                executable=compiled,
                custom_calls=build.custom_calls,
                options=build.options,
            )
        writer.add_weights(bundle.weights())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
