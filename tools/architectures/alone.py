"""What config.json says of architectures that vLLM has and transformers has not, beyond Llama's keys: as their published ones, small."""

from __future__ import annotations

from typing import Any

ALONE: dict[str, dict[str, Any]] = {}
