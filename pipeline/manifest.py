"""data_manifest.yaml as validated, frozen models: data sets, store, stages, cluster, weights.

Paths may hold `${NAME}` and `${NAME:-value}`, filled from the environment when the path is used, so
that a manifest may name data sets that this machine does not have. A relative path is relative to
the manifest's folder; in the manifest that is installed with combo, to the working folder.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)

from .durable import absolute
from .errors import ComboError, UnknownName, WrongUsage, readable, unknown
from .generators import SECTIONS
from .generators.generator import Precision
from .media.limits import USUAL, Limits

FILE_NAME = "data_manifest.yaml"
_INSTALLED = Path(__file__).parent.parent / FILE_NAME
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")

MOST_BYTES, MOST_ENTRIES = 1 << 20, 100_000
"""No manifest is larger, with its aliases written out."""

MOST_SIDE = 4096

Fit = Literal["squash", "crop"]


def _square(value: Any) -> Any:
    return (value, value) if type(value) is int else value


def _folder_name(name: str) -> str:
    """A name that becomes one folder of the store."""
    if not name.isprintable() or set(name) & set("/\\") or name[:1] in ("", ".", "-"):
        raise ValueError("must be the plain name of a folder")
    if name == "jobs" or len(name.encode()) > 100:
        raise ValueError("must not be 'jobs', and 100 bytes at most")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


def _whole(shares: dict[str, float]) -> dict[str, float]:
    if shares and abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares must add up to 1, not to {sum(shares.values()):g}")
    return shares


def _old_word(value: Any) -> Any:
    return "layout" if value == "avsbench" else value  # until 0.1; `folders` never took that rule


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSet(Model):
    """One data set: where it lies, what its folders are like, how frames reach their size."""

    layout: str
    """`avsbench-s4`, `avsbench-ms3`, `avsbench-avss` or `folders`."""
    root: str
    """The data set's folder; `${NAME}` and `${NAME:-value}` are filled from the environment."""
    splits: tuple[FolderName, ...] | None = None
    """Which splits to use; all of the layout's when left out."""
    fit: dict[str, Fit] = Field(default_factory=dict)
    """Per split: `squash` to the size, or short side to the size and `crop` the centre."""
    frames_per_clip: int | None = Field(default=None, ge=1, le=100_000)
    """Layout `folders` only: the most frames that a clip may have; 1000 when left out."""
    cut: int | None = Field(default=None, ge=1, le=1000)
    """Layout `folders` only: clips of more frames are cut into parts of so many: NAME#1, NAME#2."""
    seconds_per_frame: float = Field(default=1.0, ge=0.001, le=1e6)
    """Layout `folders` only: the distance of the frames taken from a video, in seconds."""
    split: Annotated[
        dict[FolderName, Annotated[float, Field(gt=0, le=1)]], AfterValidator(_whole)
    ] = Field(default_factory=dict)
    """Layout `folders` only, clips straight in the root: split -> its share of the clips."""
    split_seed: int = 0
    """Another seed, another division."""


Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


class FramesSettings(Model):
    size: Annotated[tuple[Side, Side], BeforeValidator(_square)] = (224, 224)
    """Height and width in the store, in pixels; multiples of 32."""
    source: Literal["media", "imported"] = "media"
    """The data set's frames, or those that `combo import-frames` has brought."""


class AudioSettings(Model):
    encoder: str = "vggish"
    """`vggish`, `vggish-pca`, `torchvggish` or `mel-stats`."""
    windows: Annotated[Literal["layout", "centred"], BeforeValidator(_old_word)] = "layout"
    """Which 0.96 s of sound belong to a frame: by the layout's own rule, or around its time."""
    source: Literal["sound", "log-mel"] = "sound"
    """Sound files, or AVSBench-object's `audio_log_mel/*.pkl` where only those are left."""
    stream: int | None = Field(default=None, ge=0, le=1000)
    """Which of a file's sound streams, counted from 0; the first by default."""
    resampling: Literal["kaiser_best", "soxr"] = "kaiser_best"
    """resampy's filter, as the public code's, or SoX's very high quality."""
    memory_limit: ByteSize | None = Field(default=None, ge=4 << 20)
    """Working memory of front-end and network beside the weights, such as 32MB; by default 64 MiB,
    on a GPU 1 GiB. Not part of the result."""


if TYPE_CHECKING:

    class _Sections(Model):
        """A section of `stages.maskige` for each kind of generator, by the name it gives it."""

else:
    _Sections = create_model(
        "_Sections", __base__=Model, **{name: (kind, kind()) for name, kind in SECTIONS.items()}
    )


