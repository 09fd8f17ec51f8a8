"""Sound from any file: decoded, mixed to mono and resampled block by block.

What the reference does with a 16-bit WAV file (samples / 32768, mean of the channels) is done here
with whatever people have. Files that libsndfile knows go through it, everything else, sound tracks
of videos above all, through PyAV; the content decides, never the file's name. Blocks are resampled
as they are decoded, so a long file needs the memory of its result only, and none of that in
`open_sound`.

What becomes of unusual files:

- silence and clipping are sound like any other;
- a WAV file that states no length (0, or the highest number) is read to its end;
- a MediaError naming the file: missing, not a regular file, 0 bytes, no samples, NaN or infinite
  samples, not a sound, a video without sound, a stream that is not there, a gap of more than 0.1 s,
  beyond the limits, damaged, truncated by a window step (0.96 s) or more.

A truncated file is noticed where its format says how long it should be: WAV, AIFF, AU, CAF, W64,
FLAC, OGG, MP3 with a Xing header, MP4/M4A/MOV, and Matroska/WebM. Formats that are a bare stream
(MP3 without that header, ADTS, MPEG-TS, AVI) just end earlier. An Ogg stream without its last page,
and CAF, are whole or truncated: they do not tell how much is lacking.
"""

import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MediaError, reason_of
from .clock import LACK, first_shown, picture_stream, stated_end, zero
from .limits import USUAL, Limits
from .opened import OpenFile, container_of, opened
from .resample import Resampling, Samples, resampler

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

BLOCK = 1 << 17
"""Samples of each channel that are decoded and resampled at once."""

GAP = 0.1
"""Seconds by which a stream's timestamps may differ from its samples before it counts as a gap."""

LOWEST_RATE = 1_000
"""Samples a second; slower ones hold nothing that a front-end hears, and make thousands of each."""


