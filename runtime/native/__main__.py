"""`python -m fxhlo.runtime.native` builds the library, if nobody has yet, and ends with the reason where it cannot.

What `prepare` starts: it leaves the cores to the process that will need the library, as long as that has other work.
"""

import os
import sys

from .build import unavailable

os.nice(10)
sys.exit(unavailable())
