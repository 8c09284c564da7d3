"""The front doors: command line, inspection, demo, benchmarks."""

if __name__ != "fxhlo.tools":
    raise ImportError("import this package as fxhlo.tools: under its bare name there would be two of each registry")
