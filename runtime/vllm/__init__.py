"""The vLLM plugin: platform, attention backend, worker and runner. The only user of vLLM; read from version 0.32.0.

Reading order: plugin.py (what vLLM finds), platform.py (what it asks of a device), worker.py (start-up), runner.py
(one step), batch/ (the requests and the step's inputs), steps/ (the programs). docs/vllm_contract.md has the calls with their reasons.
"""

if __name__ != "fxhlo.runtime.vllm":
    raise ImportError("import this package as fxhlo.runtime.vllm: under its bare name there would be two of each class")
