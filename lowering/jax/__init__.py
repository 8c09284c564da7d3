"""What is lowered through jax: JAX functions, composites called from them, and ops that jax emits."""
