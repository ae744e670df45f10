"""The fixture of the tests of a base model's files."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """Return a copy of the tiny model's folder, which a test can change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
