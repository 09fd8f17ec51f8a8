"""Sound from any file: decoded, mixed to mono and resampled block by block.

What the reference does with a 16-bit WAV file (samples / 32768, mean of the channels) is done here
with whatever people have. Files that libsndfile knows go through it, everything else, sound tracks
of videos above all, through PyAV; the content decides, never the file's name. Blocks are resampled
as they are decoded, so a long file needs the memory of its result only, and none of that in
`open_sound`.

What becomes of unusual files:

- silence and clipping are sound like any other;
- a sound shorter than one window is read, and refused by the front-end that needs the window;
- a MediaError naming the file: missing, 0 bytes, no samples, NaN or infinite samples, not a sound,
  a video without sound, a stream that is not there, a gap of more than 0.1 s, longer than allowed,
  damaged, truncated.

A truncated file is noticed where its format says how long it should be: WAV, AIFF, AU, CAF, W64,
FLAC, OGG, MP3 with a Xing header, MP4/M4A/MOV, and Matroska/WebM (there from 0.25 s on). Formats
that are a bare stream (MP3 without that header, ADTS, MPEG-TS, AVI) just end earlier.
"""

import io
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import MediaError
from .pickles import read_pickle
from .resample import Resampling, Samples, resampler

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from torch import Tensor

BLOCK = 1 << 17
"""Samples of each channel that are decoded and resampled at once."""

GAP = 0.1
"""Seconds by which a stream's timestamps may differ from its samples before it counts as a gap."""

CUT = 0.25
"""Seconds that may be missing at the end: containers round, and count a codec's padding."""


@dataclass(frozen=True)
class Sound:
    """A sound as the front-end wants it.

    waveform: [N] float64 mono, -1..1 where the file does not exceed it, N >= 1.  rate: its samples
    per second.  rate_in, channels, codec: what the file had.  start: seconds from the first frame
    of the file's first video stream to the first sample, 0 for a file without one; a frame shown at
    t is heard at t - start in the waveform.
    """

    waveform: Samples
    rate: int
    rate_in: int
    channels: int
    codec: str
    start: float

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.rate


def read_sound(
    path: Path,
    rate: int = 16_000,
    stream: int | None = None,
    longest: float | None = None,
    resampling: Resampling = "kaiser_best",
) -> Sound:
    """Read a whole sound file or sound track.

    stream: which of the file's sound streams, counted from 0; the first by default.
    resampling: "kaiser_best", the reference's filter, or "soxr"; see `resample`.
    longest: seconds; a longer sound is a MediaError, raised before more than that is in memory.
    Raises MediaError as the module says.
    """
    buffer = bytearray()
    with open_sound(path, rate, stream, resampling) as source:
        for block in source.blocks:
            buffer += block.data
            if longest is not None and len(buffer) > 8 * rate * longest:
                raise MediaError(path, f"the sound is longer than the {longest:g} s allowed")
    waveform = np.frombuffer(buffer, dtype=np.float64)
    return Sound(waveform, rate, source.rate, source.channels, source.codec, source.start)


@contextmanager
def open_sound(
    path: Path,
    rate: int = 16_000,
    stream: int | None = None,
    resampling: Resampling = "kaiser_best",
) -> "Generator[SoundBlocks]":
    """The sound of `read_sound` in pieces, for sounds that should never be in memory as one.

    The pieces last seconds at most and make up exactly the same samples. What is wrong with a part
    of the file is noticed when that part is read.  Raises MediaError, here or while reading.
    """
    with _open(path, stream) as source:
        yield replace(source, blocks=_resampled(path, source, rate, resampling))


# --- decoding ---------------------------------------------------------------------------------


@dataclass
class SoundBlocks:
    """An open sound: what the file has, as in `Sound`, and its samples, block by block.

    blocks: [n] float64 mono; in this module also [n, channels], before they are mixed.
    """

    rate: int
    channels: int
    codec: str
    start: float
    blocks: Iterator[Samples]


def _resampled(
    path: Path, source: SoundBlocks, rate: int, resampling: Resampling
) -> Iterator[Samples]:
    stream = resampler(resampling, source.rate, rate)
    position = given = 0
    for block in source.blocks:
        if not np.isfinite(block).all():
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))[0]
            at = (position + int(bad)) / source.rate
            raise MediaError(path, f"NaN or infinite samples at {at:.3f} s")
        position += len(block)
        mono = block[:, 0] if source.channels == 1 else block.mean(axis=1)
        some = stream.push(np.ascontiguousarray(mono))
        given += len(some)
        yield some
    rest = stream.finish()
    if given + len(rest) == 0:
        raise MediaError(path, "there is no sample in it")
    yield rest


