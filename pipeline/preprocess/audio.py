"""One embedding of the sound for each frame of a clip."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..devices import Place, float32_products, threads
from ..encoders import encoder
from ..encoders.encoder import LOG_MEL, Encoder
from ..errors import ComboError, MediaError
from ..identity import recorded
from ..layouts import Clip, SoundRule
from ..manifest import AudioSettings
from ..media.limits import USUAL, Limits
from ..media.log_mel_files import read_log_mel_pickle
from ..media.sound_files import open_sound, read_sound
from ..store import ArraySpec, Variant
from .stage import Description, Outcome, Worker, combined_digest, read_as

if TYPE_CHECKING:
    from torch import Tensor

    from ..encoders.encoder import Encode

VERSION = 2
_WINDOWS_HELD = 64
"""Windows of a sound that wait for the front-end, 125 kB each as VGGish cuts them."""


def describe(
    settings: AudioSettings, rule: SoundRule, frames_per_clip: int, reading: int = 1
) -> Description:
    """Embeddings by the settings' encoder.

    rule: the layout's; the setting `windows: centred` goes before it. Raises ComboError.
    """
    rule, made = rule_of(settings, rule), encoder(settings.encoder)
    if settings.source == "log-mel" and made.patch != LOG_MEL:
        raise ComboError(
            f"stages.audio: {settings.encoder} takes no log-mel patches; "
            "leave out `source: log-mel`"
        )
    values = recorded(settings)
    del values["memory_limit"]
    return Description(
        "audio",
        f"{settings.encoder}-{rule}",
        VERSION,
        {**values, "windows": rule, **read_as(reading)},
        (ArraySpec("embedding", (frames_per_clip, made.width), "float32"),),
        weights=made.weights,
    )


def rule_of(settings: AudioSettings, rule: SoundRule) -> SoundRule:
    """Which sound belongs to a frame, by settings and the layout's rule. Raises ComboError."""
    if settings.windows == "centred":
        rule = "centred"
    if rule == "centred" and settings.source == "log-mel":
        raise ComboError(
            "stages.audio: log-mel patches are cut already; `source: log-mel` goes with the "
            "layouts of AVSBench and `windows: layout`"
        )
    return rule


