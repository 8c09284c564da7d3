"""What the Pallas forms do not take, and what a step runs instead: asked of `supports`, for which nothing is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from ....kernels.catalog import kernels
from ....kernels.moe.cases import MODELS as MIXTURES
from ....kernels.paged_latent_attention.cases import MODELS as LATENTS
from ....kernels.paged_latent_attention.cases import specs as latents
from ....kernels.ragged_gated_delta_rule.cases import specs as delta_rule
from ....kernels.ragged_lightning_attention.cases import specs as lightning
from ....kernels.ragged_selective_scan.cases import specs as scan
from ....kernels.ragged_ssd.cases import specs as ssd
from ....kernels.spec import Operands
from ....runtime.core.targets import Target
from .layers import TARGETS, Layer, layers

if TYPE_CHECKING:
    from rich.table import Table

BFLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)


@dataclass(frozen=True)
class Refusal:
    """A layer that a kernel's Pallas form does not take on some targets. instead: the implementation that is taken."""

    kernel: str
    model: str
    targets: tuple[str, ...]
    why: str
    instead: str


def shapes() -> Iterator[Layer]:
    """Layers of served models for which there is no Pallas form."""
    mixture, activation = MIXTURES["Qwen3 30B-A3B"]
    yield Layer("moe", "Qwen3 30B-A3B in float32", None, mixture.specs(8, FLOAT32), activation, ())
    latent, sizes = "ragged_paged_latent_attention", LATENTS["DeepSeek-V2, V3"]
    named = {"scale": (sizes.nope + sizes.rotary) ** -0.5, "sliding_window": 0}
    for model, operands in (
        ("DeepSeek-V3.2, 2,048 of the context selected", latents(64, sizes, 16, 64, 256, selected=2048)),
        ("DeepSeek-V3, contexts of 163,840 in pages of 16", latents(64, sizes, 16, 64, 10240)),
        ("DeepSeek-V3's heads on a latent of 192", latents(64, sizes._replace(latent=192), 16, 64, 128)),
    ):
        yield Layer(latent, model, None, operands, named, ())
    rule = delta_rule(64, 16, 32, 128, 128, 64, state=BFLOAT16)
    yield Layer("ragged_gated_delta_rule", "Qwen3-Next 80B, a state of bfloat16", None, rule, {"scale": 128**-0.5, "l2norm": True}, ())  # fmt: skip
    yield Layer("ragged_ssd", "Zamba2 7B, states of 64 by 64", None, ssd(64, 112, 64, 2, 64, 64), {}, ())
    yield Layer("ragged_lightning_attention", "64 heads of 96", None, lightning(64, 64, 96, 64), {}, ())
    yield Layer("ragged_selective_scan", "Jamba's layer, 200 channels of it", None, scan(64, 200, 16, 64), {}, ())


def refusals() -> list[Refusal]:
    """Those of `shapes`, and any of the layers that are compared; a row for all targets that say the same."""
    found: dict[Refusal, list[str]] = {}
    for layer in (*shapes(), *layers()):
        kernel = kernels()[f"fxhlo.{layer.kernel}"]
        for target in TARGETS:
            operands = Operands.of(layer.operands, layer.operands.values())
            chosen, reasons = kernel.choice(operands, layer.attributes, Target.parse(target))
            for why in (reason.removeprefix("pallas: ") for reason in reasons if reason.startswith("pallas: ")):
                one = Refusal(
                    layer.kernel, f"{layer.model}, {layer.name}", (), why, chosen.name if chosen else "reference"
                )
                found.setdefault(one, []).append(target)
    return [replace(one, targets=tuple(targets)) for one, targets in found.items()]


def table() -> Table:
    from rich.table import Table

    made = Table(
        "kernel", "layer of", "targets", "why there is no Pallas form", "taken", title="Refused before a compiler runs"
    )
    for one in refusals():
        made.add_row(
            one.kernel, one.model, ", ".join(one.targets), one.why, "XLA" if one.instead == "xla" else one.instead
        )
    return made
