"""What more than one test file uses."""

from pathlib import Path

import pytest

from local_workspace import samples


@pytest.fixture(scope="session")
def samples_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and data/ as the packages give them; read it, never write to it."""
    folder = tmp_path_factory.mktemp("samples")
    samples.prepare(folder)
    return folder
