"""Rewrites of the FX graph, one file each."""
