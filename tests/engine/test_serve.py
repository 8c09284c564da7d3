"""`vllm serve` with the plugin: completions and chat, streamed and whole; what one request asks in vain harms no other."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import TOKENS, Server, free_port

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
CHAT = {"model": "smol", "messages": QUESTION, "temperature": 0.0, "max_tokens": 32}


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(
        model, "--served-model-name", "smol", "--max-model-len", "512", "--max-num-seqs", "8", *TOKENS
    ) as running:
        running.wait()
        yield running


def text(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"].strip()


def events(lines: Iterator[bytes]) -> list[dict[str, Any]]:
    """The server-sent events of a stream, without the closing one, which must be there."""
    data = [line.decode().removeprefix("data: ").strip() for line in lines if line.startswith(b"data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


def test_chat(server: Server) -> None:
    answer = server.post("/v1/chat/completions", CHAT)
    assert text(answer) == ANSWER
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 5


def test_chat_streams_token_by_token(server: Server) -> None:
    with server.open("/v1/chat/completions", {**CHAT, "stream": True}) as stream:
        chunks = events(iter(stream))
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert "".join(pieces).strip() == ANSWER
    assert sum(bool(piece) for piece in pieces) >= 5


def test_completions_whole_and_streamed(server: Server) -> None:
    request = {"model": "smol", "prompt": "One, two, three, four,", "temperature": 0.0, "max_tokens": 8, "logprobs": 2}
    whole = server.post("/v1/completions", request)["choices"][0]
    assert "five" in whole["text"]
    assert len(whole["logprobs"]["top_logprobs"]) == 8
    assert all(value <= 0 for value in whole["logprobs"]["token_logprobs"])
    with server.open("/v1/completions", {**request, "stream": True}) as stream:
        chunks = events(iter(stream))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]) == whole["text"]


def test_structured_output_is_valid(server: Server) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = server.post("/v1/chat/completions", {**CHAT, "response_format": form})
    assert json.loads(text(answer))["city"] in ("Paris", "Rome")


def test_a_seed_gives_the_same_answer_in_any_company(server: Server) -> None:
    def ask(seed: int) -> str:
        return text(server.post("/v1/chat/completions", {**CHAT, "temperature": 1.0, "top_p": 0.95, "seed": seed}))

    alone = [ask(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": "word " * 2000}, "maximum context length"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"temperature": -1.0}, "temperature"),
        ({"prompt": [[10**6]]}, "vocab"),
        ({"logit_bias": {str(token): 1.0 for token in range(1100)}}, "logit_bias"),
    ],
    ids=["prompt too long", "refused parameter", "bad parameter", "bad token id", "too many biases"],
)
def test_a_bad_request_is_answered_with_400_and_others_go_on(server: Server, change: dict, named: str) -> None:
    request = {"model": "smol", "prompt": "Hello", "max_tokens": 4, **change}
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.post, "/v1/chat/completions", CHAT)
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.post("/v1/completions", request)
        assert text(other.result()) == ANSWER
    body = caught.value.read().decode()
    assert caught.value.code == 400, body
    assert named in body
    assert text(server.post("/v1/chat/completions", CHAT)) == ANSWER


def test_nothing_is_compiled_while_serving(server: Server) -> None:
    """Every way to compile in the engine's process checks the seal first; it would have ended these tests with errors."""
    with urllib.request.urlopen(f"{server.url}/health") as health:
        assert health.status == 200
    log = server.log()
    assert "programs loaded" in log
    assert "after the engine is ready" not in log


def test_a_server_that_is_asked_to_end_right_after_an_answer_ends_well(server: Server) -> None:
    """vLLM kills the engine at once, here one that has no time to end by itself. The last of the tests with this server."""
    assert text(server.post("/v1/chat/completions", CHAT)) == ANSWER
    server.engine().send_signal(signal.SIGSTOP)
    server.terminate()
    code, log = server.end()
    assert code == 0, log[-3000:]


# --- what cannot start says why --------------------------------------------------------------------------------------


def failed(folder: Path | str, *options: str) -> str:
    """What `vllm serve` writes where it ends with an error."""
    with Server(folder, *options) as server:
        code, log = server.end()
    assert code not in (0, None), log
    tail = log[log.rindex("vllm could not start.") :] if "vllm could not start." in log else log
    assert "Traceback" not in tail, log[-4000:]
    assert "next:" in tail, log[-4000:]
    return tail


def copied(model: Path, into: Path, **config: Any) -> Path:
    """The model folder without its weights, with another config."""
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (into / file.name).write_bytes(file.read_bytes())
    old = json.loads((model / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**old, **config}))
    return into


def test_an_option_of_fxhlo_is_refused_before_there_is_an_engine(model: Path) -> None:
    """Without a traceback in all of the log: vLLM prints those of an engine's process."""
    with Server(model, "--additional-config", '{"fxhlo": {"budget": "much"}}') as server:
        code, log = server.end()
    assert code == 1 and "Traceback" not in log, log[-4000:]
    assert "vllm could not start.\n--additional-config: the budget 'much' is not understood" in log


@pytest.mark.conformance  # tests/vllm/test_loading.py has the sentence
def test_no_weights(model: Path, tmp_path: Path) -> None:
    assert "no weights" in failed(copied(model, tmp_path))


@pytest.mark.conformance
def test_truncated_weights(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path)
    with (model / "model.safetensors").open("rb") as whole:
        (folder / "model.safetensors").write_bytes(whole.read(1_000_000))
    assert "truncated or damaged" in failed(folder)


def test_unknown_architecture(model: Path, tmp_path: Path) -> None:
    said = failed(copied(model, tmp_path, architectures=["NobodysForCausalLM"], model_type="llama"))
    assert "NobodysForCausalLM" in said


@pytest.mark.conformance
def test_a_head_size_that_nothing_supports(model: Path, tmp_path: Path) -> None:
    said = failed(copied(model, tmp_path, head_dim=63), "--load-format", "dummy")
    assert "63" in said


@pytest.mark.conformance
def test_a_port_in_use(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        said = failed(model, "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert "port" in said


@pytest.mark.conformance  # tests/vllm/test_memory.py has the sentence
def test_too_little_memory_for_one_kv_block(model: Path) -> None:
    said = failed(model, "--kv-cache-memory-bytes", "1000")
    assert "too little memory for one KV block" in said
