"""Options that several commands share, each worded once, and how a command takes them.

Options that go together are a record. A command names the record as a parameter and gets it filled;
`words` turns one back into the words it came from, for a job that is to do the same elsewhere.
"""

import inspect
import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .. import remedies
from ..durable import here_is_there, unwritten
from ..errors import ComboError, WrongUsage
from ..jobs.stopping import Interrupted, Stopped
from . import completion

if TYPE_CHECKING:
    from .. import manifest as manifests
    from ..console import Output
    from ..jobs.local import LocalRunner
    from ..jobs.run import Options, Runner
    from ..jobs.unit import Job


AGAIN, ELSEWHERE = "give the same command again", "give another file or folder"


class StageName(StrEnum):
    frames = "frames"
    audio = "audio"
    maskige = "maskige"
    all = "all"


Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest", "-m", help="Manifest; default ./data_manifest.yaml, else combo's own."
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        help="Data set of the manifest; may be repeated. Default: all.",
        autocompletion=completion.data_sets,
    ),
]
Split = Annotated[
    list[str] | None,
    typer.Option(
        "--split",
        "-s",
        help="Split; may be repeated. Default: all.",
        autocompletion=completion.splits,
    ),
]
SoundEncoder = Annotated[
    str | None,
    typer.Option(
        help="Sound encoder, instead of the manifest's.", autocompletion=completion.encoders
    ),
]
MaskigeGenerator = Annotated[
    str | None,
    typer.Option(
        "--generator",
        help="Maskige generator, instead of the manifest's.",
        autocompletion=completion.generators,
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(help="Working memory of a Maskige network, as 8GB; default: the device's."),
]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", help="stage=NAME: this variant of a stage in the store."),
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="The store, or a file packed from it; default: the manifest's, or the run's."
    ),
]
DEVICES = "Of networks: auto, cpu, cuda, cuda:1, ..."
Device = Annotated[str, typer.Option(help=DEVICES)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Do again what is done of this stage.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Do units with failed clips again.")
]
Force = Annotated[bool, typer.Option("--force", help="Go on although the disk looks too small.")]
Discard = Annotated[
    bool,
    typer.Option(
        "--discard", help="Throw away what is done of clips that are not in the list any more."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and needed; write nothing.")
]
Part = Annotated[str, typer.Option(help="I/N: only the I-th of N parts, for job arrays.")]
SchedulerArg = Annotated[
    list[str] | None,
    typer.Option(
        "--scheduler-arg",
        "--sbatch-arg",
        help="For the scheduler, as --scheduler-arg=--partition=gpu; may be repeated.",
    ),
]
Requeue = Annotated[
    bool, typer.Option("--requeue", help="In a cluster's job: told to stop, queue it again.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]


@dataclass(frozen=True)
class Printing:
    """How a command speaks."""

    json: Json = False
    quiet: Quiet = False

    @cached_property
    def output(self) -> "Output":
        from ..console import Output

        return Output(self.quiet, self.json)


@dataclass(frozen=True)
class Splits:
    """Some splits of a manifest's data sets."""

    data: Data = None
    split: Split = None
    manifest: Manifest = None

    def open(self) -> "manifests.Manifest":
        from ..manifest import load_manifest

        return load_manifest(self.manifest)


@dataclass(frozen=True)
class Selection(Splits):
    """Some stages of some splits, and what is to make them."""

    encoder: SoundEncoder = None
    generator: MaskigeGenerator = None
    memory_limit: MemoryLimit = None

    def open(self) -> "manifests.Manifest":
        return super().open().with_stages(self.encoder, self.generator, self.memory_limit)

    def jobs(self, manifest: "manifests.Manifest", stage: str) -> "Generator[Job]":
        """Every job selected. stage: one, or `all`."""
        from ..jobs.plan import jobs

        data_sets = manifest.choose(self.data or ())
        yield from jobs(manifest, _stages(stage), data_sets, self.split or ())

    def weights(self, manifest: "manifests.Manifest", stage: str) -> list[str]:
        """The catalogue's names of all weights that the jobs selected need."""
        from ..jobs.plan import weights_of

        return weights_of(manifest, _stages(stage), manifest.choose(self.data or ()))


def _stages(name: str) -> Sequence[str]:
    from ..store import STAGES

    return STAGES if name == StageName.all else (name,)


@dataclass(frozen=True)
class Computers:
    """What computes: processes of this machine, or workers of a Dask cluster."""

    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes, or Dask workers; default 1, or one on each GPU."),
    ] = None
    workers_per_device: Annotated[
        int, typer.Option(min=1, help="Processes on each GPU, where --workers is not given.")
    ] = 1
    device: Device = "auto"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers_per_device > 1:
            raise typer.BadParameter("--workers and --workers-per-device: give one of them")

    @property
    def local(self) -> "LocalRunner":
        from ..jobs.local import LocalRunner

        return LocalRunner(self.workers, self.device, self.workers_per_device)

    def processes(self, job: "Job", units: int) -> int:
        """How many compute at once."""
        return self.local.processes(job, units)

    @contextmanager
    def runner(self, output: "Output", manifest: "manifests.Manifest") -> "Generator[Runner]":
        """What runs the units, for as long as the block lasts."""
        del output, manifest
        yield self.local


@dataclass(frozen=True)
class DaskComputers(Computers):
    """These, or workers of a Dask cluster."""

    dask: Annotated[
        str | None,
        typer.Option(help="Run on Dask: local, a cluster's scheduler (slurm), or an address."),
    ] = None
    lifetime: Annotated[
        str | None,
        typer.Option(help="When a Dask worker that is a job leaves, as 55m; default: in time."),
    ] = None
    scheduler_arg: SchedulerArg = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dask is None and (self.lifetime or self.scheduler_arg):
            raise typer.BadParameter("--lifetime and --scheduler-arg go with --dask")
        if self.dask is not None and self.workers_per_device > 1:
            raise typer.BadParameter("--workers-per-device: with --dask, give --workers")

    def processes(self, job: "Job", units: int) -> int:
        return super().processes(job, units) if self.dask is None else self.workers or 1

    @contextmanager
    def runner(self, output: "Output", manifest: "manifests.Manifest") -> "Generator[Runner]":
        if self.dask is None:
            yield self.local
            return
        from ..jobs.dask_cluster import dask_runner

        with dask_runner(
            self.dask,
            workers=self.workers,
            device=self.device,
            cluster=manifest.cluster.with_arguments(self.scheduler_arg or ()),
            lifetime=self.lifetime,
            logs=manifest.store_path / "jobs" / "dask",
        ) as (runner, dashboard):
            output.note(f"dask: up to {runner.workers} workers; dashboard: {dashboard}")
            yield runner


@dataclass(frozen=True)
class Begin:
    """What a run begins with, beside its preset."""

    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, of the training or the network; may be repeated."),
    ] = None
    encoder: SoundEncoder = None
    generator: MaskigeGenerator = None
    variant: Variants = None
    store: Store = None
    manifest: Manifest = None

    def open(self) -> "manifests.Manifest":
        from ..manifest import load_manifest

        opened = load_manifest(self.manifest)
        if self.store is not None and not self.store.exists():
            raise WrongUsage(
                f"--store {self.store}: it is not there; give another, or leave it out: combo "
                f"preprocess fills {opened.store_path}"
            )
        return opened.with_stages(self.encoder, self.generator).with_store(self.store)


@dataclass(frozen=True)
class BeginRun(Begin):
    """What one run begins with."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Data set of the manifest; default: the preset's.",
            autocompletion=completion.data_sets,
        ),
    ] = None
    device: Annotated[str | None, typer.Option(help=DEVICES)] = None

    @property
    def changes(self) -> list[str]:
        """What differs from the preset, as `key=value`. Raises typer.BadParameter: given twice."""
        changes = list(self.settings or ())
        for key, value in (("data", self.data), ("device", self.device)):
            if value is None:
                continue
            if (twice := next((c for c in changes if c.startswith(f"{key}=")), None)) is not None:
                raise typer.BadParameter(f"--{key} {value} and --set {twice}: give one of them")
            changes.append(f"{key}={value}")
        return changes


@dataclass(frozen=True)
class Work:
    """Which units are to be done, and whether at all."""

    part: Part = "1/1"
    dry_run: DryRun = False
    overwrite: Overwrite = False
    retry_failed: RetryFailed = False
    force: Force = False
    discard: Discard = False

    @property
    def options(self) -> "Options":
        from ..jobs.run import Options, parse_part

        part = parse_part(self.part)
        return Options(part, self.overwrite, self.retry_failed, self.force, self.discard)


def same_command(*more: str) -> str:
    """The command that was given, as it goes on: `--overwrite` would begin from the start.

    more: words to add.
    """
    given = [word for word in sys.argv[1:] if word != "--overwrite" and word not in more]
    return shlex.join(["combo", *given, *more])


def command(
    app: typer.Typer, name: str | None = None, goes_on: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a command of `app`. A parameter that is a record stands for its fields.

    goes_on: whether it goes on where it was, given again after Ctrl-C.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        records: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            kind = records.get(parameter.name)
            if kind is None:
                own = parameter.replace(kind=parameter.KEYWORD_ONLY)
                parameters.append(own.replace(annotation=hints[parameter.name]))
                continue
            types = get_type_hints(kind, include_extras=True)
            parameters += [
                inspect.Parameter(
                    each.name,
                    parameter.KEYWORD_ONLY,
                    default=each.default,
                    annotation=types[each.name],
                )
                for each in fields(kind)
            ]

        def run(**given: Any) -> None:
            asked = dict(given)
            filled = {
                name: kind(**{each.name: given.pop(each.name) for each in fields(kind)})
                for name, kind in records.items()
            }
            try:
                with remedies.given(asked):
                    function(**filled, **given)
            except PermissionError as error:
                raise ComboError(
                    f"{error.filename or 'a file'}: no permission to read or write it; ask its "
                    f"owner, or name another store, run or folder"
                ) from error
            except FileNotFoundError as error:
                if error.filename or here_is_there():
                    raise
                raise ComboError("the folder you are in is gone; go to another (cd)") from error
            except OSError as error:
                said = error.filename and unwritten(error.filename, error, AGAIN, ELSEWHERE)
                if not said:  # what cannot be printed names no file: see `console.streams`
                    raise
                raise said from error
            except (KeyboardInterrupt, Stopped) as end:
                again = "go on with" if goes_on else "nothing of it is kept; begin again with"
                ended = Stopped if isinstance(end, Stopped) else Interrupted
                raise ended(str(end) or f"{again}: {same_command()}") from end

        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__doc__ = function.__doc__
        app.command(name or function.__name__)(run)
        return function

    return register


def words(record: Any) -> list[str]:
    """The options that a record was filled from, as they are written; defaults are left out."""
    found: list[str] = []
    hints = get_type_hints(type(record), include_extras=True)
    for each in fields(record):
        value = getattr(record, each.name)
        if value == each.default:
            continue
        info = hints[each.name].__metadata__[0]
        # The first of several names is where typer keeps a default.
        names = (getattr(info, "default", None), *(getattr(info, "param_decls", None) or ()))
        named = [name for name in names if isinstance(name, str) and name.startswith("-")]
        (option, *_) = (*named, f"--{each.name.replace('_', '-')}")
        if value is True:
            found.append(option)
        else:
            many: Sequence[object] = value if isinstance(value, list) else [value]
            found += [word for one in many for word in (option, str(one))]
    return found


def named_variants(variants: Sequence[str] | None) -> dict[str, list[str]]:
    """`--variant stage=NAME` as stage -> names. Raises ComboError."""
    from ..store import STAGES

    named: dict[str, list[str]] = {}
    for text in variants or ():
        stage, equals, name = text.partition("=")
        if not equals or stage not in STAGES:
            raise WrongUsage(f"--variant {text}: write stage=NAME, with a NAME of combo status")
        named.setdefault(stage, []).append(name)
    return named


def one_variant_each(variants: Sequence[str] | None) -> dict[str, str]:
    """`--variant stage=NAME`, at most once a stage. Raises ComboError."""
    named = named_variants(variants)
    for stage, names in named.items():
        if len(names) > 1:
            raise WrongUsage(f"--variant {stage}: given {len(names)} times; a run takes one")
    return {stage: names[0] for stage, names in named.items()}
