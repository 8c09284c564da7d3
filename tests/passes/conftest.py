"""Makes step_decoder.py importable by its name in these tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
