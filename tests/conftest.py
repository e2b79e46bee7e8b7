"""The tests' machine: eight fake CPU devices, strict broadcasting, and compiled programs kept between runs.

jax reads its settings when it is imported, so they are set here, as environment variables, and subprocesses inherit them.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

PLATFORM = os.environ.get("JAXREC_TEST_PLATFORM", "cpu")  # cpu, gpu or tpu
if PLATFORM not in ("cpu", "gpu", "tpu"):
    raise pytest.UsageError(f"JAXREC_TEST_PLATFORM={PLATFORM!r} is no platform; set it to cpu, gpu or tpu")

XLA_FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    # Eight devices share the machine's few cores, so a collective may wait long for the last of them; XLA would take that for a deadlock.
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 300,
    "--xla_cpu_collective_call_terminate_timeout_seconds": 600,
    "--xla_cpu_collective_timeout_seconds": 600,
    # Tests compile far more than they compute; compiling without LLVM's costly passes halves their time.
    "--xla_backend_optimization_level": 0,
    "--xla_llvm_disable_expensive_passes": "true",
}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have neither the flag nor the choice
    XLA_FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # half the time to compile
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{flag}={value}" for flag, value in XLA_FLAGS.items() if flag not in given)]).strip()
os.environ["JAX_PLATFORMS"] = "cpu" if PLATFORM == "cpu" else f"{PLATFORM},cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of an accelerator that this run is not for."""
    for item in items:
        for accelerator in ("gpu", "tpu"):
            if item.get_closest_marker(accelerator) and accelerator != PLATFORM:
                item.add_marker(pytest.mark.skip(reason=f"needs a {accelerator.upper()}; run with JAXREC_TEST_PLATFORM={accelerator}"))


@pytest.fixture(scope="session", autouse=True)
def artifact_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Builds artifacts into a folder of this run, so that no test passes on what an older revision built."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # workers share what one of them has built
    os.environ.setdefault("JAXREC_CACHE", str(run / "artifacts"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public datasets, one subfolder each; skips where the machine has none."""
    if not (folder := os.environ.get("JAXREC_DATA_DIR")):
        pytest.skip("needs public datasets; set JAXREC_DATA_DIR to the folder that holds them")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"JAXREC_DATA_DIR={folder} is not a folder; point it at the folder of datasets, or unset it to skip these tests")
    return Path(folder)
