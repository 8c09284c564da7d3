"""Decompositions of ATen ops into other ATen ops: our own functions, and the table that capture traces with."""
