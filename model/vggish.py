"""Sound as VGGish hears it: waveform -> windows -> log-mel patches -> 128 numbers a window.

Everything is cut into windows of 15,600 samples first (96 spectrogram columns, 0.96 s apart in the
published front-end), because that is the only thing in which the rules for placing sound in time
differ: `consecutive` windows for the benchmark's paddings, `centred` windows for one a frame. The
numbers after that are the same for all of them and are computed for many clips at once.

The network has torchvggish's layers and parameter names, so that its published checkpoint loads as
it is, and gives its numbers; the package itself is not imported here because importing it compiles
and reads files (resampy, numba, soundfile), which `model/` does not do.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

RATE = 16_000
"""Samples per second of every waveform here."""
HOP, SPAN, COLUMNS, BANDS, FFT = 160, 400, 96, 64, 512
WINDOW = SPAN + (COLUMNS - 1) * HOP
"""Samples under the 96 columns of one patch: 15,600, or 0.975 s."""
STRIDE = COLUMNS * HOP
"""Samples between neighbouring patches of the published front-end: 15,360, or 0.96 s."""
EMBEDDING = 128
WINDOW_BYTES, PATCH_BYTES = 3 << 20, 4 << 20
"""Working memory for each window that `LogMel`, each patch that `embed` computes at once."""
_OFFSET = 0.01
_MAPS_KEPT = 16
"""Patches whose maps wait for the linear layers, for each patch that is convolved at once."""


def consecutive(
    waveform: Tensor, rate: int = RATE, window: int = WINDOW, stride: int = STRIDE
) -> Tensor:
    """Windows one after the other as the published front-end takes them; the rest is dropped.

    waveform: [N] floating point, range -1..1.  rate: its samples per second.  window, stride: in
    samples.  Returns [P, window], P >= 1, a view.
    Raises ValueError when the sound is shorter than one window.
    """
    _check(waveform, rate, window)
    return waveform.unfold(0, window, stride)


def centred(waveform: Tensor, seconds: Sequence[float] | Tensor) -> Tensor:
    """One window around each timestamp, for any frame rate.

    waveform: [N] floating point, 16 kHz.  seconds: [T] timestamps of the frames, measured from the
    first sample.  Returns [T, 15600]; where a window reaches over an end of the sound it holds
    zeros there.  Raises ValueError for a sound shorter than one window and for a timestamp whose
    window has no sound in it at all.
    """
    _check(waveform)
    starts = window_starts(seconds)
    for time, start in zip(torch.as_tensor(seconds).tolist(), starts.tolist(), strict=True):
        if start + WINDOW <= 0 or start >= len(waveform):
            length = len(waveform) / RATE
            raise ValueError(f"no sound around {time:.2f} s: the sound is {length:.2f} s long")
    padded = nn.functional.pad(waveform, (WINDOW, WINDOW))
    return padded.unfold(0, WINDOW, 1)[(starts + WINDOW).to(waveform.device)]


def window_starts(
    seconds: Sequence[float] | Tensor, rate: int = RATE, window: int = WINDOW
) -> Tensor:
    """First sample of the window around each timestamp, negative where it reaches over the start.

    seconds: [T] finite.  Returns [T] int64 on the CPU.  Raises ValueError.
    """
    times = torch.as_tensor(seconds, dtype=torch.float64).cpu()
    if times.ndim != 1 or not bool(times.isfinite().all()):
        raise ValueError("timestamps must be a list of finite seconds")
    return (times * rate).round().long() - window // 2


def pad_avsbench(patches: Tensor, count: int = 5) -> Tensor:
    """AVSBench's rule for object clips (S4, MS3): the last patch is repeated up to `count`.

    patches: [P, ...], 1 <= P <= count.  Returns [count, ...].
    Raises ValueError for more than `count` patches: the benchmark leaves such a clip out.
    """
    missing = _missing(patches, count)
    return torch.cat([patches, patches[-1:].expand(missing, *patches.shape[1:])])


def pad_zeros(patches: Tensor, count: int = 10) -> Tensor:
    """COMBO's rule for AVSS clips: patches of zeros (not of silence) are appended up to `count`.

    patches: [P, ...], 1 <= P <= count.  Returns [count, ...].
    Raises ValueError for more than `count` patches.
    """
    missing = _missing(patches, count)
    return torch.cat([patches, patches.new_zeros(missing, *patches.shape[1:])])


PADDINGS = {"avsbench": pad_avsbench, "zeros": pad_zeros}
"""The paddings by the names that the manifest and the store use."""


class LogMel(nn.Module):
    """Log-mel patches of windows of sound: torchvggish's front-end at 16 kHz.

    25 ms periodic Hann windows every 10 ms, 512-point magnitudes, 64 HTK mel bands from 125 to
    7,500 Hz, ln(mel + 0.01).
    """

    hann: Tensor

    def __init__(self) -> None:
        super().__init__()
        phase = torch.arange(SPAN, dtype=torch.float64) * (2 * math.pi / SPAN)
        self.register_buffer("hann", 0.5 - 0.5 * phase.cos(), persistent=False)
        self._heard, groups = _groups(mel_weights())
        self._groups = [(bins, bands) for bins, bands, _ in groups]
        for number, (_, _, weights) in enumerate(groups):
            self.register_buffer(f"mel{number}", weights.float(), persistent=False)

    @torch.no_grad()
    def forward(self, windows: Tensor, at_once: int = 4) -> Tensor:
        """[W, 15600] floating point -> [W, 96, 64] float32.

        at_once: windows computed together, `WINDOW_BYTES` of working memory each; few keep a CPU in
        its caches, a GPU wants thousands.  Raises ValueError for another length of window.
        """
        if windows.ndim != 2 or windows.shape[1] != WINDOW:
            raise ValueError(f"windows must be [W, {WINDOW}], not {list(windows.shape)}")
        patches = windows.new_empty((len(windows), COLUMNS, BANDS), dtype=torch.float32)
        # The transform is double precision: in single precision the rounding of a loud low tone
        # spreads over the quiet bands, where ln(mel + 0.01) makes a thousandth of it.
        count = min(at_once, len(windows))
        sound = windows.new_empty((count, WINDOW), dtype=torch.float64)
        room = windows.new_empty((count, COLUMNS, FFT), dtype=torch.float64)
        room[..., SPAN:] = 0
        for some, out in zip(windows.split(at_once), patches.split(at_once), strict=True):
            columns = room[: len(some)]
            spans = sound[: len(some)].copy_(some).unfold(1, SPAN, HOP)
            torch.mul(spans, self.hann, out=columns[..., :SPAN])
            heard = torch.view_as_real(torch.fft.rfft(columns))[..., self._heard, :]
            squares = heard.float().square_()
            magnitudes = (squares[..., 0] + squares[..., 1]).sqrt_().flatten(0, 1)
            self._mel(magnitudes, out.view(-1, BANDS)).add_(_OFFSET).log_()
        return patches

    def _mel(self, magnitudes: Tensor, out: Tensor) -> Tensor:
        """[n, heard bins] -> [n, 64], written to `out`."""
        for number, (bins, bands) in enumerate(self._groups):
            weights = self.get_buffer(f"mel{number}")
            torch.mm(magnitudes[:, bins], weights, out=out[:, bands])
        return out


def _groups(weights: Tensor) -> tuple[slice, list[tuple[slice, slice, Tensor]]]:
    """The bins that any band hears, and the bands in four groups with the few that each hears.

    weights: [257, 64]. Returns the heard bins; for each group: bins (counted from the first heard),
    bands, weights [bins, bands]. A quarter of the products of the whole, nearly empty matrix.
    """

    def span(some: Tensor) -> tuple[int, int]:
        hearing = some.any(dim=1).nonzero()
        return int(hearing[0]), int(hearing[-1]) + 1

    lowest, highest = span(weights)
    groups: list[tuple[slice, slice, Tensor]] = []
    for first in range(0, BANDS, BANDS // 4):
        bands = slice(first, first + BANDS // 4)
        low, high = span(weights[:, bands])
        bins = slice(low - lowest, high - lowest)
        groups.append((bins, bands, weights[low:high, bands].contiguous()))
    return slice(lowest, highest), groups


def mel_weights() -> Tensor:
    """Triangular HTK mel bands over the bins of a 512-point transform: [257, 64] float64.

    The slopes are straight in mel, 1127 ln(1 + f / 700), not in hertz; the bin at 0 Hz counts in no
    band.
    """

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    bins = mel(torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64))[:, None]
    lowest, highest = mel(torch.tensor([125.0, 7500.0], dtype=torch.float64)).tolist()
    edges = torch.linspace(lowest, highest, BANDS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    weights = torch.minimum(rising, falling).clamp_(min=0)
    weights[0] = 0
    return weights


def mel_statistics(patches: Tensor) -> Tensor:
    """Mean and standard deviation over time of each mel band; a sound encoder without weights.

    patches: [..., 96, 64] log-mel.  Returns [..., 128]: 64 means, then 64 population standard
    deviations (divided by 96).
    """
    deviation, mean = torch.std_mean(patches, dim=-2, correction=0)
    return torch.cat([mean, deviation], dim=-1)


class VGGish(nn.Module):
    """VGGish: log-mel patches -> 128 numbers each.

    Parameters are named as in `vggish-10086976.pth` (`features.{0,3,6,8,11,13}`,
    `embeddings.{0,2,4}`). All three linear layers end in a ReLU, the last included. No PCA, no
    quantisation: see `Whitening`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.MaxPool2d(2),
            *_convolution(128, 256),
            *_convolution(256, 256),
            nn.MaxPool2d(2),
            *_convolution(256, 512),
            *_convolution(512, 512),
            nn.MaxPool2d(2),
        )
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * 512, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, EMBEDDING),
            nn.ReLU(inplace=True),
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "VGGish":
        """The frozen network with these weights, in eval mode, on their device.

        state: the published checkpoint, or the `audio_backbone.*` part of a COMBO checkpoint
        without that prefix.  Raises RuntimeError that names missing, unknown and misshapen entries.
        """
        with torch.device("meta"):  # 72 million random numbers would only be overwritten
            network = cls()
        network.load_state_dict(state, strict=True, assign=True)
        # Channels last convolves in two thirds of the time on a CPU.
        network = network.to(memory_format=torch.channels_last)
        return network.eval().requires_grad_(False)

    def forward(self, patches: Tensor) -> Tensor:
        """[N, 1, 96, 64] float -> [N, 128], not negative."""
        return self.embeddings(self.maps(patches))

    def maps(self, patches: Tensor) -> Tensor:
        """What the convolutions make of [N, 1, 96, 64]: [N, 12288]."""
        # The checkpoint's linear layer expects time, mel, channel: channels last.
        return self.features(patches).permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
