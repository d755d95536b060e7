"""The PEP 517 backend: setuptools, given our extension without a setup.py.

pip calls the functions at the end; setuptools reads everything else from pyproject.toml.
"""

from build_ffi import BuildExt, extension
from setuptools import build_meta, setup


class Backend(build_meta._BuildMetaBackend):
    """setuptools would run a setup.py here, the only place where it takes an extension whose sources are found."""

    def run_setup(self, setup_script: str = "setup.py") -> None:
        setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExt})


_backend = Backend()
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
build_wheel = _backend.build_wheel
build_sdist = _backend.build_sdist
build_editable = _backend.build_editable
