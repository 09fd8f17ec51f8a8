"""What several tests share: a small sample data set, and manifests over it."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from made_once import made_once
from unchanged import pytest_collection_finish, unchanged  # noqa: F401

from combo.pipeline import devices
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.sample import write_sample

MANIFEST = """\
store: {store}
clips_per_unit: {clips_per_unit}
data_sets:
  s4: {{layout: avsbench-s4, root: {root}/AVSBench_object/Single-source}}
  ms3: {{layout: avsbench-ms3, root: {root}/AVSBench_object/Multi-sources}}
  avss: {{layout: avsbench-avss, root: {root}/AVSBench_semantic}}
stages:
  frames: {{size: 64}}
  audio: {{encoder: mel-stats}}
  maskige: {{generator: felzenszwalb, at: stored}}
"""

WriteManifest = Callable[..., Path]
ALONE = "COMBO_TEST_ALONE"

# How long an example takes says how busy the machine is.
settings.register_profile("combo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("combo")


def pytest_configure() -> None:
    """What commands that train set for good, which nothing puts back, is set before any test."""
    if ALONE not in os.environ:
        devices.keep_freed_memory()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test marked `own_process` in one: it measures, limits or sets how memory is used, and
    a process that ran other tests, or runs some after, has some to spare.
    """
    if pyfuncitem.get_closest_marker("own_process") is None or ALONE in os.environ:
        return None
    again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take as long to load as PyTorch
    done = subprocess.run(
        again,
        cwd=pyfuncitem.config.rootpath,
        env={**environment, ALONE: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    return True


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Function, nextitem: pytest.Function | None) -> None:
    """What a file's tests freed goes back to the system: kept, it is gigabytes in each process."""
    if nextitem is not None and nextitem.path == item.path:
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes for `--numprocesses auto`: one more than cores, since now and then one waits for
    Slurm, a browser or a child."""
    return devices.cores() + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that have the cluster to themselves come first: so one process has them all, and no
    other ever waits for its turn."""
    items.sort(key=lambda item: "has_the_cluster" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample data set in all three layouts; not to be changed."""
    clips = {"s4": (16, 2, 3), "ms3": (4, 2, 2), "avss": (3, 2, 2)}
    return made_once(tmp_path_factory, "sample", lambda root: write_sample(root, **clips))


@pytest.fixture
def manifest_file(tmp_path: Path, sample: Path) -> WriteManifest:
    """Writes a manifest over the sample (or another root) and a store of this test's own."""

    def write(root: Path = sample, store: str = "store", clips_per_unit: int = 2) -> Path:
        path = tmp_path / f"{store}.yaml"
        path.write_text(MANIFEST.format(root=root, store=store, clips_per_unit=clips_per_unit))
        return path

    return write


@pytest.fixture
def manifest(manifest_file: WriteManifest) -> Manifest:
    return load_manifest(manifest_file())


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 2 MB, which only root may make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "combo-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
