"""The plan of one engine: from its config and its settings, with the proof.

Comes in: vLLM's final config. Goes out: the closed set of programs, in the order in which they are selected. Guaranteed: each step that the
scheduler can ask for has a program, or the start ends with an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ....core.cache import Cache
from ....core.errors import FxhloError
from ....core.targets import Target
from ...settings import WHERE, Settings, SettingsError
from ..kinds import Bucket, Limits
from .budget import Budget
from .costs import Costs
from .lengths import read_lengths
from .plan import Plan, make_plan, read_plan
from .proof import prove

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def closed_set(config: VllmConfig, limits: Limits, target: Target) -> tuple[Bucket, ...]:
    """The programs of an engine, in the order in which they are selected. Raises FxhloError for a plan that does not fit, or has a gap."""
    buckets = engine_plan(config, limits, target).buckets
    prove(buckets, limits)
    return buckets


def engine_plan(config: VllmConfig, limits: Limits, target: Target) -> Plan:
    """The plan that the engine's settings name, or the one that is made of what they say."""
    settings = Settings.of(config)
    if settings.plan is not None:
        return read_plan(Path(settings.plan), limits)
    return make_plan(
        limits,
        Costs.of_engine(config, target),
        None if settings.lengths is None else read_lengths(settings.lengths),
        Budget.parse([settings.budget] if settings.budget else ()),
        chunked=config.scheduler_config.enable_chunked_prefill,
    )


def check_settings(config: VllmConfig, target: Target) -> None:
    """Checks what the settings name, before weights are loaded. Raises FxhloError.

    A plan is compared with the limits that are known by now: vLLM may still find max_model_len itself, after it knows the free memory.
    """
    from ..options import limits_of

    settings, limits = Settings.of(config), limits_of(config)
    if settings.plan is not None and config.model_config.original_max_model_len != -1:
        prove(read_plan(Path(settings.plan), limits).buckets, limits)
    if settings.lengths is not None:
        read_lengths(settings.lengths)
    try:
        if (budget := Budget.parse([settings.budget] if settings.budget else ())) is not None:
            budget.programs_of(Costs.of_engine(config, target))
    except FxhloError as problem:
        raise SettingsError(f"{WHERE}: {problem.message}", next_step=problem.next_step) from None
    if settings.bundle is None:
        Cache()  # whose environment is checked
