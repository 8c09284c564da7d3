"""Lowering rules of ATen, prims, higher-order and fxhlo ops, one file per family of ops."""