@contextmanager
def _open(path: Path, stream: int | None) -> Generator[SoundBlocks]:
    import av
    import soundfile
    from av.error import FFmpegError

    try:
        with path.open("rb") as file:
            head = _head(file)
    except OSError as error:
        raise MediaError(path, _reason(error)) from error
    if not head:
        raise MediaError(path, "the file is empty (0 bytes)")
    try:
        if _known_to_libsndfile(head):
            if stream:
                raise MediaError(path, f"it has one sound stream, so there is no stream {stream}")
            with soundfile.SoundFile(path) as sound:
                yield SoundBlocks(
                    sound.samplerate,
                    sound.channels,
                    f"{sound.format}/{sound.subtype}".lower(),
                    0.0,
                    _libsndfile_blocks(path, sound),
                )
        else:
            with av.open(path, metadata_errors="replace") as container:
                yield _ffmpeg_source(path, container, stream)
    except soundfile.LibsndfileError as error:
        raise MediaError(path, f"damaged or truncated sound ({_reason(error)})") from error
    except FFmpegError as error:
        raise MediaError(path, f"no readable sound ({_reason(error)})") from error


def _head(file: io.BufferedReader) -> bytes:
    """The first bytes of the sound itself, behind an ID3 tag if there is one."""
    head = file.read(64)
    if head[:3] == b"ID3" and len(head) > 10:
        # The tag's length is in four bytes of seven bits.
        length = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(10 + length)
        head = file.read(64) or head
    return head


def _known_to_libsndfile(head: bytes) -> bool:
    kind, inner = head[:4], head[8:12]
    if kind in (b"RIFF", b"RF64", b"FORM"):
        return inner in (b"WAVE", b"AIFF", b"AIFC")
    if kind == b"OggS":
        return any(codec in head[28:] for codec in (b"\x01vorbis", b"OpusHead", b"\x7fFLAC"))
    # Eleven set bits begin a frame of MPEG sound; with layer 0 it is AAC's ADTS instead.
    mpeg = head[0] == 0xFF and len(head) > 1 and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0
    return mpeg or kind in (b"fLaC", b"riff", b"caff", b".snd")


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split()).rstrip(".") or type(error).__name__


# --- files that libsndfile reads --------------------------------------------------------------


def _libsndfile_blocks(path: Path, sound: Any) -> Iterator[Samples]:
    _refuse_stated_truncation(path, sound)
    count = 0
    while len(block := sound.read(BLOCK, dtype="float64", always_2d=True)):
        count += len(block)
        yield block
    # An MP3 file's header may count a decoder's delay of up to two frames.
    slack = 2 * 1152 if sound.format == "MP3" else 0
    if count + slack < sound.frames:
        raise MediaError(path, f"truncated after {count} of {sound.frames} samples")


def _refuse_stated_truncation(path: Path, sound: Any) -> None:
    """libsndfile reads what is left of a truncated file; its log says what the header stated."""
    stated = re.search(
        r"^\s*(?:data|SSND|Data Size|Riff size|riff)\s*:\s*(\d+) \(should be (\d+)\)",
        sound.extra_info,
        re.MULTILINE,
    )
    if stated:
        expected, there = int(stated[1]), int(stated[2])
        # A program that writes to a pipe cannot know the length and puts the highest number there.
        streamed = any(limit - (1 << 16) <= expected <= limit for limit in (1 << 31, 1 << 32))
        if there < expected and not streamed:
            raise MediaError(path, f"truncated after {there} of {expected} bytes of samples")
    if sound.format == "OGG" and not _ogg_is_whole(path):
        raise MediaError(path, "truncated: the end of the stream is missing")


