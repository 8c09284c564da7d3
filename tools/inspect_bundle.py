"""`lower-model inspect`: what a bundle holds. Reads only its manifest; needs neither torch nor a device."""

from __future__ import annotations

import json
from pathlib import Path

from ..runtime.core.bundle import Bundle
from ..runtime.core.manifest import Entry
from ..runtime.core.names import suggestion
from . import console


def inspect_bundle(folder: Path, *, entry: str | None = None, as_json: bool = False) -> None:
    """Prints entries, signature, sizes and targets. Raises BundleError."""
    bundle = Bundle.open(folder)
    if entry is not None and entry not in bundle.entries:
        raise console.UsageError(
            f"--entry {entry}: the bundle has no entry {entry!r}",
            where=folder,
            next_step=suggestion(entry, bundle.entries, "its entries are"),
        )
    if as_json:
        facts = {name: entry_facts(one) for name, one in bundle.entries.items() if entry in (None, name)}
        console.put(
            json.dumps(
                {"name": bundle.name, **weight_facts(bundle), "made": dict(bundle.manifest.made), "entries": facts},
                indent=2,
            )
        )
        return
    weights = weight_facts(bundle)
    made = ", ".join(f"{name} {version}" for name, version in bundle.manifest.made.items())
    stored = (
        f"{weights['weights']} weights ({size(weights['weight_bytes'])})" if weights["weights"] else "no weights in it"
    )
    console.put(
        f"{bundle.name}: {len(bundle)} entries; {stored}; for {bundle.manifest.mesh}; made {made or 'by an unknown version'}"
    )
    for name, one in bundle.entries.items():
        if entry in (None, name):
            console.put(describe(name, one))
            if entry is not None or len(bundle) == 1:
                console.put(str(one.signature))


def describe(name: str, entry: Entry) -> str:
    """An entry in a few lines."""
    signature = entry.signature
    counts = f"{len(signature.weights)} weights, {len(signature.inputs)} inputs, {len(signature.states)} states"
    lines = [f"{name}: {counts} -> {len(signature.results)} results; portable {size(entry.module.bytes)}"]
    for target, build in entry.builds.items():
        parts = [
            f"{what} {size(record.bytes)}"
            for what, record in (("module", build.module), ("executable", build.executable))
            if record
        ]
        calls = f"; calls {', '.join(build.custom_calls)}" if build.custom_calls else ""
        lines.append(f"  {target}: {', '.join(parts)}{calls}")
    return "\n".join(lines)


def entry_facts(entry: Entry) -> dict[str, object]:
    return {
        "bindings": dict(entry.bindings),
        "portable_bytes": entry.module.bytes,
        "targets": {
            target: {
                "module_bytes": build.module.bytes if build.module else None,
                "executable_bytes": build.executable.bytes if build.executable else None,
                "custom_calls": list(build.custom_calls),
                "fingerprint": dict(build.fingerprint),
            }
            for target, build in entry.builds.items()
        },
        "signature": entry.signature.to_json(),
    }


def weight_facts(bundle: Bundle) -> dict[str, int]:
    manifest = bundle.manifest
    return {"weights": len(manifest.weights), "weight_bytes": sum(record.bytes for record in manifest.weight_files)}


def size(count: int) -> str:
    """Formats bytes: "1.5 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.4g} GB"
