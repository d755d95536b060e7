"""What every test shares: hypothesis without deadlines, and the extension that `make asan` and `make tsan` built."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import hypothesis

MODULE = "dataplane._dataplane"

# A machine that is busy elsewhere must not fail a property.
hypothesis.settings.register_profile("dataplane", deadline=None)
hypothesis.settings.load_profile("dataplane")


def use_extension(directory: str) -> None:
    """Load the compiled module from `directory` (see cext/build_ffi.py), so that ffi.py finds it already there."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    path = Path(directory, "dataplane", f"_dataplane{suffix}").resolve()
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[MODULE] = module


if instrumented := os.environ.get("DATAPLANE_EXTENSION"):
    use_extension(instrumented)
