"""States, which outlive a step, one file per kind: a paged KV cache today."""