@dataclass(frozen=True)
class AudioStage:
    """Sound -> windows -> patches -> embeddings, the embeddings of a unit together.

    rule: `avsbench` (consecutive windows, the last repeated), `zeros` (AVSS: zeros to the end) or
    `centred` (one window around each frame's time). Arrays a clip: embedding [T,D] float32.
    weights: file and digest by catalogue name.
    """

    settings: AudioSettings
    rule: SoundRule
    frames_per_clip: int
    weights: Mapping[str, tuple[Path, str]]
    limits: Limits = USUAL
    reading: int = 1

    def variant(self) -> Variant:
        described = describe(self.settings, self.rule, self.frames_per_clip, self.reading)
        return described.variant({name: digest for name, (_, digest) in self.weights.items()})

    @property
    def _encoder(self) -> Encoder:
        return encoder(self.settings.encoder)

    @property
    def has_network(self) -> bool:
        return bool(self._encoder.weights)

    def inputs(self, clip: Clip) -> list[Path]:
        file = self._file(clip)
        return [] if file is None else [file]

    def _file(self, clip: Clip) -> Path | None:
        return clip.log_mel if self.settings.source == "log-mel" else clip.sound

    def open(self, place: Place) -> Worker:
        made, limit, usual = self._encoder, self.settings.memory_limit, 4
        front_end = made.front_end()
        # Pickles are only read, by code that changes what warnings Python shows.
        readers, at_once = place.threads if self.settings.source == "sound" else 1, usual
        if limit is not None:
            readers = max(1, min(readers, limit // made.window_bytes))
            at_once = max(1, min(usual, limit // made.window_bytes // readers))
        encode = self._encoder_on(place.device)

        def patches(clip: Clip) -> "tuple[Tensor, str] | Outcome":
            if clip.problem is not None:
                return Outcome(None, clip.problem)
            try:
                return self._patches(clip, lambda windows: front_end(windows, at_once))
            except MediaError as error:
                return Outcome(None, str(error))

        def work(clips: Sequence[Clip]) -> list[Outcome]:
            # A clip a thread: threads that share one clip's small products wait for each other,
            # on a busy machine for longer than they compute.
            with threads(1), ThreadPoolExecutor(readers) as pool:
                found = list(pool.map(patches, clips))
            with threads(place.threads):
                return self._encoded(found, encode)

        return work

    def _encoder_on(self, device: str) -> "Encode":
        """The encoder's function, which gives the same numbers on every device but for noise."""
        files = {name: path for name, (path, _) in self.weights.items()}
        return float32_products()(self._encoder.open(files, device, self.settings.memory_limit))

    def _encoded(
        self, found: "Sequence[tuple[Tensor, str] | Outcome]", encode: "Encode"
    ) -> list[Outcome]:
        """The embeddings of a unit's patches, all together; failed clips as they are."""
        import torch

        padded = [each[0] for each in found if not isinstance(each, Outcome)]
        embeddings = iter(encode(torch.cat(padded)).split(self.frames_per_clip) if padded else ())
        return [
            each
            if isinstance(each, Outcome)
            else Outcome({"embedding": next(embeddings).numpy()}, inputs=each[1])
            for each in found
        ]

    def _patches(self, clip: Clip, front_end: "Encode") -> "tuple[Tensor, str]":
        """Patches of a clip, padded to [T, ...], and the digest of what was read."""
        from ...model.vggish import PADDINGS, pad_zeros

        file = self._file(clip)
        if file is None:
            missing = {"sound": "no sound file and no video", "log-mel": "no log-mel patches"}
            raise MediaError(clip.name, missing[self.settings.source])
        digests: dict[Path, str] = {}
        try:
            if self.settings.source == "log-mel":
                patches = read_log_mel_pickle(file, self.limits, digests)[:, 0]
            elif self.rule == "centred":
                patches = self._centred(file, clip, front_end, digests)
            else:
                patches = front_end(self._consecutive(file, digests))
            # A centred clip has a patch for each of its frames; those it does not have get zeros.
            pad = PADDINGS.get(self.rule, pad_zeros)
            return pad(patches, self.frames_per_clip), combined_digest(digests.values())
        except ValueError as error:
            raise MediaError(file, str(error)) from None

    def _consecutive(self, file: Path, digests: dict[Path, str]) -> "Tensor":
        """Windows by the benchmark's rule, [P, samples]. Raises MediaError, ValueError."""
        import torch

        from ...model.vggish import consecutive

        sound = read_sound(
            file,
            self._encoder.rate,
            stream=self.settings.stream,
            longest=self.frames_per_clip + 1.0,  # reading stops there, and an hour costs nothing
            resampling=self.settings.resampling,
            limits=self.limits,
            digests=digests,
        )
        made = self._encoder
        return consecutive(torch.from_numpy(sound.waveform), made.rate, made.window, made.stride)

    def _centred(
        self, file: Path, clip: Clip, front_end: "Encode", digests: dict[Path, str]
    ) -> "Tensor":
        """Patches around each frame, [T, ...]; never holds the sound as a whole."""
        import torch

        patches = torch.empty(len(clip.times), *self._encoder.patch)
        for places, some in self._around(file, clip, front_end, digests):
            patches[places] = some
        return patches

    def _around(
        self,
        file: Path,
        clip: Clip,
        front_end: "Encode",
        digests: dict[Path, str] | None = None,
        lacking: list[int] | None = None,
    ) -> "Iterator[tuple[list[int], Tensor]]":
        """Patches around a clip's frames, some at a time, and which frames they belong to."""
        import torch

        from ..media.sound_windows import centred_windows

        made = self._encoder
        with open_sound(
            file,
            made.rate,
            stream=self.settings.stream,
            resampling=self.settings.resampling,
            limits=self.limits,
            digests=digests,
        ) as sound:
            windows = centred_windows(
                sound.blocks, clip.times, sound.start, clip.span, made.rate, made.window, lacking
            )
            while some := list(islice(windows, _WINDOWS_HELD)):
                together = torch.from_numpy(np.stack([window for _, window in some]))
                yield [t for t, _ in some], front_end(together)

    def embed(
        self, clip: Clip, device: str, on_frames: Callable[[int], None] = lambda _: None
    ) -> tuple[np.ndarray, list[int]]:
        """Embeddings [T,D] float32 around the frames of one clip of any length, and the places of
        frames around which there is no sound: their rows are zeros. Keeps no more of the sound than
        seconds.  on_frames: told how many more are done.  Raises MediaError.
        """
        made, encode = self._encoder, self._encoder_on(device)
        front_end = made.front_end()
        found = np.zeros((len(clip.times), made.width), np.float32)
        lacking: list[int] = []
        if clip.sound is None:
            raise MediaError(clip.name, "no sound file and no video")
        around = self._around(
            clip.sound, clip, lambda windows: front_end(windows, 4), lacking=lacking
        )
        try:
            for places, patches in around:
                found[places] = encode(patches).numpy()
                on_frames(len(places))
        except ValueError as error:
            raise MediaError(clip.sound, str(error)) from None
        return found, sorted(lacking)
