"""What the tests of a base's files share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
