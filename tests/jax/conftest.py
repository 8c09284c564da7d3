"""JAX on the CPU: an installed libtpu would look for a TPU. `twin_decoder` is found beside the tests."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))
