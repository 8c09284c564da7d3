"""The vLLM plugin: platform, attention backend, worker and runner. The only user of vLLM; read from version 0.32.0.

Reading order: plugin.py (what vLLM finds), platform.py (what it asks of a device), worker.py (start-up), runner.py (one
step), batch/ (requests as rows, and a step's inputs), steps/ (a step's inputs, the closed set of programs, making and running
them), layers/ and states/ (kinds of layers and their states). docs/vllm_contract.md lists the calls with their reasons.
"""

if __name__ != "fxhlo.runtime.vllm":
    raise ImportError("import this package as fxhlo.runtime.vllm: under its bare name there would be two of each class")
