"""Planned: a plan with all that is shown of it."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.vllm.steps.kinds import Bucket
from ...runtime.vllm.steps.planning.costs import Costs
from ...runtime.vllm.steps.planning.lengths import Lengths
from ...runtime.vllm.steps.planning.load import Load
from ...runtime.vllm.steps.planning.plan import Plan, Use
from ...runtime.vllm.steps.planning.proof import Proof


@dataclass(frozen=True)
class Planned:
    """A plan with what it was compared with. usual: the sizes that double, and the stretch of the same load in them."""

    model: str
    target: str
    plan: Plan
    costs: Costs
    load: Load
    uses: tuple[Use, ...]
    proof: Proof
    usual: tuple[Bucket, ...]
    usual_stretch: float
    lengths: Lengths | None
