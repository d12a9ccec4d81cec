"""Golden sets as folders, for the tests of what is written and of the port that reads it."""

import shutil

import pytest

from minicompress.verification.golden.folder import write_golden
from minicompress.verification.trace_file import read_trace, write_trace


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """A golden set that no test changes."""
    folder = tmp_path_factory.mktemp("golden") / "set"
    write_golden(folder)
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    """A copy of it."""
    return shutil.copytree(kept, tmp_path / "set")


@pytest.fixture
def changed(folder):
    """changed(NAME.safetensors, change): writes a file of the copy again, with its tensors changed in place."""

    def write(name, change):
        tensors, facts = read_trace(folder / name)
        change(tensors)
        write_trace(folder / name, tensors, facts)

    return write
