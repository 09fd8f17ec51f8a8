"""One embedding of the sound for each frame of a clip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MediaError
from ..layouts import Clip, SoundRule
from ..manifest import AudioSettings, Manifest
from ..media import digest
from ..resample import Resampling
from ..sound_files import read_sound
from ..store import ArraySpec, Variant
from ..weights import resolve
from .encoders import encoder
from .stage import Outcome, Worker, combined_digest, make_variant

if TYPE_CHECKING:
    from torch import Tensor

    from ...model.vggish import LogMel
    from .encoders import Encode

VERSION = 1
EMBEDDING = 128


@dataclass(frozen=True)
class AudioStage:
    """Sound -> windows -> log-mel patches -> embeddings, all clips of a unit together.

    rule: `avsbench` (consecutive windows, the last repeated), `zeros` (AVSS: zeros to the end) or
    `centred` (one window around each frame's time). Arrays a clip: embedding [T,128] float32.
    """

    name: str
    rule: SoundRule
    resampling: Resampling
    frames_per_clip: int
    weights: Mapping[str, tuple[Path, str]]
    """File and digest by catalogue name."""

    @classmethod
    def make(cls, manifest: Manifest, rule: SoundRule, frames_per_clip: int) -> "AudioStage":
        """The stage as the manifest wants it. Raises ComboError for missing weights."""
        settings = manifest.stages.audio
        weights = {name: resolve(name, manifest) for name in encoder(settings.encoder).weights}
        return cls.of(settings, rule, frames_per_clip, weights)

    @classmethod
    def of(
        cls,
        settings: AudioSettings,
        rule: SoundRule,
        frames_per_clip: int,
        weights: Mapping[str, tuple[Path, str]],
    ) -> "AudioStage":
        """rule: the layout's; the setting `windows: centred` goes before it."""
        if settings.windows == "centred":
            rule = "centred"
        return cls(settings.encoder, rule, settings.resampling, frames_per_clip, weights)

    def variant(self) -> Variant:
        return make_variant(
            "audio",
            f"{self.name}-{self.rule}",
            VERSION,
            {"encoder": self.name, "windows": self.rule, "resampling": self.resampling},
            (ArraySpec("embedding", (self.frames_per_clip, EMBEDDING), "float32"),),
            weights={name: digest for name, (_, digest) in self.weights.items()},
        )

    def open(self, threads: int) -> Worker:
        import torch

        from ...model.vggish import LogMel

        torch.set_num_threads(threads)
        log_mel = LogMel()
        encode = encoder(self.name).open({name: path for name, (path, _) in self.weights.items()})
        return lambda clips: self._run(clips, log_mel, encode)

    def _run(self, clips: Sequence[Clip], log_mel: "LogMel", encode: "Encode") -> list[Outcome]:
        import torch

        heard: list[Tensor] = []
        outcomes: list[Outcome | str] = []  # a digest stands for a clip whose embedding comes below
        for clip in clips:
            try:
                windows, inputs = self._windows(clip)
            except MediaError as error:
                outcomes.append(Outcome(None, str(error)))
            else:
                heard.append(windows)
                outcomes.append(inputs)
        counts = [len(windows) for windows in heard]
        patches = log_mel(torch.cat(heard)) if heard else torch.empty(0)
        padded = [self._pad(some) for some in patches.split(counts)] if heard else []
        embeddings = iter(
            encode(torch.cat(padded)).split([len(some) for some in padded]) if padded else ()
        )
        return [
            outcome if isinstance(outcome, Outcome) else self._outcome(next(embeddings), outcome)
            for outcome in outcomes
        ]

    def _windows(self, clip: Clip) -> "tuple[Tensor, str]":
        """Windows of the clip's sound [P, 15600] and the digest of what was read."""
        import torch

        from ...model.vggish import centred, consecutive

        if clip.problem is not None or clip.sound is None:
            raise MediaError(clip.name, clip.problem or "no sound file and no video")
        sound = read_sound(clip.sound, longest=self._longest(), resampling=self.resampling)
        waveform = torch.from_numpy(sound.waveform)
        try:
            if self.rule == "centred":
                windows = centred(waveform, [time - sound.start for time in clip.times])
            else:
                windows = consecutive(waveform)
            if len(windows) > self.frames_per_clip:
                raise ValueError(
                    f"{len(windows)} windows of sound, more than {self.frames_per_clip}"
                )
        except ValueError as error:
            raise MediaError(clip.sound, str(error)) from None
        return windows, combined_digest([digest(clip.sound)])

    def _longest(self) -> float | None:
        """Seconds of sound that fit the rule, with some to spare for the exact count of windows."""
        return None if self.rule == "centred" else self.frames_per_clip + 1.0

    def _pad(self, patches: "Tensor") -> "Tensor":
        from ...model.vggish import PADDINGS, pad_zeros

        # A centred clip has a window for each of its frames; the frames it does not have get zeros.
        return PADDINGS.get(self.rule, pad_zeros)(patches, self.frames_per_clip)

    def _outcome(self, embedding: "Tensor", inputs: str) -> Outcome:
        return Outcome({"embedding": embedding.numpy()}, inputs=inputs)