class MaskigeSettings(_Sections):
    generator: str = "semantic-sam-l"
    """`felzenszwalb`, `sam-vit-b|l|h`, `semantic-sam-t|l`, or `imported`."""
    at: Literal["native", "stored"] = "native"
    """Make masks on the frame at its own size, or at the size in the store."""
    precision: Precision = "fp32"
    """Of a network; bf16 and fp16 are for GPUs. Part of the result."""
    compile: bool = False
    """Let torch.compile make a network's expensive parts: minutes for the first frame of every
    size, and in fewer than eight sizes. Part of the result (float noise)."""
    memory_limit: ByteSize | None = None
    """Working memory of a network, such as 8GB; by default what the device has. Not part of the
    result."""

    def own(self, section: str) -> Any:
        """The settings of one kind of generator, by its section."""
        return getattr(self, section)


class Stages(Model):
    frames: FramesSettings = FramesSettings()
    audio: AudioSettings = AudioSettings()
    maskige: MaskigeSettings = MaskigeSettings()


class ClusterSettings(Model):
    """What a task of `combo submit`, or a Dask worker that is a job, asks the cluster for."""

    cores: int | None = Field(default=None, ge=1)
    """CPU cores a task."""
    memory: ByteSize | None = None
    """Memory a task, such as 16GB."""
    walltime: str | None = Field(default=None, pattern=r"^(\d+-)?\d{1,2}:\d{2}(:\d{2})?$")
    """Time limit a task, as 04:00:00. When it is near, the task queues itself again."""
    warning: int = Field(default=120, ge=10)
    """Seconds before the time limit at which a task is told to finish its unit. A unit that takes
    longer is left undone, and the task is queued again all the same."""
    arguments: tuple[str, ...] = Field(
        default=(), validation_alias=AliasChoices("arguments", "sbatch")
    )
    """More arguments for the scheduler, such as --partition=gpu or --gres=gpu:1."""

    @property
    def seconds(self) -> int | None:
        """The time limit: `1-02` and `1-02:03` are days and hours, `02:03` minutes and seconds."""
        if self.walltime is None:
            return None
        days, _, rest = self.walltime.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if days:
            parts += [0] * (3 - len(parts))
        seconds = 0
        for part in parts:
            seconds = 60 * seconds + part
        return seconds + 86400 * int(days or 0)

    def with_arguments(self, arguments: Sequence[str]) -> "ClusterSettings":
        """A copy with more arguments for the scheduler."""
        return self.model_copy(update={"arguments": (*self.arguments, *arguments)})


class WeightFile(Model):
    path: str | None = None
    """The file, used where it lies; by default that of the weights folder."""
    sha256: str | None = None
    """Expected digest (hex); the first digits are enough."""


