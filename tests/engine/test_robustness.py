"""What goes wrong around an engine: it is killed, its cache is damaged, the disk is full, another one starts beside it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from serving import TOKENS, Server

HERE = Path(__file__).parent
SIZES = {
    "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 8, "skip_tokenizer_init": True, "dtype": "float32",
    "load_format": "dummy", "kv_cache_memory_bytes": 16 << 20, "enable_prefix_caching": False, "disable_log_stats": True,
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 96, "max_position_embeddings": 128, "torch_dtype": "float32",
}  # fmt: skip
RUN = {"prompts": [[5, 6, 7]], "sampling": {"temperature": 0, "max_tokens": 4, "ignore_eos": True, "detokenize": False}}


class Engines:
    """Starts engines of one tiny model on one cache of programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self._count = 0
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG))

    def start(self, limit: int | None = None) -> subprocess.Popen:
        """limit: bytes that a file may grow to, as on a disk that is full."""
        self._count += 1
        out = str(self.folder / f"{self._count}.json")
        job = {"engine": {"model": str(self.folder / "model"), **SIZES}, "runs": [RUN], "out": out}
        environment = {
            **os.environ, "VLLM_LOGGING_LEVEL": "INFO", "HF_HUB_OFFLINE": "1", "FXHLO_CACHE_DIR": str(self.cache),
            "FXHLO_NATIVE": "0",  # a cache of its own would make each of these tests build the kernels
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "generate.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=environment, cwd=self.folder,
            preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        process.stdin = None
        process.out = out  # type: ignore[attr-defined]
        return process

    def ended(self, process: subprocess.Popen) -> tuple[int, str]:
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def tokens(self, process: subprocess.Popen) -> tuple[list[int], str]:
        code, said = self.ended(process)
        assert code == 0, said[-6000:]
        return json.loads(Path(process.out).read_text())[0][0]["tokens"], said  # type: ignore[attr-defined]

    def programs(self) -> list[Path]:
        """The files of the one entry in the cache."""
        (entry,) = [path for path in (self.cache / "entries").iterdir() if not path.name.startswith(".")]
        return [path for path in entry.rglob("*") if path.is_file()]


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


@pytest.mark.conformance
def test_two_engines_on_one_empty_cache_make_its_programs_once(engines: Engines) -> None:
    first, second = engines.start(), engines.start()
    (tokens, said), (others, answered) = engines.tokens(first), engines.tokens(second)
    assert tokens == others
    made = ["capturing the model" in text for text in (said, answered)]
    assert sorted(made) == [False, True], "one of them makes the programs, the other waits for it"


@pytest.mark.conformance
@pytest.mark.parametrize("damage", ["cut short", "another byte", "another byte, at the same time"])
def test_a_damaged_program_is_made_again(engines: Engines, damage: str) -> None:
    tokens, _ = engines.tokens(engines.start())
    largest = max(engines.programs(), key=lambda path: path.stat().st_size)
    before, data = largest.stat(), bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data[: len(data) // 2] if damage == "cut short" else data)
    if "same time" in damage:
        os.utime(largest, ns=(before.st_atime_ns, before.st_mtime_ns))
    again, said = engines.tokens(engines.start())
    assert again == tokens
    assert "damaged" in said
    assert "capturing the model" in said
    _, third = engines.tokens(engines.start())
    assert "capturing the model" not in third, "what was made again is kept"


@pytest.mark.conformance
def test_a_full_disk_is_named_and_leaves_nothing_behind(engines: Engines) -> None:
    code, said = engines.ended(engines.start(limit=20_000))
    assert code != 0
    assert "cannot be written: File too large" in said
    assert str(engines.cache) in said
    assert "next:" in said
    files = [path for path in engines.cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    left = [path for path in files if path.parent.name != "imports"]  # small files, which are whole
    assert not left, "what was begun is removed"
    tokens, _ = engines.tokens(engines.start())
    assert len(tokens) == 4


@pytest.fixture
def server(model: Path) -> Iterator[Server]:
    with Server(
        model, "--served-model-name", "smol", "--max-model-len", "512", "--max-num-seqs", "8", *TOKENS
    ) as running:
        running.wait()
        yield running


def test_an_engine_that_is_killed_ends_the_server_and_its_streams(server: Server) -> None:
    """No request hangs: streams end with an error, later requests are refused, and the server ends by itself, saying why."""
    request = {"model": "smol", "prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "stream": True}

    def follow() -> str:
        with server.open("/v1/completions", request) as stream:
            started.append(stream.readline())
            return stream.read().decode()

    started: list[bytes] = []
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(follow) for _ in range(2)]
        while len(started) < 2:
            assert not any(stream.done() for stream in streams)
        engine = server.engine()
        engine.send_signal(signal.SIGKILL)
        for stream in streams:
            with contextlib.suppress(OSError):  # a connection that breaks is an answer as well
                assert "[DONE]" not in stream.result(timeout=60) or '"error"' in stream.result()
    with pytest.raises((urllib.error.HTTPError, OSError)):
        server.post("/v1/completions", {**request, "stream": False})
    code, log = server.end()
    assert code == 1, log[-3000:]
    assert "EngineDeadError" in log
    assert not psutil.pid_exists(engine.pid) or engine.status() == psutil.STATUS_ZOMBIE
