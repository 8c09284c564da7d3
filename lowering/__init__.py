"""All of the compiler from capture to StableHLO: the only floor that uses torch.export and fake tensors."""

if __name__ != "fxhlo.lowering":
    raise ImportError("import this package as fxhlo.lowering: under its bare name there would be two of each registry")
