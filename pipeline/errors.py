"""What goes wrong in ways the user can mend.

Whatever is not one of these is a fault of ours and keeps its traceback.
"""

from os import PathLike, fspath


def readable(text: str) -> str:
    r"""Text that a file and a terminal can hold: bytes of a name that are no UTF-8 as `\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


class ComboError(Exception):
    """One line for the user: what is wrong, where, and the command or setting that mends it."""


class MediaError(ComboError):
    """A frame, label or sound that cannot be used. Fails its clip, never the other clips.

    path: the file.  reason: what is wrong with it, without the file's name.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(readable(f"{reason}: {fspath(path)}"))
        self.path = fspath(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str]]:
        # Exceptions are rebuilt from their args, which here are not the constructor's: workers
        # send these between processes.
        return type(self), (self.path, self.reason)


def reason_of(error: BaseException) -> str:
    """What a decoder or the system says, as one line that is not too long."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split())[:200].rstrip(".") or type(error).__name__
