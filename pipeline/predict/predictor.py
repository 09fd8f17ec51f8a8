"""A trained network that takes films: frame after frame, in the memory of one clip of T frames."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...model.interface import Network
from ...model.maskige import colour
from ..devices import Place, choose_device, float32_products
from ..digests import file_digest
from ..errors import ComboError, MediaError
from ..generators.generator import Generate
from ..media.images import Pixels
from ..media.limits import Limits
from ..media.pictures import fit_frame, frames_in_turn
from ..train.windows import RunningMean, Windows
from .inputs import Film
from .masks import Segment, class_map, segments
from .stages import RunStages, stages_of
from .trained import trained

Progress = Callable[[str, int], None]
"""Is told what is being done, and how many frames more are done of that."""


@dataclass(frozen=True)
class Frame:
    """What is predicted of one frame.

    number: from 0 in the film.  time: seconds on the film's clock.  picture: [H,W,3] uint8 RGB,
    upright, at the film's own size.  mask: [H,W] uint8, classes, 0 the background.  segments: the
    classes in it.  scores: [K,h,w] float32 at the network's size.
    """

    number: int
    time: float
    picture: Pixels
    mask: Pixels
    segments: list[Segment]
    scores: np.ndarray


@dataclass(frozen=True)
class Heard:
    """The sound of a film's frames. embeddings: [N,D] of frames `first` to `first + N - 1`; there
    is no sound around those before and after, of which nothing is predicted."""

    embeddings: np.ndarray
    first: int

    @property
    def end(self) -> int:
        return self.first + len(self.embeddings)


@dataclass(frozen=True)
class _Seen:
    picture: Pixels
    fitted: Pixels
    label_map: Pixels | None


class Predictor:
    """A run's network with the stages it was trained with. Raises ComboError in one line for
    whatever is missing; see `stages.stages_of`.

    run, data_set, manifest: see `trained.trained`.  device: of all networks.  generator: of the
    Maskiges, only where the run's were imported.
    """

    def __init__(
        self,
        run: Path,
        device: str = "auto",
        generator: str | None = None,
        data_set: str | None = None,
        manifest: Path | None = None,
    ) -> None:
        self.trained = trained(run, data_set, manifest)
        self.checkpoint, self.length = self.trained.file, self.trained.length
        self.classes = self.trained.classes
        self.stages: RunStages = stages_of(self.trained, generator)
        self.device = choose_device(device)
        self.network: Network = self.trained.build().to(self.device).eval()
        self._generate: Generate | None = None

    @property
    def limits(self) -> Limits:
        """What a file may ask for, as the run's manifest says."""
        return self.stages.sound.limits

    def described(self) -> dict[str, Any]:
        """What predictions depend on beside their film."""
        return {
            "run": str(self.trained.name.absolute()),
            "checkpoint": self.checkpoint.name,
            "checkpoint_sha256": file_digest(self.checkpoint),
            "stages": self.stages.described,
            "frames_per_clip": self.length,
            "classes": self.classes,
        }

    def hear(self, film: Film, told: Progress = lambda *_: None) -> Heard:
        """The sound around each frame. Raises MediaError: there is none, or it is damaged."""
        sound = self.stages.sound
        embeddings, lacking = sound.embed(film.clip, str(self.device), lambda n: told("sound", n))
        count = len(embeddings)
        there = np.setdiff1d(np.arange(count), lacking)
        if not len(there):
            raise MediaError(film.clip.sound or film.name, "no sound around any of its frames")
        first, end = int(there[0]), int(there[-1]) + 1
        return Heard(embeddings[first:end], first)

    def frames(
        self, film: Film, heard: Heard, first: int = 0, told: Progress = lambda *_: None
    ) -> Iterator[Frame]:
        """Predictions of frames with sound, in order, from frame `first` on.

        Raises MediaError for a picture that cannot be decoded, when it is its turn.
        """
        windows = Windows(len(heard.embeddings), self.length)
        spans = list(windows.spans(max(0, first - heard.first)))
        if not spans or first >= heard.end:
            return
        start = spans[0][0]
        sources = film.clip.frames[heard.first + start : heard.end]
        pictures = frames_in_turn(sources, self.limits)
        seen: dict[int, _Seen] = {}
        means = RunningMean()
        for begin, end, settled in spans:
            for place in range(max(seen, default=start - 1) + 1, end):
                seen[place] = self._look(next(pictures), film.name)
                told("frames", 1)
            some = [seen[place] for place in range(begin, end)]
            scores = self._scores(film, some, heard.embeddings[begin:end])
            for place, each in zip(range(begin, end), scores, strict=True):
                means.add(place, each)
            for place, mean in means.take(settled):
                number = heard.first + place
                if number >= first:
                    yield self._frame(film, number, seen[place].picture, mean)
                del seen[place]
        next(pictures, None)  # ends the file

    def _look(self, picture: Pixels, name: str) -> _Seen:
        stages = self.stages
        fitted = fit_frame(picture, stages.size, stages.fit)
        if stages.maskige is None:
            return _Seen(picture, fitted, None)
        if self._generate is None:
            place = Place(torch.get_num_threads(), str(self.device))
            self._generate = stages.maskige.generate(place)
        (made,) = stages.maskige.label_maps([picture], self._generate, name)
        return _Seen(picture, fitted, made.label_map)

    @torch.inference_mode()
    @float32_products()
    def _scores(self, film: Film, seen: list[_Seen], sound: np.ndarray) -> torch.Tensor:
        """[n,K,h,w] of the n frames of one clip, as `combo evaluate` computes them: shorter clips
        are filled up with frames that are not there."""
        count = len(seen)
        present = torch.arange(self.length)[None] < count
        frames = _filled([each.fitted for each in seen], self.length).permute(0, 1, 4, 2, 3)
        maskige = None
        maps = [each.label_map for each in seen if each.label_map is not None]
        if maps:
            palette = torch.tensor(self.stages.palette, dtype=torch.uint8)
            maskige = colour(_filled(maps, self.length).to(self.device), palette)
        heard = torch.from_numpy(sound)[None]
        heard = torch.cat([heard, heard.new_zeros(1, self.length - count, heard.shape[2])], 1)
        given = frames.to(self.device), maskige, heard.to(self.device), present
        scores = next(self.network.clip_scores(*given))[:count].float().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise ComboError(f"{self.checkpoint}: its scores of {film.name} are not numbers")
        return scores

    def _frame(self, film: Film, number: int, picture: Pixels, scores: torch.Tensor) -> Frame:
        size = (picture.shape[0], picture.shape[1])
        mask = class_map(scores, size, self.stages.fit)
        found = segments(mask, scores, self.classes)
        return Frame(number, film.clip.times[number], picture, mask, found, scores.numpy())


def _filled(arrays: list[Pixels], length: int) -> torch.Tensor:
    """[1,length,...]: the arrays of a clip, zeros behind them."""
    stack = np.stack(arrays)
    whole = np.zeros((1, length, *stack.shape[1:]), stack.dtype)
    whole[0, : len(stack)] = stack
    return torch.from_numpy(whole)
