"""Kernels: composites with one meaning and implementations per target. Uses jax, not torch.fx."""

if __name__ != "fxhlo.kernels":
    raise ImportError("import this package as fxhlo.kernels: under its bare name there would be two of each registry")
