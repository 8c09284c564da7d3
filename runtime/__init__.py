"""Two floors: `core`, the lowest of the house, and `vllm`, the serving side, just below tools."""

if __name__ != "fxhlo.runtime":
    raise ImportError("import this package as fxhlo.runtime: under its bare name there would be two of each class")
