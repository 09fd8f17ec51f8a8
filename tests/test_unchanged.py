"""The fixture that fails a test which leaves its process changed (`unchanged.py`)."""

import os
import subprocess
import sys
from pathlib import Path

CHANGES = {
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
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
    "memory switches looked up": "ctypes.CDLL(None).mallopt(-1, -1)",
}
SEEDS = "torch.manual_seed(7); random.seed(7); numpy.random.seed(7)"
TESTS = """\
import ctypes, os, random, resource, signal
import numpy, pytest, torch

def drawn():
    return torch.rand(1).item(), random.random(), numpy.random.random()

def test_draws(drawn_first=[]):
    drawn_first.append(drawn())

def test_seeds():
    {seeds}
    globals()["seeded"] = drawn()

def test_draws_again():
    assert drawn() == test_draws.__defaults__[0][0] != seeded
"""


def outcome(folder: Path, tests: str) -> str:
    """What pytest says of these tests, run with the fixture, in this order."""
    (folder / "test_it.py").write_text(tests)
    chosen = ["-p", "unchanged", "-p", "no:randomly", "-p", "no:cacheprovider", "-rE", "-q"]
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": here, "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_test_that_leaves_its_process_changed_fails_and_names_the_change(tmp_path: Path) -> None:
    imports = "import ctypes, os, resource, signal\nimport torch\n"
    tests = [
        f"def test_{number}():\n    {change}\n\ndef test_{number}_next():\n    pass\n"
        for number, change in enumerate(CHANGES.values())
    ]
    said = outcome(tmp_path, imports + "\n".join(tests))
    assert f"{2 * len(CHANGES)} passed, {len(CHANGES)} errors" in said, said
    for number, name in enumerate(CHANGES):
        told = f"test_{number} - Failed: the test leaves its process changed; {name}: "
        assert told in said, said


def test_random_states_are_those_of_the_start_whatever_a_test_seeds(tmp_path: Path) -> None:
    assert "3 passed" in (said := outcome(tmp_path, TESTS.format(seeds=SEEDS))), said


def test_a_fixture_of_a_wider_scope_is_told_of_too(tmp_path: Path) -> None:
    tests = """\
import os, pytest

@pytest.fixture(scope="module")
def wide():
    os.environ["COMBO_STORE"] = "/elsewhere"

def test_it(wide):
    pass
"""
    said = outcome(tmp_path, tests)
    assert "1 passed, 1 error" in said, said
    assert "environment: COMBO_STORE None -> '/elsewhere'" in said, said
