"""Shared by the tests of crop diseases."""

import leaves
import pytest


@pytest.fixture(scope="session")
def annotations(tmp_path_factory):
    """The CSV of drawn leaves (`leaves.py`), drawn once for all tests that only read them."""
    return leaves.write(tmp_path_factory.mktemp("leaves"))
