"""A process that file permissions hold for, also where the tests run as root."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VERSION = 0x20080522
DAC_OVERRIDE, DAC_READ_SEARCH = 1 << 1, 1 << 2
"""As in <linux/capability.h>: what lets root pass by a file's mode."""


@contextmanager
def modes_count() -> Iterator[None]:
    """Within the block this thread may do to its own files what their modes say, and no more."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if not hasattr(libc, "capset") or libc.capget(header, before):
        pytest.skip("root cannot step back here")
    effective, *others = before
    fewer = (ctypes.c_uint32 * 6)(effective & ~(DAC_OVERRIDE | DAC_READ_SEARCH), *others)
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
