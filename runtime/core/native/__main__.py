"""`python -m fxhlo.runtime.core.native` builds the library, if nobody has yet or the last build failed, and ends with the reason where it cannot.

`make dev` runs it, and the recipe of an image may, so that no start waits for a C++ compiler. `prepare` starts it too: it leaves
the cores to the process that will need the library, as long as that has other work.
"""

import os
import sys

from .build import forget_failure, unavailable

os.nice(10)
forget_failure()
sys.exit(unavailable())
