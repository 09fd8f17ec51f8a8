"""Limits that tests set for themselves (`system_limits.py`)."""

import importlib
import sys
from pathlib import Path

import pytest
from system_limits import file_limit


def test_no_cut_bytecode_stays_of_what_was_imported_under_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_under_a_limit.py").write_text(f"WORDS = {'long ' * 100!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with file_limit() as limit:
        limit(100)
        importlib.import_module("imported_under_a_limit")
    assert not sys.dont_write_bytecode
    del sys.modules["imported_under_a_limit"]
    importlib.import_module("imported_under_a_limit")
    del sys.modules["imported_under_a_limit"]
