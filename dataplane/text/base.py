"""What every layout uses."""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

RULE = "-" * 80