class Manifest(Model):
    store: str = "${COMBO_STORE:-store}"
    """Folder of the store, or a packed file; variables as in a root."""
    clips_per_unit: int = Field(default=8, ge=1, le=4096)
    """Clips a unit of work: what one task computes and writes at once, the most a kill loses."""
    data_sets: dict[FolderName, DataSet]
    stages: Stages = Stages()
    limits: Limits = USUAL
    cluster: ClusterSettings = ClusterSettings()
    weights: dict[str, WeightFile] = Field(default_factory=dict)

    folder: Path = Path()
    """The folder that relative paths are relative to."""
    file: Path = Path(FILE_NAME)

    def path(self, text: str, of: str) -> Path:
        """A path of this manifest, absolute, variables filled. of: what it is, for the error."""

        def fill(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            value = os.environ.get(name) or default
            if value is None:
                raise ComboError(
                    f"{of} in {self.file} needs ${{{name}}}, which is not set; "
                    f"run: export {name}=FOLDER"
                )
            return value

        try:
            filled = absolute(self.folder / Path(_VARIABLE.sub(fill, text)).expanduser())
        except RuntimeError as error:
            raise ComboError(f"{of} in {self.file}: {text}: {error}") from None
        if "\0" in str(filled):
            raise ComboError(f"{of} in {self.file}: {text!r} is no path")
        return filled

    @property
    def store_path(self) -> Path:
        return self.path(self.store, "store")

    def root(self, data_set: str) -> Path:
        return self.path(self.data_sets[data_set].root, f"data_sets.{data_set}.root")

    def environment(self) -> dict[str, str]:
        """The variables that this manifest's paths name, and the weights folder's, where set."""
        texts = [
            self.store,
            *(data_set.root for data_set in self.data_sets.values()),
            *(weights.path or "" for weights in self.weights.values()),
        ]
        names = {match.group(1) for text in texts for match in _VARIABLE.finditer(text)}
        return {
            name: os.environ[name]
            for name in sorted(names | {"COMBO_WEIGHTS"})
            if os.environ.get(name)
        }

    def weight_paths(self) -> dict[str, Path]:
        """The weights that this manifest gives a path for."""
        return {
            name: self.path(entry.path, f"weights.{name}.path")
            for name, entry in self.weights.items()
            if entry.path is not None
        }

    def choose(self, data_sets: Sequence[str]) -> list[str]:
        """The data sets asked for; with none named, all whose root's variables are set."""
        for name in data_sets:
            if name not in self.data_sets:
                said = f"no data set {name!r} in {self.file}"
                if name in _of_combo(self.file):
                    raise UnknownName(
                        f"{said}, which goes before combo's own manifest, where it is; work in "
                        f"another folder, or copy its entry from {_INSTALLED}"
                    )
                raise unknown(said, name, self.data_sets, "it names")
        return list(data_sets) or [n for n, d in self.data_sets.items() if self._can_fill(d.root)]

    def with_store(self, store: Path | None) -> "Manifest":
        """A copy with another store, or packed file, where one is given."""
        return self if store is None else self.model_copy(update={"store": str(absolute(store))})

    def with_stages(
        self,
        encoder: str | None = None,
        generator: str | None = None,
        memory_limit: str | None = None,
    ) -> "Manifest":
        """A copy with another sound encoder, Maskige generator or memory limit, where given.

        Raises ComboError for a memory limit that is no number of bytes.
        """
        audio, maskige = self.stages.audio, self.stages.maskige
        if encoder is not None:
            audio = audio.model_copy(update={"encoder": encoder})
        if generator is not None:
            maskige = maskige.model_copy(update={"generator": generator})
        if memory_limit is not None:
            try:
                limit = TypeAdapter(ByteSize).validate_python(memory_limit)
            except ValidationError:
                raise WrongUsage(f"--memory-limit {memory_limit}: write it as 8GB") from None
            maskige = maskige.model_copy(update={"memory_limit": limit})
        stages = self.stages.model_copy(update={"audio": audio, "maskige": maskige})
        return self.model_copy(update={"stages": stages})

    @staticmethod
    def _can_fill(text: str) -> bool:
        return all(
            os.environ.get(m.group(1)) or m.group(2) is not None for m in _VARIABLE.finditer(text)
        )


def load_manifest(path: Path | None = None) -> Manifest:
    """Read a manifest: the path given, else ./data_manifest.yaml, else the installed one.

    Raises ComboError with the entry at fault.
    """
    file = path or (Path(FILE_NAME) if Path(FILE_NAME).exists() else _INSTALLED)
    value = _read(file)
    for reserved in ("folder", "file"):
        if reserved in value:
            raise ComboError(f"{file}: {reserved}: no such setting")
    folder = Path() if file.resolve() == _INSTALLED.resolve() else file.parent
    try:
        return Manifest.model_validate({**value, "folder": folder, "file": file})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        given = repr(first["input"])
        given = given if len(given) <= 80 else f"{given[:80]} ..."
        raise ComboError(
            readable(f"{file}: {where}: {first['msg']} (given: {given})").replace("\n", " ")
        ) from None


def _of_combo(file: Path) -> Mapping[str, DataSet]:
    """The data sets of the installed manifest, where `file` is another."""
    return {} if file.resolve() == _INSTALLED.resolve() else load_manifest(_INSTALLED).data_sets


def _read(file: Path) -> dict[str, Any]:
    """A manifest's mapping. Raises ComboError for what is none, or asks for too much."""
    import yaml

    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ComboError(f"{file} is larger than {MOST_BYTES} bytes; is it a manifest?")
        loader = yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise ComboError(f"{file} holds no mapping; it must name at least data_sets")
            if _entries(file, node, {}) > MOST_ENTRIES:
                raise ComboError(f"{file}: its aliases stand for more than {MOST_ENTRIES} entries")
            value: dict[str, Any] = loader.construct_document(node)
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise WrongUsage(
            f"no manifest at {file}; give one with --manifest FILE, or make one of a folder of "
            "clips: combo init FOLDER"
        ) from None
    except IsADirectoryError:
        raise WrongUsage(
            f"{file} is a folder, no manifest; give a file with --manifest FILE, or make one of "
            f"the clips in it: combo init {file}"
        ) from None
    except RecursionError:
        raise ComboError(f"{file}: lists or mappings in each other too deep") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ComboError(readable(f"{file} cannot be read as YAML: {reason}")) from None
    strange = [key for key in value if not isinstance(key, str)]
    if strange:
        raise ComboError(f"{file}: {strange[0]!r}: no such setting")
    return value


def _entries(file: Path, node: Any, known: dict[int, int]) -> int:
    """Entries below a node of YAML, those of an alias counted each time.

    known: node's id -> its entries, 0 while they are counted.
    Raises ComboError for an entry that is given twice, or that holds itself.
    """
    if isinstance(node.value, str):
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        pairs = isinstance(node.value[0], tuple) if node.value else False
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if pairs else ():
            if isinstance(key.value, str):
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise ComboError(f"{file}: line {line}: {key.value} is given twice")
                seen.add((key.tag, key.value))
        inner = [each for pair in node.value for each in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_entries(file, each, known) for each in inner)
    if not known[id(node)]:
        raise ComboError(f"{file}: line {node.start_mark.line + 1}: an entry holds itself")
    return known[id(node)]
