"""Runtime core: signatures, bundles and executables on a PJRT device. A leaf: imports neither torch nor vLLM."""

if __name__ != "fxhlo.runtime":
    raise ImportError("import this package as fxhlo.runtime: under its bare name there would be two of each class")
