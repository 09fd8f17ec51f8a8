"""SHA-256 of files: how records, variants and weights tell the same content from another."""

import hashlib
from pathlib import Path

from .errors import MediaError


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hex, read in blocks. Raises MediaError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MediaError.of(path, error) from error
