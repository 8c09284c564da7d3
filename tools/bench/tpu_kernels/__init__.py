"""Kernels on TPU by the compiler's figures: for each kernel and layer of a served model our Pallas form beside XLA's form, and beside
others where there are any. No TPU is needed, nothing is timed."""