def _ogg_is_whole(path: Path) -> bool:
    """Whether the last page says that it is the last one, and is there to its end."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 65_536))  # no page is longer
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & 0x04:
        return False
    lengths = page[27 : 27 + page[26]]
    return len(lengths) == page[26] and len(page) >= 27 + len(lengths) + sum(lengths)


# --- everything else --------------------------------------------------------------------------


def _ffmpeg_source(path: Path, container: "InputContainer", stream: int | None) -> SoundBlocks:
    sounds = container.streams.audio
    wanted = stream or 0
    if not sounds:
        raise MediaError(path, "there is no sound in it")
    if not 0 <= wanted < len(sounds):
        raise MediaError(path, f"it has {len(sounds)} sound streams, so there is no {wanted}")
    chosen = sounds[wanted]
    frames = container.decode(chosen)
    # Only a decoded frame tells the rate: some AAC doubles the one in the header.
    first = next(frames, None)
    if first is None:
        raise MediaError(path, "there is no sample in it")
    began = first.time or 0.0
    codec = f"{container.format.name.split(',')[0]}/{chosen.codec_context.name}"
    source = SoundBlocks(first.sample_rate, first.layout.nb_channels, codec, 0.0, iter(()))
    if container.streams.video:
        picture = container.streams.video[0]
        source.start = began - float((picture.start_time or 0) * (picture.time_base or 0))

    def blocks() -> Iterator[Samples]:
        frame, count = first, 0
        while frame is not None:
            if (frame.sample_rate, frame.layout.nb_channels) != (source.rate, source.channels):
                raise MediaError(path, "the sample rate or the channels change within the stream")
            heard = count / source.rate
            if frame.time is not None and abs(frame.time - began - heard) > GAP:
                raise MediaError(path, f"a gap or jump in the sound at {heard:.2f} s")
            count += frame.samples
            yield _samples(frame)
            frame = next(frames, None)
        end, stated = began + count / source.rate, _stated_end(container, chosen)
        if stated is not None and end < stated - CUT:
            raise MediaError(path, f"truncated at {end:.2f} s, where {stated:.2f} s are stated")

    source.blocks = _gathered(blocks())
    return source


def _gathered(blocks: Iterator[Samples]) -> Iterator[Samples]:
    """The same samples in blocks of about BLOCK; codecs give a thousand at a time."""
    some: list[Samples] = []
    for block in blocks:
        some.append(block)
        if sum(map(len, some)) >= BLOCK:
            yield np.concatenate(some)
            some.clear()
    if some:
        yield np.concatenate(some)


def _samples(frame: "AudioFrame") -> Samples:
    """[n, channels] float64 of a decoded frame; whole numbers scaled by their range."""
    values = frame.to_ndarray()
    channels = frame.layout.nb_channels
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    half_range = 1 << (8 * values.dtype.itemsize - 1)
    middle = half_range if values.dtype.kind == "u" else 0
    return (values.astype(np.float64) - middle) / half_range


def _stated_end(container: "InputContainer", stream: "AudioStream") -> float | None:
    """When the stream ends as the container says; None where that would only be an estimate."""
    kind = container.format.name
    if "mp4" in kind and stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    if "matroska" not in kind:
        return None
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    if len(container.streams) == 1 and container.duration is not None:
        return container.duration / 1_000_000
    return None


# --- AVSBench's stored log-mels ---------------------------------------------------------------


def read_log_mel_pickle(path: Path) -> "Tensor":
    """The patches in one of AVSBench's `audio_log_mel/*.pkl`: [P, 1, 96, 64] float32, on the CPU.

    For users who have only these files. Reads `pickle.dump` and both formats of `torch.save`,
    tensors saved from a GPU included. Raises MediaError for anything else.
    """
    import torch

    try:
        patches = read_pickle(path)
    except OSError as error:
        raise MediaError(path, _reason(error)) from error
    except Exception as error:
        # Damaged bytes make the readers raise whatever they lead them into.
        raise MediaError(path, f"not a pickled tensor ({_reason(error)[:120]})") from error
    if not isinstance(patches, torch.Tensor):
        raise MediaError(path, "not a pickled tensor (something else is)")
    if patches.ndim != 4 or patches.shape[0] == 0:
        raise MediaError(path, "not a tensor of log-mel patches [P, 1, 96, 64]")
    if tuple(patches.shape[1:]) != (1, 96, 64) or not patches.is_floating_point():
        found = f"{list(patches.shape)} {patches.dtype}"
        raise MediaError(path, f"log-mel patches are [P, 1, 96, 64] floating point, not {found}")
    if not bool(patches.isfinite().all()):
        raise MediaError(path, "NaN or infinite numbers in the log-mel patches")
    return patches.detach().float().contiguous()
