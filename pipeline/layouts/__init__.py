"""Layouts by name: how data sets lie on the disk.

To add one, write a module that makes its `Layout` and name it in LAYOUTS.
"""

from ..errors import unknown
from .avsbench import AVSS, MS3, S4
from .folders import Folders
from .layout import Clip as Clip
from .layout import Layout
from .layout import Listing as Listing
from .layout import SoundRule as SoundRule

LAYOUTS: tuple[Layout, ...] = (S4, MS3, AVSS, Folders())


def layout(name: str, folders: Layout | None = None) -> Layout:
    """The layout of that name. folders: the one that `folders` means, with its settings.

    Raises ComboError for an unknown name.
    """
    known = {each.name: each for each in LAYOUTS}
    if name not in known:
        raise unknown(f"no layout {name!r}", name, known, "data_manifest.yaml may name")
    return folders if folders is not None and folders.name == name else known[name]
