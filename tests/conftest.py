"""Shared by all tests: where the golden vectors and the optional real data lie."""

import os
import pathlib
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
sys.path.insert(0, str(TESTS))

BUILD = TESTS.parent / "build"


def pytest_configure(config):
    """Caches compiled programs inside the checkout, apart for each version of JAX."""
    import jax

    cache = BUILD / f"jax-cache-{jax.__version__}"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of the golden vectors."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of the real data sets, or a skip where it is absent."""
    root = os.environ.get("JAXACT_DATA", "")
    if not root:
        pytest.skip("JAXACT_DATA is not set: the real data sets are not in this repository")
    return pathlib.Path(root)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> pathlib.Path:
    """Generated clips with poses, drawn once for all tests that only read them.

    16 to train on and 8 to test, 12 frames of 48 x 64 px.
    """
    from jaxact.tasks.action import sample_data

    folder = tmp_path_factory.mktemp("clips")
    sample_data.write(folder, train=16, test=8, frames=12, size=(48, 64))
    return folder
