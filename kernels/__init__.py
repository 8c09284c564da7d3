"""Kernels: composites with one meaning and implementations per target. Uses jax, not torch.fx.

No guard against the bare name here, as the other floors have one: transformers imports whatever is called `kernels`
on the path when it looks for the Hugging Face package, and must find nothing worse than a package without a version.
`spec.py` has the guard instead.
"""
