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
from dataclasses import replace
from importlib import metadata

import torch

from ...passes.hlo.plan import Plan
from ..core import pjrt, seal
from ..core.errors import FxhloError, UnsupportedError
from ..core.mesh import ONE_DEVICE, Mesh
from ..core.selection import Selection, select
from ..core.targets import Target
from . import collection, compat, forking, front, interrupts, memory
from .caches import Caches
from .engines import Share, independent
from .host import without_accelerator
from .hosts import Hosts
from .model import build_model, weight_bytes
from .parallel import all_devices_of, hosts_of, of_worker, stages_of
from .places import Places
from .plugin import version
from .pooling import PoolingRunner
from .profiling.profiler import Profiler
from .progress import Progress
from .runner import Runner
from .settings import Settings
from .stages import Stages
from .steps.engine_bundle import EngineBundle
from .steps.identity import of_engine, of_hosts, of_options
from .steps.options import StepOptions
from .steps.planning.engine import check_settings
from .steps.steps import Steps, prepare

logger = compat.init_logger("vllm.fxhlo.worker")


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
        self.hosts: Hosts | None = None
        own = of_worker(independent(vllm_config))
        super().__init__(own, local_rank, rank, distributed_init_method, is_driver_worker)
        self.model: torch.nn.Module | None = None
        self.kv_cache_config: compat.KVCacheConfig | None = None
        self.runner: Runner | PoolingRunner | None = None  # type: ignore[assignment]
        self._caches: Caches | None = None
        self._device: pjrt.Device
        self._places: Places | None = None
        self._bundle: EngineBundle | None = None
        self._asks_for_blocks = False
        """Whether the engine's options say how many KV blocks there are, or how long one is, beside a bundle that has its own."""
        self._profiler: Profiler | None = None
        self._problem: Exception | None = None

    # -- start-up --------------------------------------------------------------------------------------------------

    def init_device(self) -> None:
        seal.reopen()  # an earlier engine of this process may have sealed it
        front.engine_begins()
        self.device = torch.device("cpu")
        without_accelerator()
        if multiprocessing.parent_process() is not None:
            forking.leave_front()
            interrupts.install()
            collection.freeze_here()
            # A forked process has torch's thread pool without its threads, and would wait for them; capture needs none.
            torch.set_num_threads(1)
        with self._starting("meet the other hosts"):
            if hosts_of(self.vllm_config) > 1:
                self.hosts = Hosts.join(self.vllm_config, self.rank)
        with self._starting("start the device"):
            settings = Settings.of(self.vllm_config)
            bundle = None if settings.bundle is None else EngineBundle.open(settings.bundle)
            selection = selected(settings, bundle)
            logger.info("fxhlo %s serves with vLLM %s; target %s", metadata.version("fxhlo"), version(), selection)
            self.share.take(selection.target)
            if self.hosts is not None:
                self.hosts.start(selection.target)
            self._device = started(selection, all_devices_of(self.vllm_config))
            if self.hosts is not None:
                self.hosts.compare(of_hosts(self.vllm_config, self._target))
            if bundle is not None:
                self._take(bundle)
        compat.start_one_process(self.vllm_config)
        compat.set_random_seed(self.model_config.seed)
        with self._starting("begin a profile"):
            self._profiler = Profiler(self)

    def _take(self, bundle: EngineBundle) -> None:
        """Checks what the config alone shows. The bundle's programs have a number of KV blocks, which is the cache's where nobody asks for one."""
        bundle.check_early(of_engine(self.vllm_config, self._target))
        cache = self.cache_config
        asked = cache.num_gpu_blocks_override is not None or cache.kv_cache_memory_bytes is not None
        if not asked:
            cache.num_gpu_blocks_override = bundle.num_blocks
        self._asks_for_blocks = asked or cache.user_specified_block_size
        self._bundle = bundle

    @property
    def _target(self) -> Target:
        return self._device.target

    @property
    def places(self) -> Places:
        """Where the engine's arrays go."""
        assert self._places is not None, "load_model comes first"
        return self._places

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        if load_dummy_weights:
            raise UnsupportedError("fxhlo does not support elastic expert parallelism yet")
        with self._starting("load the model"):
            check_settings(self.vllm_config, self._target)
            several = all_devices_of(self.vllm_config) > 1
            if self.model_config.has_inner_state or not self._device.is_host or several or self._asks_for_blocks:
                self._check_sizes()
            self.model = self._loaded()
            self._caches = Caches(self.vllm_config, compat.layers_of(self.vllm_config), self._target)
            self._places = self._places or Places(self._target, self._plan(self.model))

    def _unread(self) -> set[str]:
        """Names of parameters that no step reads; asked for where the files lack some, so it alone imports what captures."""
        from .steps.capture import unread_parameters

        return unread_parameters(self.vllm_config)

    def _loaded(self) -> torch.nn.Module:
        """The model with its weights: on the host, or streamed to a device that is not, or to several."""
        if self._places is None:
            return build_model(self.vllm_config, weights=True, unread=self._unread)
        stream = self._places.stream()
        model = build_model(self.vllm_config, weights=True, unread=self._unread, stream=stream)
        self._places.plan = self._plan(model)  # loading makes parameters too, such as a head of its own
        self._places.take(stream.finish(model))
        total, most = memory.size(weight_bytes(model, self._places.plan)), memory.size(stream.peak)
        logger.info(
            "%s of weights are on the device; the host read %s of them and held at most %s at a time",
            total, memory.size(stream.read), most,
        )  # fmt: skip
        return model

    def _plan(self, model: torch.nn.Module) -> Plan:
        """How the model lies on the engine's devices."""
        return Caches(self.vllm_config, compat.layers_of(self.vllm_config), self._target).plan(model)

    def _check_sizes(self) -> None:
        """Checks before the weights are read, by the sizes of the layers: they and the states with a row per request fit, the devices
        of a mesh divide them, and a bundle has the cache that is asked for."""
        model = build_model(self.vllm_config, weights=False)
        caches = Caches(self.vllm_config, compat.layers_of(self.vllm_config), self._target)
        plan = caches.plan(model)
        several = all_devices_of(self.vllm_config) > 1
        if several or not self._device.is_host:
            self._places = Places(self._target, plan, self._stages(model), model)
        room, weights = self._room(plan), self._weights(model, plan)
        # several of the host's devices have copies, where one device of the host reads mapped files
        memory.check_weights(weights, replace(room, on_host=room.on_host and not several))
        memory.check_slots(caches.slot_bytes(plan), self.scheduler_config.max_num_seqs, room.free, room.place)
        if self._bundle is not None and self._asks_for_blocks:
            groups, num_blocks = caches.ahead(weights, room, plan, self._stages(model))
            options = StepOptions.of_engine(self.vllm_config, groups, self._target)
            self._bundle.check({"options": of_options(options), "num_blocks": num_blocks}, whole=False)

    def _stages(self, model: torch.nn.Module) -> Stages:
        """Which layers each stage of the pipeline has."""
        return Stages.of(model, self.model_config.get_total_num_hidden_layers(), stages_of(self.vllm_config))

    def _weights(self, model: torch.nn.Module, plan: Plan) -> int:
        """Bytes of the weights on all devices of the plan; of a pipeline, where the stage with the most is. The host has all of them."""
        stages = self._stages(model)
        if stages.count == 1 or self._device.is_host:
            return weight_bytes(model, plan)
        return stages.weights(model, lambda name, one: one.nbytes * plan.copies(name))

    def _room(self, plan: Plan) -> memory.Room:
        """The memory for weights, caches and programs of all devices of a plan; of the host's, which engines share, this one's part. Devices
        of other hosts are taken as like this one's: where they differ, vLLM takes the least number of blocks."""
        room = memory.Room.of(self._device).of_all(plan.mesh.devices, hosts_of(self.vllm_config))
        return replace(room, total=self.share.memory(room.total)) if room.on_host else room

    @property
    def caches(self) -> Caches:
        """What the layers keep between steps."""
        assert self._caches is not None, "load_model comes first"
        return self._caches

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
        """Each layer's state, as vLLM's cache manager takes it. Raises UnsupportedError for other kinds of layers."""
        return self.caches.for_vllm()

    def determine_available_memory(self) -> int:
        """Bytes for the KV cache, the same on every start of an engine, so that cached programs fit."""
        with self._starting("find memory for the KV cache"):
            places, model = self.places, self.get_model()
            plan = places.plan
            return self.caches.bytes_for_vllm(self._weights(model, plan), self._room(plan), plan, places.stages)

    def initialize_from_config(self, kv_cache_config: compat.KVCacheConfig) -> None:
        self.kv_cache_config = kv_cache_config

    def compile_or_warm_up_model(self) -> compat.CompilationTimes:
        """Loads or compiles every program that the scheduler can need; afterwards the process compiles nothing."""
        assert self.kv_cache_config is not None
        model, began = self.get_model(), time.perf_counter()
        with self._starting("prepare the programs"), Progress(logger) as progress:
            steps = prepare(
                self.vllm_config,
                model,
                lambda: build_model(self.vllm_config, weights=False, like=model),
                self.caches.states(),
                self.caches.groups(self.kv_cache_config),
                self.caches.sizes(self.kv_cache_config.num_blocks),
                progress,
                self.places,
                self._bundle,
            )
            if self.model_config.runner_type == "pooling":
                self.places.give_back(model, self._pooler())
            self.runner = self._make_runner(steps)
        if self._profiler is not None:
            self._profiler.ready()
        return compat.CompilationTimes(language_model=time.perf_counter() - began, encoder=0.0)

    def _make_runner(self, steps: Steps) -> Runner | PoolingRunner:
        assert self.kv_cache_config is not None
        if self.model_config.runner_type == "pooling":
            return PoolingRunner(self.vllm_config, self.kv_cache_config, steps, self._pooler())
        apart = None if self.hosts is None else self._failed
        return Runner(self.vllm_config, self.kv_cache_config, steps, apart)

    def update_max_model_len(self, max_model_len: int) -> None:
        """Sets the length that vLLM found to fit into the cache (--max-model-len auto); programs are made afterwards."""
        self.model_config.max_model_len = max_model_len

    @contextmanager
    def _starting(self, doing: str) -> Iterator[None]:
        """Wraps a part of the start: SIGTERM ends it at once, and fxhlo's own errors are logged before vLLM wraps them and reported
        to the front end, and to the other hosts."""
        try:
            with interrupts.ending_at_once():
                yield
        except FxhloError as problem:
            logger.error("fxhlo could not %s: %s", doing, problem)
            front.leave(problem)
            if self.hosts is not None:
                self.hosts.fail(problem)
            raise

    # -- serving ---------------------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: compat.SchedulerOutput) -> compat.ModelRunnerOutput | None:
        assert self.runner is not None
        try:
            return self.runner.execute(scheduler_output)
        except Exception as problem:
            self._failed(problem)
            raise

    def sample_tokens(
        self, grammar_output: compat.GrammarOutput | None
    ) -> compat.ModelRunnerOutput | compat.AsyncModelRunnerOutput:
        assert self.runner is not None
        try:
            return self.runner.sample(grammar_output)
        except Exception as problem:
            self._failed(problem)
            raise

    def _failed(self, problem: Exception) -> None:
        """Notes that a step failed: vLLM ends the engine, in order where the worker has a process of its own."""
        self._problem = self._problem or problem
        if self.hosts is not None:
            self.hosts.fail(problem)

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

    def _cause(self) -> BaseException | None:
        """What ended the engine; None for a request to end. vLLM shuts a worker down in the handler of the exception, or, where the
        worker has a process of its own, after it."""
        problem = self._problem or sys.exc_info()[1]
        parent = multiprocessing.parent_process() if self.hosts is not None else None
        if problem is None and parent is not None and not parent.is_alive():
            return FxhloError("the process that started the worker has ended, or was killed")
        return problem

    def shutdown(self) -> None:
        """Frees the device's memory and unseals the process."""
        problem = self._cause()
        front.engine_ends(problem)
        if self.hosts is not None:
            if not isinstance(problem, SystemExit) and (problem or self.runner is None):
                self.hosts.fail(problem or "its worker ended before it was ready")
            self.hosts.leave()
        if self._profiler is not None:
            self._profiler.stop()
        self.runner = self.model = self._places = self._caches = None
        seal.reopen()


def selected(settings: Settings, bundle: EngineBundle | None) -> Selection:
    """The target of the settings, or the environment, or what is found; a topology that nobody named is the bundle's."""
    selection = select(settings.target)
    if bundle is not None and selection.target == Target(bundle.target.name):
        return replace(selection, target=bundle.target)
    return selection


def started(selection: Selection, devices: int = 1) -> pjrt.Device:
    """Starts the first device of the target, and looks for as many. Raises UnsupportedError where its plugin does not start, or some are
    not here."""
    try:
        mesh = ONE_DEVICE if devices == 1 else Mesh((("model", devices),))
        pjrt.device(selection.target, mesh=mesh)  # first: the number of the CPU's is fixed when it starts
        return pjrt.device(selection.target)
    except UnsupportedError as problem:
        raise UnsupportedError(
            f"the engine cannot run on {selection}: {problem.message}", next_step=problem.next_step
        ) from problem
