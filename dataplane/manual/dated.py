"""What stands at the foot of every page."""

import os
import time
from importlib.metadata import version

VERSION = version("dataplane")
# The time of a reproducible build, else today.
DATE = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
