"""The proof for every architecture of vLLM's registry: small random models, served and compared with transformers."""
