"""A run's folder: what it was trained with, how it went, and its networks.

settings.json   which network, and resolved settings of it and of its training
data.json       data set, store, variants and their fingerprints, clips used and left out
versions.json   combo, Python, torch, ... and the machine
metrics.jsonl   one line a log entry, also in tensorboard/
last.pt, previous.pt, best.pt  checkpoints; each is whole or not there
profile/        where `combo train --profile` was asked for
skipped/        batches whose loss or gradient was no number, with the state before their step
jobs/           script and log, where a cluster trains the run
lock            who trains; the system drops the lock when that process ends

A run has a name of its own, drawn when it began, which settings.json, data.json and its checkpoints
hold: a file of another run is told from its own, wherever the folder is moved. Runs of an older
combo have none.

A folder whose first checkpoint was not finished holds nothing of worth: the run begins again there.
"""

import contextlib
import errno
import fcntl
import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Generator
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from .. import durable, remedies
from ..errors import ComboError, WrongUsage, reason_of
from .presets import RunSettings, restore

PACKAGES = ("combo-avs", "torch", "torchvision", "timm", "numpy", "zarr", "tensorstore")
SETTINGS, DATA, VERSIONS = "settings.json", "data.json", "versions.json"
BEFORE_THE_FIRST_CHECKPOINT = {SETTINGS, DATA, VERSIONS, "lock", "tensorboard", "jobs"}

HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
FREE_WITHIN = 5.0
"""Seconds after which the lock of a process that was killed is free, with its other files."""


class NamedVariant(TypedDict):
    name: str
    fingerprint: str


class SplitData(TypedDict):
    """What a run notes of a split, and holds against it when it is resumed."""

    plan: str
    clips: int
    left_out: dict[str, str]
    outputs: dict[str, str]
    variants: dict[str, NamedVariant]


class RunData(TypedDict):
    """data.json. settings: split -> stage -> settings.  weights: stage -> digests.
    manifest: names the weights to begin with.  frames_per_clip, classes: of the data set.  run: its
    identity.  Older runs do not say these four."""

    run: NotRequired[str]
    data_set: str
    store: str
    manifest: NotRequired[str]
    frames_per_clip: NotRequired[int]
    classes: NotRequired[list[str]]
    settings: dict[str, dict[str, dict[str, Any]]]
    weights: dict[str, dict[str, str]]
    splits: dict[str, SplitData]


