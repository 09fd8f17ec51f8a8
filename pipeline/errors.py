"""What goes wrong in ways the user can mend.

Whatever is not one of these is a fault of ours and keeps its traceback.
"""

from os import PathLike, fspath


class ComboError(Exception):
    """One line for the user: what is wrong, where, and the command or setting that mends it."""


class MediaError(ComboError):
    """A frame, label or sound that cannot be used. Fails its clip, never the other clips.

    path: the file.  reason: what is wrong with it, without the file's name.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{reason}: {fspath(path)}")
        self.path = fspath(path)
        self.reason = reason

    @classmethod
    def of(cls, path: str | PathLike[str], error: OSError) -> "MediaError":
        """For a file that the system does not give."""
        missing = isinstance(error, FileNotFoundError)
        return cls(path, "missing" if missing else f"cannot be read ({error.strerror or error})")

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str]]:
        # Exceptions are rebuilt from their args, which here are not the constructor's: workers
        # send these between processes.
        return type(self), (self.path, self.reason)
