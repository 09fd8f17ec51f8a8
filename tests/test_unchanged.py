"""The fixture that fails a test which leaves its process changed (`unchanged.py`)."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CHANGES = {
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "TF32": "torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32",
    "gradients": "torch.set_grad_enabled(False)",
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "default device": "torch.set_default_device('meta')",
    "deterministic algorithms": "torch.use_deterministic_algorithms(True)",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "environment": "os.environ['COMBO_STORE'] = '/elsewhere'",
    "working folder": "os.chdir('..')",
    "signal handlers": "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "umask": "os.umask(0o117)",
    "limits": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "bytecode": "sys.dont_write_bytecode = not sys.dont_write_bytecode",
    "memory switches looked up": "ctypes.CDLL(None).mallopt(-1, -1)",
}
SEEDING = """\
import random
import numpy, torch

def drawn():
    return torch.rand(1).item(), random.random(), numpy.random.random()

def test_draws(drawn_first=[]):
    drawn_first.append(drawn())

def test_seeds():
    torch.manual_seed(7); random.seed(7); numpy.random.seed(7)
    globals()["seeded"] = drawn()

def test_draws_again():
    assert drawn() == test_draws.__defaults__[0][0] != seeded
"""
WIDE = """\
import os, pytest

@pytest.fixture(scope="module")
def wide():
    os.environ["VARIABLE"] = "another"

def test_it(wide):
    pass
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of these tests, run with the fixture, in this order, by one process."""
    folder = tmp_path_factory.mktemp("tests")
    tests = {"test_seeds.py": SEEDING, "test_wide.py": WIDE, "test_changes.py": changing()}
    for name, text in tests.items():
        (folder / name).write_text(text)
    chosen = ["-p", "unchanged", "-p", "no:cacheprovider", "-rA", "-q"]
    here = str(Path(__file__).parent)
    variables = {"PYTHONPATH": here, "COLUMNS": "1000", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *tests],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def changing() -> str:
    """For each change a test that makes it, and one after it."""
    tests = [
        f"def test_{number}():\n    {change}\n\ndef test_{number}_next():\n    pass\n"
        for number, change in enumerate(CHANGES.values())
    ]
    return "import ctypes, os, resource, signal, sys\nimport torch\n" + "\n".join(tests)


def outcomes(said: str, of: str) -> Counter[str]:
    return Counter(re.findall(rf"^(PASSED|FAILED|ERROR) test_{of}\.py::", said, re.MULTILINE))


def test_a_test_that_leaves_its_process_changed_fails_and_names_the_change(said: str) -> None:
    passed_and_failed = {"PASSED": 2 * len(CHANGES), "ERROR": len(CHANGES)}
    assert outcomes(said, "changes") == passed_and_failed, said
    for number, name in enumerate(CHANGES):
        told = f"test_{number} - Failed: the test leaves its process changed; {name}: "
        assert told in said, said


def test_random_states_are_those_of_the_start_whatever_a_test_sets(said: str) -> None:
    assert outcomes(said, "seeds") == {"PASSED": 3}, said


def test_a_fixture_of_a_wider_scope_is_told_of_too(said: str) -> None:
    assert outcomes(said, "wide") == {"PASSED": 1, "ERROR": 1}, said
    assert "environment: VARIABLE None -> 'another'" in said, said
