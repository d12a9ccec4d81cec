"""Fixtures that every floor's tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import strict_device

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile(
    "here",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("MINICOMPRESS_HYPOTHESIS", 25)),
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("here")


@pytest.fixture(scope="session")
def data():
    """The folder of data sets and checkpoints, which is not part of the repository."""
    folder = Path(os.environ.get("MINICOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set MINICOMPRESS_DATA to the folder that has it")
    return folder


@pytest.fixture(params=["numpy", "strict", "cupy"])
def xp(request):
    """Each array library in turn: NumPy, the strict stand-in for a GPU, and CuPy where there is one."""
    if request.param == "cupy":
        cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as reason:
            pytest.skip(f"no CUDA GPU: {reason}")
        return cupy
    return {"numpy": np, "strict": strict_device}[request.param]


@pytest.fixture
def rng():
    return np.random.default_rng(0)
