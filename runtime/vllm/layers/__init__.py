"""One file per kind of vLLM layer that is not plain ATen: the one op that it becomes in the graph."""