class RunFolder:
    """Paths and small files of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.last, self.previous = root / "last.pt", root / "previous.pt"
        self.best = root / "best.pt"
        self.metrics = root / "metrics.jsonl"
        self.tensorboard = root / "tensorboard"
        self.skipped, self.profile = root / "skipped", root / "profile"

    @classmethod
    def create(cls, root: Path, settings: RunSettings, data: RunData) -> "RunFolder":
        """A new run. Raises ComboError when the folder holds something, or cannot be written."""
        run = cls(root)
        run.demand_free()
        with run.claimed(), run.writing():
            durable.write_json(root / DATA, {**data, "run": secrets.token_hex(8)})
            durable.write_json(root / VERSIONS, versions())
            run.write_settings(settings)  # last: now it is a run
        return run

    @property
    def is_one(self) -> bool:
        """Whether a run lies here."""
        return (self.root / SETTINGS).exists()

    def demand_free(self) -> None:
        """Raise ComboError when the folder holds what a run that begins here would not know."""
        if any(each.name not in BEFORE_THE_FIRST_CHECKPOINT for each in self._files()):
            mend = f"go on with it: {remedies.resume(self.root)}, or " if self.last.exists() else ""
            raise ComboError(f"{self.root} is not empty; {mend}give another folder with --out")

    def write_settings(self, settings: RunSettings) -> None:
        """Raises ComboError when that cannot be done."""
        with self.writing():
            own = {"run": self.identity} if self.identity else {}
            durable.write_json(self.root / SETTINGS, {**settings.as_dict(), **own})

    @cached_property
    def identity(self) -> str | None:
        """Which run this is: "" for one of an older combo, None where data.json does not tell."""
        try:
            return self.data().get("run", "")
        except ComboError:
            return None

    @property
    def of_worth(self) -> Path:
        """The best network's file, or the last checkpoint where nothing was evaluated.

        Raises ComboError where the best one is gone: another network in its place is not it. (A
        run of an older combo, which has no name, is taken as it is.)
        """
        for path in (self.best, self.best.with_suffix(".safetensors")):
            if path.exists():
                return path
        if self.identity and self._evaluated:
            raise ComboError(
                f"{self.best} is gone, the best network of a run that was evaluated; put it back, "
                f"or name a checkpoint that is there, such as {self.last}"
            )
        return self.last

    @property
    def _evaluated(self) -> bool:
        """Whether the log tells of a score, which is told once its network is written."""
        if not self.metrics.is_file():
            return False
        lines = self.metrics.read_text(errors="replace").splitlines()
        return any('"kind": "val"' in line and '"M_J": null' not in line for line in lines)

    @property
    def begun(self) -> bool:
        """Whether the run has had a checkpoint."""
        return any(path.exists() for path in (self.last, self.previous, self.best))

    @contextlib.contextmanager
    def claimed(self) -> Generator[None]:
        """While the block runs no other process trains here. Clears away half-written files.

        Raises ComboError when another process does. On a file system without locks none is seen.
        """
        with contextlib.ExitStack() as stack:
            with self.writing():
                self.root.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.root / "lock").open("a+"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left = self._files(hidden=True)
                except OSError as error:
                    if error.errno in HELD_ELSEWHERE:
                        file.seek(0)
                        raise ComboError(
                            f"{self.root} is being trained by another process "
                            f"({file.read().strip()}); wait for it, or stop it"
                        ) from None
                    if error.errno not in NO_LOCKS_HERE:
                        raise
                    left = list(durable.leftovers(self.root))
                for path in left:
                    durable.remove(path)
                file.truncate(0)
                file.write(f"{socket.gethostname()} {os.getpid()}\n")
                file.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    file.truncate(0)  # one that was killed leaves its name

    @contextlib.contextmanager
    def inherited(self) -> Generator[bool]:
        """While the block runs this process trains here in place of one that was killed, whose lock
        is free and names it still. False where that one lives, or ended by itself; where another
        took its place; and where there are no locks.
        """
        with contextlib.ExitStack() as stack:
            yield self._inherits(stack)

    def _inherits(self, stack: contextlib.ExitStack) -> bool:
        until = time.monotonic() + FREE_WITHIN
        while True:
            try:
                with (self.root / "lock").open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    killed = bool(file.read())
                break
            except OSError as error:
                if error.errno not in HELD_ELSEWHERE or time.monotonic() > until:
                    return False
            time.sleep(0.1)
        if killed:
            with contextlib.suppress(ComboError):
                stack.enter_context(self.claimed())
                return True
        return False

    def state(self) -> list[tuple[int, int] | None]:
        """Tells whether somebody began the run anew, or trained it, since it was last looked at."""
        found: list[tuple[int, int] | None] = []
        for path in (self.root / SETTINGS, self.last):
            there = path.stat() if path.exists() else None
            found.append(there and (there.st_ino, there.st_mtime_ns))
        return found

    def _files(self, hidden: bool = False) -> list[Path]:
        """What lies in the folder. hidden: half-written files, instead of all others."""
        return [
            path
            for path in durable.listed(self.root)
            if (path.name.startswith(".") and path.name.endswith(durable.PARTIAL)) == hidden
        ]

    @contextlib.contextmanager
    def writing(self) -> Generator[None]:
        """What the system says about writing here becomes one line with a way out."""
        resume = f"go on with: {remedies.resume(self.root)}"
        again = resume if self.is_one else "give the same command again"
        with durable.writing(self.root, again, "give another folder with --out"):
            yield

    def settings(self) -> RunSettings:
        """Raises ComboError: this is no run folder, or settings.json is damaged or another's."""
        value = self._read(SETTINGS)
        try:
            if (of := value.get("run")) and RunFolder(self.root).identity not in (None, of):
                raise self.mixed()
            return restore(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.damaged(SETTINGS, error) from None

    def data(self) -> RunData:
        """Raises ComboError: this is no run folder, or data.json is damaged."""
        from pydantic import TypeAdapter

        value = self._read(DATA)
        try:
            TypeAdapter(RunData).validate_python(value)
        except ValueError as error:
            raise self.damaged(DATA, error) from None
        return value

    def _read(self, name: str) -> Any:
        if self.root.is_file():
            raise ComboError(
                f"{self.root} is a file, no run folder; give the folder that a run was trained in, "
                f"or begin a run with the file: --set initialisation={self.root}"
            )
        try:
            return durable.read_json(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            if not self.root.exists():
                raise WrongUsage(
                    f"{self.root}: no such run folder or checkpoint; combo train makes them"
                ) from None
            raise WrongUsage(
                f"{self.root} is no run folder: {name} is missing; make one with combo train"
            ) from None
        except OSError as error:
            raise ComboError(f"{self.root / name}: cannot be read ({reason_of(error)})") from None
        except ValueError as error:
            raise self.damaged(name, error) from None

    def mixed(self) -> ComboError:
        """What is said of a run whose files are not all its own."""
        return ComboError(
            f"{self.root / SETTINGS} and {self.root / DATA} are of different runs; "
            f"put back the run's own, or train again"
        )

    def damaged(self, name: str, error: Exception) -> ComboError:
        """What is said of a file of the run that cannot be read."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return ComboError(
            f"{self.root / name} is damaged ({reason}); put back a copy of it, or train again"
        )


def checkpoint_of(path: Path) -> tuple[RunFolder, Path]:
    """A run and which of its checkpoints is meant: the one that is named, or, where only the
    folder is, the best one (the last one where nothing was evaluated). Raises ComboError."""
    if not path.is_file():
        run = RunFolder(path)
        run.settings()  # says so when it is no run
        return run, run.of_worth
    if not RunFolder(path.parent).is_one:
        raise ComboError(
            f"{path} lies in no run's folder, so nothing says what it was trained with; "
            f"give it beside the {SETTINGS} and {DATA} of its run"
        )
    return RunFolder(path.parent), path


def run_of(path: Path) -> Path:
    """The folder of a run, where one of its checkpoints is named instead."""
    return path.parent if path.is_file() and RunFolder(path.parent).is_one else path


def versions() -> dict[str, Any]:
    """What a run's numbers may depend on beside its settings and data."""
    import torch

    return {
        **{name: metadata.version(name) for name in PACKAGES},
        "torch": str(torch.__version__),  # which build it is, too
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
