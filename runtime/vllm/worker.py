"""FxhloWorker: vLLM's worker, which starts up in the order of vLLM's calls, then calls the runner once per step.

vLLM calls, in this order: init_device, load_model, get_kv_cache_spec, determine_available_memory,
initialize_from_config, compile_or_warm_up_model; then execute_model and sample_tokens in turn. A failure
is raised as one error that says what to do.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

from ...passes.hlo.plan import ONE_DEVICE, Plan
from ..core import pjrt, seal
from ..core.errors import FxhloError, UnsupportedError
from ..core.targets import Target
from . import collection, compat, front, interrupts, memory
from .engines import Share, independent
from .host import without_accelerator
from .layers import catalog
from .meshes import check_groups, plan_of
from .model import build_model
from .parallel import devices_of, experts_apart
from .plugin import version
from .pooling import PoolingRunner
from .profiling.profiler import Profiler
from .progress import Progress
from .runner import Runner
from .states.groups import groups_of, specs_for_vllm
from .states.spec import StateSpec
from .steps.options import StepOptions
from .steps.planning.engine import check_settings
from .steps.steps import Steps, prepare

logger = compat.init_logger("vllm.fxhlo.worker")
TARGET = "cpu"
"""The target on which steps run."""


class FxhloWorker(compat.WorkerBase):
    """One process, one device, one runner."""

    def __init__(
        self,
        vllm_config: compat.VllmConfig,
        local_rank: int,
        rank: int,
        distributed_init_method: str,
        is_driver_worker: bool = False,
    ) -> None:
        compat.check()
        self.share = Share.of(vllm_config)
        super().__init__(independent(vllm_config), local_rank, rank, distributed_init_method, is_driver_worker)
        self.model: torch.nn.Module | None = None
        self.kv_cache_config: compat.KVCacheConfig | None = None
        self.runner: Runner | PoolingRunner | None = None  # type: ignore[assignment]
        self._layers: dict[str, Any] = {}
        self._profiler: Profiler | None = None

    # -- start-up --------------------------------------------------------------------------------------------------

    def init_device(self) -> None:
        seal.reopen()  # an earlier engine of this process may have sealed it
        front.engine_begins()
        self.share.take(Target.parse(TARGET))
        self.device = torch.device("cpu")
        without_accelerator()
        if multiprocessing.parent_process() is not None:
            interrupts.install()
            collection.freeze_here()
            # A forked process has torch's thread pool without its threads, and would wait for them; capture needs none.
            torch.set_num_threads(1)
        logger.info("fxhlo %s serves with vLLM %s; target %s", metadata.version("fxhlo"), version(), TARGET)
        compat.start_one_process(self.vllm_config)
        compat.set_random_seed(self.model_config.seed)
        with _logged("begin a profile"):
            self._profiler = Profiler(self)

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        if load_dummy_weights:
            raise UnsupportedError("fxhlo does not support elastic expert parallelism yet")
        with _logged("load the model"):
            check_settings(self.vllm_config)
            if self.model_config.has_inner_state:
                self._check_slots()
            if devices_of(self.vllm_config) > 1:
                self._check_mesh()
            self.model = build_model(self.vllm_config, weights=True, unread=self._unread)
            self._layers = compat.layers_of(self.vllm_config)
            if self.cache_config.enable_prefix_caching and self.slot_bytes():
                raise UnsupportedError(
                    "fxhlo does not cache the states of recurrent layers yet",
                    next_step="start with --no-enable-prefix-caching",
                )

    def _unread(self) -> set[str]:
        """Names of parameters that no step reads; asked for where the files lack some, so it alone imports what captures."""
        from .steps.capture import unread_parameters

        return unread_parameters(self.vllm_config)

    def _check_slots(self) -> None:
        """Checks that the states with a row per request fit, before the weights are read: their sizes are those of the layers."""
        build_model(self.vllm_config, weights=False)
        self._layers = compat.layers_of(self.vllm_config)
        memory.check_slots(self.slot_bytes(), self.scheduler_config.max_num_seqs, memory.free_bytes())

    def _check_mesh(self) -> None:
        """Checks that the devices are there and divide the model, before the weights are read."""
        model = build_model(self.vllm_config, weights=False)
        self._layers = compat.layers_of(self.vllm_config)
        if specs := specs_for_vllm(self.states()):
            groups = compat.cache_groups(self.vllm_config, specs)
            check_groups(self.states(), groups_of(groups, self.model_config.max_model_len))
        pjrt.device(TARGET, mesh=self.plan(model).mesh)

    def plan(self, model: torch.nn.Module) -> Plan:
        """How the model lies on the engine's devices."""
        devices = devices_of(self.vllm_config)
        return (
            ONE_DEVICE
            if devices == 1
            else plan_of(
                model,
                self._layers,
                self.states(),
                devices,
                experts_apart=experts_apart(self.vllm_config),
                family=Target.parse(TARGET).family,
            )
        )

    def slot_bytes(self) -> int:
        """Bytes of the states that have a row per request."""
        sizes = {"num_slots": StepOptions.of(self.vllm_config).slots}
        return sum(state.bytes_in(sizes) for state in self.states() if state.rows == "slots")

    def get_model(self) -> torch.nn.Module:
        assert self.model is not None
        return self.model

    def get_supported_tasks(self) -> tuple[str, ...]:
        """What vLLM's front end may ask for: "generate", or the tasks of the model's pooler."""
        if self.model_config.runner_type == "generate":
            return ("generate",)
        return tuple(sorted(self._pooler().get_supported_tasks()))

    def _pooler(self) -> compat.Pooler:
        pooler = getattr(self.get_model(), "pooler", None)
        if not isinstance(pooler, compat.Pooler):
            raise UnsupportedError(
                f"vLLM's {type(self.get_model()).__name__} has no pooler",
                next_step="use --runner generate, or --convert with embed or classify",
            )
        return pooler

    def get_kv_cache_spec(self) -> dict[str, compat.KVCacheSpec]:
        """Each layer's state, as vLLM's cache manager takes it. Raises UnsupportedError for other kinds of layers.

        Where the batch assigns the rows of all states, these are vLLM's own specs of the layers, a block a request: without any, vLLM
        takes the model for an encoder. Beside a KV cache they are left out, since vLLM would make groups of unlike layers' blocks.
        """
        states = self.states()
        own = {state.layer: self._layers[state.layer] for state in states if state.rows == "slots"}
        return specs_for_vllm(states) or {
            name: layer.get_kv_cache_spec(self.vllm_config) for name, layer in own.items()
        }

    def states(self) -> tuple[StateSpec, ...]:
        """The states of the model's layers."""
        return catalog.states(self._layers, self.cache_config.block_size)

    def determine_available_memory(self) -> int:
        """Bytes for the KV cache, the same on every start of an engine, so that cached programs fit."""
        with _logged("find memory for the KV cache"):
            groups = compat.cache_groups(self.vllm_config, self.get_kv_cache_spec())
            block, longest = compat.bytes_of_one_request(self.vllm_config, groups)
            slots, blocks = self.slot_bytes(), self.cache_config.num_gpu_blocks_override
            if not any(state.rows == "blocks" for state in self.states()):
                # vLLM's first block is for no request, like our first slot
                return (blocks or StepOptions.of(self.vllm_config).slots) * block
            if self.model_config.original_max_model_len == -1:
                longest = 0  # vLLM chooses a length that fits
            plan = self.plan(self.get_model())
            weights = sum(one.nbytes * plan.copies(name) for name, one in self.get_model().named_parameters())
            total = self.share.memory(memory.total_bytes())
            wanted = memory.wanted_bytes(self.cache_config, compat.kv_cache_space(), weights + slots, longest, total)
            if self.cache_config.kv_cache_memory_bytes is not None:
                wanted *= plan.mesh.devices  # it is of one device
            wanted //= plan.cache_copies
            if blocks is not None:
                memory.check_blocks(blocks, -(-longest // block), self.model_config.max_model_len)
                return max(wanted, blocks * block)
            return memory.kv_cache_bytes(wanted, block, longest, (memory.free_bytes() - slots) // plan.cache_copies)

    def initialize_from_config(self, kv_cache_config: compat.KVCacheConfig) -> None:
        self.kv_cache_config = kv_cache_config

    def compile_or_warm_up_model(self) -> compat.CompilationTimes:
        """Loads or compiles every program that the scheduler can need; afterwards the process compiles nothing."""
        assert self.kv_cache_config is not None
        model, began = self.get_model(), time.perf_counter()
        with _logged("prepare the programs"), Progress(logger) as progress:
            steps = prepare(
                self.vllm_config,
                model,
                lambda: build_model(self.vllm_config, weights=False, like=model),
                self.states(),
                groups_of(self.kv_cache_config.kv_cache_groups, self.model_config.max_model_len),
                self.kv_cache_config.num_blocks,
                progress,
                self.plan(model),
            )
            self.runner = self._make_runner(steps)
        if self._profiler is not None:
            self._profiler.ready()
        return compat.CompilationTimes(language_model=time.perf_counter() - began, encoder=0.0)

    def _make_runner(self, steps: Steps) -> Runner | PoolingRunner:
        assert self.kv_cache_config is not None
        if self.model_config.runner_type == "pooling":
            return PoolingRunner(self.vllm_config, self.kv_cache_config, steps, self._pooler())
        return Runner(self.vllm_config, self.kv_cache_config, steps)

    def update_max_model_len(self, max_model_len: int) -> None:
        """Sets the length that vLLM found to fit into the cache (--max-model-len auto); programs are made afterwards."""
        self.model_config.max_model_len = max_model_len

    # -- serving ---------------------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: compat.SchedulerOutput) -> compat.ModelRunnerOutput | None:
        assert self.runner is not None
        return self.runner.execute(scheduler_output)

    def sample_tokens(
        self, grammar_output: compat.GrammarOutput | None
    ) -> compat.ModelRunnerOutput | compat.AsyncModelRunnerOutput:
        assert self.runner is not None
        return self.runner.sample(grammar_output)

    def release_late_interaction_query_cache(self, query_keys: list[str]) -> None:
        """Drops queries of late interaction, as vLLM's server asks where their documents will not come."""
        if isinstance(self.runner, PoolingRunner):
            self.runner.forget_queries(query_keys)

    def take_draft_token_ids(self) -> None:
        """No-op: there are no draft tokens."""

    def execute_dummy_batch(self) -> None:
        """No-op: engines that run in step with each other (data parallelism with experts) share no computation here."""

    def reset_encoder_cache(self) -> None:
        """No-op: there is no encoder cache."""

    def synchronize_device(self) -> None:
        """Waits for the steps that were started."""
        if self.runner is not None:
            self.runner.settle()

    def profile(
        self,
        is_start: bool = True,
        profile_prefix: str | None = None,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
    ) -> None:
        """Begins or ends a profile, for vLLM's /start_profile and /stop_profile."""
        assert self._profiler is not None
        if is_start:
            self._profiler.start(profile_prefix, delay_iterations, max_iterations)
        else:
            self._profiler.stop()

    def sleep(self, level: int = 1) -> None:
        raise UnsupportedError("fxhlo does not support sleep mode yet", next_step="stop the engine and start it again")

    def shutdown(self) -> None:
        """Frees the device's memory and unseals the process."""
        front.engine_ends(sys.exc_info()[1])  # vLLM calls this in the handler of the exception that ended the engine
        if self._profiler is not None:
            self._profiler.stop()
        self.runner = self.model = None
        self._layers = {}
        seal.reopen()


@contextmanager
def _logged(doing: str) -> Iterator[None]:
    """Wraps a part of the start: SIGTERM ends it at once, and fxhlo's own errors are logged before vLLM wraps them and reported
    to the front end."""
    try:
        with interrupts.ending_at_once():
            yield
    except FxhloError as problem:
        logger.error("fxhlo could not %s: %s", doing, problem)
        front.leave(problem)
        raise
