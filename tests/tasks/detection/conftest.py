"""Shared by the tests of temporal action detection."""

import pytest

from jaxact.tasks.detection import sample_data


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Drawn videos: 3 + 2 of 96 frames, 8 s, 36 x 48 px; made once, only read."""
    folder = tmp_path_factory.mktemp("drawn")
    sample_data.draw(folder, train=3, test=2)
    return folder
