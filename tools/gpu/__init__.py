"""`make gpu`: what a GPU says of fxhlo's programs, in five minutes on a machine that may be lent.

Comes in: a bundle of Llama 3.1 8B's decode step, which `make.py` writes on a machine with vLLM and without a GPU. Goes out, on a machine with a GPU:
docs/gpu.json, and docs/gpu.md of it. Guaranteed: there neither vLLM nor an installation of fxhlo is needed; each part runs in a process of its own, so that
one that fails or hangs takes no other with it.
"""
