"""What the cluster tests share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
