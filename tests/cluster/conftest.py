"""What the cluster tests share."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from .slurm_tools import alone
from .worlds import World

CHEAP = Path(__file__).with_name("cheap.py")


@pytest.fixture(scope="session")
def cheap() -> ModuleType:
    """`cheap.py` as a module; the same file is run as a process of its own."""
    spec = importlib.util.spec_from_file_location("combo_cheap_job", CHEAP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def has_the_cluster() -> Iterator[None]:
    """One test at a time has Slurm, however many processes run tests."""
    with alone():
        yield