@dataclass(frozen=True)
class Sound:
    """A sound as the front-end wants it.

    waveform: [N] float64 mono, -1..1 where the file does not exceed it, N >= 1.  rate: its samples
    per second.  rate_in, channels, codec: what the file had.  start: seconds from the file's zero
    (see `clock`) to the first sample; a frame shown at t is heard at t - start in the waveform.
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
    limits: Limits = USUAL,
    digests: dict[Path, str] | None = None,
) -> Sound:
    """Read a whole sound file or sound track.

    stream: which of the file's sound streams, counted from 0; the first by default.
    resampling: "kaiser_best", the reference's filter, or "soxr"; see `resample`.
    longest: seconds; a longer sound is a MediaError, raised before more than that is in memory.
    digests: receives the SHA-256 of the bytes that were decoded.
    Raises MediaError as the module says.
    """
    buffer = bytearray()
    with open_sound(path, rate, stream, resampling, limits, digests) as source:
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
    limits: Limits = USUAL,
    digests: dict[Path, str] | None = None,
) -> "Generator[SoundBlocks]":
    """The sound of `read_sound` in pieces, for sounds that should never be in memory as one.

    The pieces last seconds at most and make up exactly the same samples. What is wrong with a part
    of the file is noticed when that part is read.  Raises MediaError, here or while reading.
    """
    with opened(path) as file:
        with _open(file, stream, limits) as source:
            blocks = _limited(path, source, limits)
            yield replace(source, blocks=_resampled(path, source, blocks, rate, resampling))
        if digests is not None:
            digests[path] = file.digest()


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


def _limited(path: Path, source: SoundBlocks, limits: Limits) -> Iterator[Samples]:
    """The same samples, as long as there are not too many."""
    count = 0
    for block in source.blocks:
        count += len(block)
        if count > limits.seconds * source.rate:
            raise MediaError(
                path,
                "sound that is longer than limits.seconds in data_manifest.yaml allows "
                f"({limits.seconds:g})",
            )
        yield block


def _resampled(
    path: Path, source: SoundBlocks, blocks: Iterator[Samples], rate: int, resampling: Resampling
) -> Iterator[Samples]:
    stream = resampler(resampling, source.rate, rate)
    position = given = 0
    for block in blocks:
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
def _open(file: OpenFile, stream: int | None, limits: Limits) -> Generator[SoundBlocks]:
    path = file.path
    with ExitStack() as stack:
        if not file.size:
            raise MediaError(path, "the file is empty (0 bytes)")
        try:
            if _known_to_libsndfile(_head(file)):
                source = stack.enter_context(_libsndfile_source(file, stream))
            else:
                source = stack.enter_context(_ffmpeg_source(file, stream, limits))
        except Exception as error:
            raise _undecoded(path, error) from error
        if not LOWEST_RATE <= source.rate <= limits.rate:
            raise MediaError(
                path,
                f"{source.rate} samples a second are not between {LOWEST_RATE} and limits.rate in "
                f"data_manifest.yaml ({limits.rate})",
            )
        yield replace(source, blocks=_guarded(path, source.blocks))


def _guarded(path: Path, blocks: Iterator[Samples]) -> Iterator[Samples]:
    """The same blocks; decoders raise whatever damaged bytes lead them into."""
    while True:
        try:
            block = next(blocks, None)
        except Exception as error:
            raise _undecoded(path, error) from error
        if block is None:
            return
        yield block


def _undecoded(path: Path, error: Exception) -> MediaError:
    import soundfile

    if isinstance(error, MediaError):
        return error
    what = "damaged or truncated sound"
    if not isinstance(error, soundfile.LibsndfileError):
        what = "no readable sound"
    return MediaError(path, f"{what} ({reason_of(error)})")


def _head(file: OpenFile) -> bytes:
    """The first bytes of the sound itself, behind an ID3 tag if there is one."""
    file.seek(0)
    head = file.read(1024)
    if head[:3] == b"ID3" and len(head) > 10:
        # The tag's length is in four bytes of seven bits.
        length = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(10 + length)
        head = file.read(1024) or head
    return head


def _known_to_libsndfile(head: bytes) -> bool:
    kind, inner = head[:4], head[8:12]
    if kind == b"RIFF" and inner == b"WAVE":
        return not _wave_without_length(head)
    if kind in (b"RF64", b"FORM"):
        return inner in (b"WAVE", b"AIFF", b"AIFC")
    if kind == b"OggS":
        return _one_stream_of_sound(head)
    # Eleven set bits begin a frame of MPEG sound; with layer 0 it is AAC's ADTS instead.
    mpeg = head[0] == 0xFF and len(head) > 1 and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0
    return mpeg or kind in (b"fLaC", b"riff", b"caff", b".snd")


def _wave_without_length(head: bytes) -> bool:
    """Whether a WAV file states 0 bytes of samples, as one does whose recorder did not end well.

    FFmpeg takes what follows for the samples, libsndfile takes the 0 for the truth.
    """
    place = 12
    while place + 8 <= len(head):
        length = int.from_bytes(head[place + 4 : place + 8], "little")
        if head[place : place + 4] == b"data":
            return length == 0
        place += 8 + length + length % 2
    return False


def _one_stream_of_sound(head: bytes) -> bool:
    """Whether an Ogg file begins with a sound, and with nothing else beside it."""
    body = 27 + head[26] if len(head) > 26 else len(head)
    following = body + sum(head[27:body])
    page, after = head[body:following], head[following : following + 6]
    begins = len(after) == 6 and after[:4] == b"OggS" and after[5] & 0x02 != 0
    return page.startswith((b"\x01vorbis", b"OpusHead", b"\x7fFLAC")) and not begins


# --- files that libsndfile reads --------------------------------------------------------------


@contextmanager
def _libsndfile_source(file: OpenFile, stream: int | None) -> Generator[SoundBlocks]:
    import soundfile

    if stream:
        raise MediaError(file.path, f"it has one sound stream, so there is no stream {stream}")
    with soundfile.SoundFile(file.descriptor, closefd=False) as sound:
        kind = f"{sound.format}/{sound.subtype}".lower()
        blocks = _libsndfile_blocks(file, sound)
        yield SoundBlocks(sound.samplerate, sound.channels, kind, 0.0, blocks)


def _libsndfile_blocks(file: OpenFile, sound: Any) -> Iterator[Samples]:
    import soundfile

    # What a whole file may lack, in samples; an MP3 header may count a delay of two frames besides.
    slack = LACK * sound.samplerate + (2 * 1152 if sound.format == "MP3" else 0)
    _refuse_stated_truncation(file, sound, slack)
    size = BLOCK if sound.channels <= 8 else max(1, 8 * BLOCK // sound.channels)
    count = 0
    while True:
        block = np.empty((size, sound.channels))
        try:
            block = sound.read(out=block)
        except soundfile.LibsndfileError:
            # What it could read before stands there all the same.
            block = block[: max(0, sound.tell() - count)]
            if count + len(block) + slack <= sound.frames:
                raise
        count += len(block)
        if not len(block):
            break
        yield block
    if count + slack <= sound.frames:
        raise MediaError(file.path, f"truncated after {count} of {sound.frames} samples")


def _refuse_stated_truncation(file: OpenFile, sound: Any, slack: float) -> None:
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
        # As many samples are lacking as those bytes would be, if they were like the others.
        cut = (expected - there) * sound.frames >= slack * there
        if there < expected and cut and not streamed:
            raise MediaError(file.path, f"truncated after {there} of {expected} bytes of samples")
    if sound.format == "OGG" and not _ogg_is_whole(file):
        raise MediaError(file.path, "truncated: the end of the stream is missing")


def _ogg_is_whole(file: OpenFile) -> bool:
    """Whether the last page says that it is the last one, and is there to its end."""
    place = file.tell()
    file.seek(max(0, file.size - 65_536))  # no page is longer
    tail = file.read()
    file.seek(place)  # libsndfile reads the same file
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & 0x04:
        return False
    lengths = page[27 : 27 + page[26]]
    return len(lengths) == page[26] and len(page) >= 27 + len(lengths) + sum(lengths)


# --- everything else --------------------------------------------------------------------------


@contextmanager
def _ffmpeg_source(file: OpenFile, stream: int | None, limits: Limits) -> Generator[SoundBlocks]:
    with container_of(file, limits) as container:
        pictures = picture_stream(container)
        begin = zero(container, first_shown(container, pictures) if pictures else None)
    with container_of(file, limits) as container:
        yield _decoded(file.path, container, stream, begin)


def _decoded(
    path: Path, container: "InputContainer", stream: int | None, begin: float
) -> SoundBlocks:
    """One of the sound streams. begin: the file's zero on its own clock."""
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
    began = begin if first.time is None else first.time
    rate, channels = first.sample_rate, first.layout.nb_channels

    def blocks() -> Iterator[Samples]:
        frame, count = first, 0
        while frame is not None:
            if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise MediaError(path, "the sample rate or the channels change within the stream")
            heard = count / rate
            if frame.time is not None and abs(frame.time - began - heard) > GAP:
                at = began + heard - begin
                raise MediaError(path, f"a gap or jump in the sound at {at:.2f} s")
            count += frame.samples
            yield _samples(frame)
            frame = next(frames, None)
        end, stated = began + count / rate, stated_end(container, chosen)
        if stated is not None and end < stated - LACK:
            raise MediaError(path, f"truncated at {end:.2f} s, where {stated:.2f} s are stated")

    kind = f"{container.format.name.split(',')[0]}/{chosen.codec_context.name}"
    return SoundBlocks(rate, channels, kind, began - begin, _gathered(blocks()))


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
