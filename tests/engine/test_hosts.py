"""One engine on two hosts: two `vllm serve` on loopback, two of the CPU's devices each, in one mesh."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import Server, free_port
from test_meshes import CONFIG, LATENT, answers

PROMPTS = [[(7 * row + 3 * at) % 300 + 5 for at in range(5 + 9 * row)] for row in range(4)]
"""Those of meshes.py."""
SAMPLING = ({"temperature": 0}, {"temperature": 0.8, "seed": 3, "top_p": 0.9})
OPTIONS = (
    "--tensor-parallel-size", "4", "--nnodes", "2", "--master-addr", "127.0.0.1", "--load-format", "dummy", "--dtype", "float32",
    "--max-model-len", "128", "--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--kv-cache-memory-bytes", str(16 << 20),
    "--skip-tokenizer-init", "--seed", "0", "--additional-config", '{"fxhlo": {"budget": "2"}}',
)  # fmt: skip
LOST = 30.0
"""Seconds in which everything ends once a host is lost."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


class Hosts:
    """Two servers of one engine; the second has none of its own (--headless)."""

    def __init__(self, stack: ExitStack, model: Path, *second: str, both: tuple[str, ...] = ()) -> None:
        self._model, port = model, ("--master-port", str(free_port()), *both)
        self.first = stack.enter_context(Server(model, *OPTIONS, *port, "--node-rank", "0"))
        self.second = stack.enter_context(Server(model, *OPTIONS, *port, "--node-rank", "1", "--headless", *second))

    def ask(self, prompt: list[int], sampling: dict[str, Any], count: int = 12) -> list[int]:
        """The tokens that follow a prompt."""
        request = {
            "model": str(self._model),
            "prompt": prompt,
            "max_tokens": count,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        return self.first.post("/v1/completions", request | sampling)["choices"][0]["token_ids"]

    def worker(self, server: Server | None = None) -> psutil.Process:
        """The worker of one host, by default the second."""
        children = psutil.Process((server or self.second)._process.pid).children(True)
        alive = [one for one in children if one.status() != psutil.STATUS_ZOMBIE]
        return next(one for one in alive if "VLLM::Worker" in " ".join(one.cmdline()))

    def ended(self, seconds: float) -> list[tuple[int | None, str]]:
        """Exit codes and logs of both."""
        deadline = time.monotonic() + seconds
        for one in (self.first, self.second):
            one._process.wait(max(0.1, deadline - time.monotonic()))
        return [(one._process.returncode, one.log()) for one in (self.first, self.second)]


@pytest.fixture
def hosts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with ExitStack() as stack:
        yield partial(Hosts, stack, folder / "model")


def test_the_tokens_of_one_process_and_an_end_where_a_host_is_lost(folder: Path, hosts: Any) -> None:
    both = hosts()
    right = answers(folder, [1])["1"]["tokens"]
    both.first.wait()

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for sampling, expected in zip(SAMPLING, right, strict=True):
            assert list(pool.map(lambda prompt, how=sampling: both.ask(prompt, how), PROMPTS)) == expected
        running = [pool.submit(both.ask, prompt, {"temperature": 0}, 100) for prompt in PROMPTS]
        time.sleep(0.3)
        both.worker().send_signal(signal.SIGKILL)
        (first, said), (second, there) = both.ended(LOST)
        assert all(isinstance(one.exception(LOST), (OSError, urllib.error.HTTPError)) for one in running)
    assert first == 1, said[-3000:]
    assert second == 1, there[-3000:]
    assert "the engine runs on 2 hosts, and one is lost: the worker on host 1" in said, said[-5000:]


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("config", "options"),
    [
        pytest.param({"num_key_value_heads": 1}, ("--decode-context-parallel-size", "2"), id="context"),
        pytest.param(LATENT, (), id="latents"),
    ],
)
def test_other_kinds_of_caches(config: dict[str, Any], options: tuple[str, ...], folder: Path, hosts: Any) -> None:
    right = answers(folder, [1], **config)["1"]["tokens"]
    both = hosts(both=options)
    both.first.wait()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for sampling, expected in zip(SAMPLING, right, strict=True):
            assert list(pool.map(lambda prompt, how=sampling: both.ask(prompt, how), PROMPTS)) == expected


@pytest.mark.conformance
def test_the_first_host_is_lost(hosts: Any) -> None:
    both = hosts()
    both.first.wait()
    both.worker(both.first).send_signal(signal.SIGKILL)
    (first, said), (second, there) = both.ended(LOST)
    assert (first, second) == (1, 1), said[-3000:] + there[-3000:]
    assert "one is lost: the worker on host 0" in there, there[-5000:]


@pytest.mark.conformance
def test_a_request_to_end_ends_both_in_order(hosts: Any) -> None:
    both = hosts()
    both.first.wait()
    both.first._process.send_signal(signal.SIGTERM)
    (first, said), (second, there) = both.ended(LOST)
    assert (first, second) == (0, 0), said[-3000:] + there[-3000:]
    assert "is lost" not in said + there


@pytest.mark.conformance
def test_hosts_that_differ_do_not_start(hosts: Any) -> None:
    both = hosts("--max-num-seqs", "8")
    (first, said), (second, there) = both.ended(240)
    assert (first, second) == (1, 1)
    for log in (said, there):
        assert "host 1 differs from the first one: --max-num-seqs is 4 in the first host's engine and 8 here" in log, (
            log[-5000:]
        )
