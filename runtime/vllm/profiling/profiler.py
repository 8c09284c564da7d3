"""Profiler: begins and ends profiles of one worker, for FXHLO_PROFILE and for vLLM's endpoints /start_profile and /stop_profile.

Comes in: the folder that FXHLO_PROFILE or vLLM's `--profiler-config` names. Goes out: a trace per profile in it. Guaranteed: a folder that cannot be
written ends the start; nothing that goes wrong with a profile later ends the serving.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import compat
from .recorder import Recorder
from .trace import ProfileError, TraceFile

logger = compat.init_logger("vllm.fxhlo.profiler")


class Profiler:
    """The profiles of one worker."""

    def __init__(self, worker: Any) -> None:
        """worker: an FxhloWorker. Raises ProfileError for a folder that cannot be written."""
        config = worker.vllm_config.profiler_config
        own = os.environ.get("FXHLO_PROFILE")
        self._worker = worker
        self._from_start = bool(own)
        self._folder = Path(own or config.torch_profiler_dir or "")
        self._named = bool(own or config.torch_profiler_dir)
        self._delay, self._most = config.delay_iterations, config.max_iterations
        self._recorder: Recorder | None = None
        self._taken = 0
        if self._named:
            trial = self._trace("trial")  # what cannot be written is found out before anything is served
            trial.close()
            trial.path.unlink()

    def ready(self) -> None:
        """Begins the profile that FXHLO_PROFILE asks for."""
        if self._from_start:
            self.start()

    def start(self, prefix: str | None = None, delay: int | None = None, most: int | None = None) -> None:
        """Begins a profile; one that runs is ended first. delay, most: steps, None for what --profiler-config says. Raises ProfileError."""
        if not self._named:
            raise ProfileError(
                "no folder was named for profiles",
                next_step='start with FXHLO_PROFILE=DIR, or with --profiler-config \'{"profiler": "torch", "torch_profiler_dir": "DIR"}\'',
            )
        self.stop()
        self._taken += 1
        trace = self._trace(f"{prefix}_{self._taken}" if prefix else str(self._taken))
        self._recorder = Recorder(
            self._worker,
            trace,
            self._failed,
            delay=self._delay if delay is None else delay,
            most=self._most if most is None else most,
        )
        logger.info("A profile is written to %s", trace.path)

    def stop(self) -> None:
        """Ends the profile that runs, if there is one."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.stop()
            logger.info("The profile has %d steps; lower-model profile %s shows them", recorder.steps, self._folder)

    def _trace(self, name: str) -> TraceFile:
        return TraceFile(self._folder, f"fxhlo-{os.getpid()}-{name}")

    def _failed(self, problem: OSError) -> None:
        """Tells of a profile that cannot be written; the serving goes on."""
        logger.error("The profile has ended: %s cannot be written: %s", self._folder, problem.strerror)
