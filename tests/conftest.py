"""What all tests share: the --update-golden switch, device markers and hypothesis profiles."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Each worker has as many OpenMP threads as there are processors. Those that wait have to sleep, or
# they take the processor from what they wait for. Read when torch is loaded; processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy, which is the oracle here
# Compiled kernels are kept from run to run, but not among the user's, which they would push out.
# Read when the first kernel is made; processes inherit it.
KERNELS = Path(__file__).resolve().parent.parent / "build" / "test-kernels"
os.environ.setdefault("TILEWRIGHT_CACHE_DIR", os.fspath(KERNELS))

# Compilation makes an example's time vary too much for a deadline to mean anything.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile("thorough", settings.get_profile("dev"), max_examples=2000)
os.environ.setdefault("TILEWRIGHT_TUNING", "off")  # what this user tuned is not what is tested
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what the code now gives into the golden files instead of comparing",
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(20_000, 20, 20)  # a tenth of the time went into searching what torch keeps
    config.addinivalue_line("markers", "gpu: needs a CUDA or ROCm device that torch can reach")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch  # only where a test asks for a device

        if not torch.cuda.is_available():
            pytest.skip("no GPU that torch can reach on this machine")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten (``pytest --update-golden``)."""
    return bool(request.config.getoption("--update-golden"))
