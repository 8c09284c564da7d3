"""Rewrites of the FX graph (fx/) and of the emitted module (hlo/), and the pipeline that orders them."""

if __name__ != "fxhlo.passes":
    raise ImportError("import this package as fxhlo.passes: under its bare name there would be two of each registry")
