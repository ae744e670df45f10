"""What the tests of corpora share: a folder in the place of the hub."""

from pathlib import Path

import pytest

from neo_peft.system import hub


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    """A folder in the place of the hub: <repository>/<file>."""

    def hub_file(repository, filename, kind="model", revision=None):
        assert kind == "dataset"
        return tmp_path / "hub" / repository / filename

    monkeypatch.setattr(hub, "hub_file", hub_file)
    return tmp_path / "hub"
