"""The clock of a file with pictures and sound: where it begins, and where streams end.

A clip's zero is the first presentation time in its file: of the pictures, or of a sound stream that
begins before them, whether they can be decoded or not. It is the same whichever of the
streams are read, for frames and for sound. Times are what a player counts: edit lists, the delay
of codecs and clocks that begin anywhere have been taken into account by FFmpeg's demuxers.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

LACK = 0.96
"""Seconds: one window step. A sound or video that ends less before its stated end is whole."""

_SETTLED = 256
"""Packets after which the first picture is known, in files that do not say in which order."""
_TAIL = 3.0
"""Seconds before the last packet from which packets are looked at again for the last picture."""


def picture_stream(container: "InputContainer") -> "VideoStream | None":
    """The stream of pictures that a player shows; the cover of an album is none."""
    from av.stream import Disposition

    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    return next((film for film in films if film is best), films[0] if films else None)


def zero(container: "InputContainer", pictures: float | None) -> float:
    """The file's zero on its own clock, in seconds. pictures: when the first one is shown."""
    starts = [] if pictures is None else [pictures]
    for sound in container.streams.audio:
        if sound.start_time is not None and sound.time_base:
            starts += [float(sound.start_time * sound.time_base)]
    return min(starts, default=0.0)


def first_shown(container: "InputContainer", stream: "VideoStream") -> float | None:
    """When the first picture is shown, in seconds of the file's own clock, decodable or not.

    None where packets have no times. The container stands anywhere afterwards.
    """
    first: float | None = None
    for count, packet in enumerate(container.demux(stream)):
        if first is not None and packet.dts is not None and packet.dts * packet.time_base >= first:
            break  # nothing is shown before it is decoded
        shown = shown_at(packet)
        if shown is not None:
            first = shown if first is None else min(first, shown)
        if first is not None and count > _SETTLED:
            break
    return first


def last_shown(container: "InputContainer", stream: "VideoStream") -> float | None:
    """When the last picture has been shown, from packets near the end; None: none are found there.

    The container stands anywhere afterwards.
    """
    from av.error import FFmpegError

    try:
        container.seek(1 << 62, stream=stream)
        end = end_of(container.demux(stream))
        if end is not None and stream.time_base:
            # The last to be decoded need not be the last to be shown.
            container.seek(int((end - _TAIL) / stream.time_base), stream=stream)
            end = end_of(container.demux(stream)) or end
    except FFmpegError:
        return None
    return end


def end_of(packets: "Iterable[Packet]") -> float | None:
    """When the last of these packets' pictures has been shown, in seconds; None: no times.

    A packet lasts until the next one in the order of decoding. Where that is not the order of
    showing, the last picture is taken to be shown no longer than the one before it.
    """
    last = before = None
    duration, reordered = 0.0, False
    for packet in packets:
        shown = shown_at(packet)
        if shown is None:
            continue
        if last is None or shown > last:
            before, last = last, shown
            duration = float((packet.duration or 0) * packet.time_base)
        else:
            before, reordered = shown if before is None else max(shown, before), True
    if last is None:
        return None
    if reordered and before is not None and before < last:
        duration = min(duration, last - before)
    return last + duration


def shown_at(packet: "Packet") -> float | None:
    """When what is in a packet is shown, in seconds; None for what is not, or has no time.

    AVI with B-frames gives the order of decoding only, which is right to a picture or two.
    """
    time = packet.dts if packet.pts is None else packet.pts
    if time is None or packet.is_discard or _unseen(packet):
        return None
    return float(time * packet.time_base)


def _unseen(packet: "Packet") -> bool:
    """VP8 has packets that only later pictures refer to."""
    vp8 = packet.stream.codec_context.name == "vp8"
    return vp8 and packet.size > 0 and not bytes(packet)[0] & 0x10


def stated_end(container: "InputContainer", stream: "AudioStream | VideoStream") -> float | None:
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
