"""Kernels: composites with one reference and implementations per target. Uses jax, not torch.fx.

Unlike the other top-level packages, this one does not reject an import under its bare name: when transformers looks for the
Hugging Face package `kernels`, it imports any package of that name on the path, and must not get an error. `spec.py` has the check.
"""
