"""What goes wrong in ways the user can mend.

Whatever is not one of these is a fault of ours and keeps its traceback.
"""

from collections.abc import Iterable
from os import PathLike, fspath


def readable(text: str) -> str:
    r"""Text that a file and a terminal can hold: bytes of a name that are no UTF-8 as `\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


def counted(count: int, what: str) -> str:
    """`1 clip`, `2 clips`, `1,000 clips`, `2 classes`."""
    several = f"{what}{'es' if what.endswith('s') else 's'}"
    return f"{count:,} {what if count == 1 else several}"


class ComboError(Exception):
    """One line for the user: what is wrong, where, and the command or setting that mends it."""

    exit_code = 1


class WrongUsage(ComboError):
    """A command that cannot be meant: a value no option takes, a file given that is not there."""

    exit_code = 2


class UnknownName(WrongUsage):
    """A name that nothing has, with the nearest there is."""


def unknown(
    said: str, name: str, known: Iterable[str], has: str = "there are", every: bool = True
) -> UnknownName:
    """The error for a name that is none of `known`.

    said: what is wrong.  has: what `known` is told with.  every: tell all of `known` beside the
    nearest one.
    """
    names = list(known)
    near = nearest(name, names)
    listed = f"{has} {', '.join(names) or 'none'}"
    if near is None:
        return UnknownName(readable(f"{said}; {listed}"))
    first = listed if "." in listed.split()[0] else f"{listed[0].upper()}{listed[1:]}"
    told = f" {first}" if every else ""
    return UnknownName(readable(f"{said}; did you mean {near}?{told}"))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """What `name` was probably meant to be: another case (`S4`), the initials (`lr` of
    `learning_rate`), a few letters otherwise, or its beginning; None where nothing is like it.
    """
    import difflib

    by_name = {each.lower(): each for each in known}
    wanted = name.lower()
    if wanted in by_name:
        return by_name[wanted]
    for each in by_name:
        initials = "".join(word[:1] for word in each.replace("-", "_").split("_"))
        if len(wanted) > 1 and wanted == initials:
            return by_name[each]
    if close := difflib.get_close_matches(wanted, by_name, 1):
        return by_name[close[0]]
    return next((own for each, own in by_name.items() if wanted and each.startswith(wanted)), None)


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
