"""SHA-256 of files: how records, variants and weights tell the same content from another."""

import hashlib
from pathlib import Path

from .media.regular_files import open_regular, unreadable


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hex, read in blocks. Raises MediaError if it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
