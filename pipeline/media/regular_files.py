"""Only regular files are opened: a pipe waits for ever, and a device has no end."""

import os
from io import BufferedReader
from pathlib import Path

from .. import durable
from ..errors import MediaError, readable


def open_regular(path: Path) -> BufferedReader:
    """A regular file, or a link to one, opened for reading. Raises MediaError for all else."""
    try:
        return durable.open_regular(path)
    except FileNotFoundError as error:
        raise MediaError(path, missing(path)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise MediaError(path, f"cannot be read ({error})") from error


def read_whole(path: Path, limit: int) -> bytes:
    """A regular file's bytes, 1 at least and `limit` at most. Raises MediaError."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise MediaError(path, f"file of {size} bytes, more than limits.bytes ({limit})")
            data = file.read(size)  # reading up to the limit would ask for that much room
    except OSError as error:
        raise unreadable(path, error) from error
    if not data:
        raise MediaError(path, "empty file (0 bytes)")
    return data


def missing(path: Path) -> str:
    """The reason of a file that is not there; where it is a link, to what."""
    try:
        return f"missing, a link to {readable(str(path.readlink()))} where nothing is"
    except OSError:
        return "missing"


def unreadable(path: Path, error: OSError) -> MediaError:
    """What the system says of a file."""
    return MediaError(path, f"cannot be read ({error.strerror or error})")