def embed(network: VGGish, patches: Tensor, at_once: int = 16) -> Tensor:
    """Embeddings of any number of patches in bounded memory.

    patches: [N, 96, 64] or [N, 1, 96, 64] on the network's device.  at_once: patches that are
    convolved together; working memory is `PATCH_BYTES` for each.  Returns [N, 128].
    """
    images = patches.reshape(-1, 1, COLUMNS, BANDS)
    # The linear layers read 272 MB of weights a batch, so they get larger ones than the
    # convolutions, which are fastest where a batch stays in a CPU's caches.
    return torch.cat(
        [
            network.embeddings(torch.cat([network.maps(few) for few in many.split(at_once)]))
            for many in images.split(at_once * _MAPS_KEPT)
        ]
    )


class Whitening(nn.Module):
    """The PCA step that AudioSet's published embeddings went through: whiten, clip, quantise.

    Off unless asked for by name: neither AVSBench nor COMBO uses it.
    """

    eigenvectors: Tensor
    means: Tensor

    def __init__(self, eigenvectors: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("eigenvectors", eigenvectors)
        self.register_buffer("means", means)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Whitening":
        """From `vggish_pca_params-970ea276.pth`: pca_eigen_vectors [128, 128], pca_means [128, 1].

        Raises ValueError when the names or sizes are others.
        """
        wanted = {"pca_eigen_vectors": EMBEDDING * EMBEDDING, "pca_means": EMBEDDING}
        sizes = {name: torch.as_tensor(value).numel() for name, value in state.items()}
        if sizes != wanted:
            raise ValueError(f"PCA parameters must have the sizes {wanted}, not {sizes}")
        eigenvectors, means = (torch.as_tensor(state[name]).float() for name in wanted)
        return cls(eigenvectors.reshape(EMBEDDING, EMBEDDING), means.reshape(EMBEDDING))

    def forward(self, embeddings: Tensor) -> Tensor:
        """[N, 128] embeddings -> [N, 128] float of whole numbers 0..255, which stand for -2..2."""
        whitened = (embeddings - self.means) @ self.eigenvectors.T
        return ((whitened.clamp(-2, 2) + 2) * (255 / 4)).round()


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.ReLU(inplace=True)


def _check(waveform: Tensor, rate: int = RATE, window: int = WINDOW) -> None:
    if waveform.ndim != 1 or not waveform.is_floating_point():
        shape = list(waveform.shape)
        raise ValueError(f"a waveform is [N] floating point, not {shape} {waveform.dtype}")
    if len(waveform) < window:
        seconds = len(waveform) / rate
        raise ValueError(
            f"the sound lasts {seconds:.3f} s, shorter than one window of {window / rate:.3f} s"
        )


def _missing(patches: Tensor, count: int) -> int:
    if not 1 <= len(patches) <= count:
        raise ValueError(f"{len(patches)} patches of sound, where 1 to {count} are expected")
    return count - len(patches)
