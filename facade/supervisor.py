"""`import supervisor` in an installed environment: ours, if no other distribution has that name.

supervisord's package is a folder of that name. A folder is found before a file, and neither is written over the other.
So with both installed, `supervisor` is supervisord's, and ours is `supervise` (`from supervise import launch, Run`).
"""

import importlib
import sys

_REAL = "_supervisor"
"""The name under which the package is loaded (trainer/names.py says why)."""

sys.modules[__name__] = importlib.import_module("_supervise").names.public("supervisor")
