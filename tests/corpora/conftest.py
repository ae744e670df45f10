"""A fixture for the tests of corpora: a folder that replaces the hub."""

from pathlib import Path

import pytest

from neo_peft.system import hub


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    """Return a folder that replaces the hub: it has the files <repository>/<file>."""

    def hub_file(repository, filename, kind="model", revision=None):
        assert kind == "dataset"
        return tmp_path / "hub" / repository / filename

    monkeypatch.setattr(hub, "hub_file", hub_file)
    return tmp_path / "hub"
