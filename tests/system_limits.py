"""Limits of the system that a test sets for itself, put back after it."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_limit() -> Iterator[Callable[[int], None]]:
    """Sets how large files of this process may grow, in bytes.

    Python keeps no bytecode meanwhile: of a module that is imported under such a limit it would
    leave a cut file behind, at which every later import of it fails.
    """
    before, bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode

    def limit(size: int) -> None:
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = bytecode


@contextmanager
def memory_limit(mebibytes: int) -> Iterator[None]:
    """No more than this many MiB beside what the process has already, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
