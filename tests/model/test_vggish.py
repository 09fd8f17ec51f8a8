"""Sound becomes the numbers that the published front-end and network give."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from combo.model.vggish import (
    PADDINGS,
    RATE,
    WINDOW,
    LogMel,
    VGGish,
    Whitening,
    centred,
    consecutive,
    embed,
    mel_statistics,
    mel_weights,
    pad_avsbench,
    pad_zeros,
)

SOUND = Path(__file__).parents[1] / "data" / "sound"
SHARED_KEYS = Path(__file__).parents[3] / "shared" / "golden" / "combo" / "r50_s4_keys.json"
GOLDEN = np.load(SOUND / "logmel.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def waveform_of(name: str) -> Tensor:
    samples, rate = soundfile.read(SOUND / f"{name}.wav", dtype="int16")
    assert rate == RATE
    return torch.from_numpy(samples / np.float32(32768))


def tone(hertz: float, seconds: float, loud: float = 1.0) -> Tensor:
    time = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    return loud * (2 * torch.pi * hertz * time).sin()


def rule_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights from names and shapes alone, as the golden embeddings were made with."""
    seed = zlib.crc32(f"audio_backbone.{name}".encode())
    z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        return torch.from_numpy(np.float32(0.05) * z)
    count = int(np.prod(shape[1:]))
    d = np.rint(z.astype(np.float64) * 2**20) / 2**20
    if shape[1] > 1:
        d -= d.reshape(shape[0], -1).sum(axis=1).reshape(-1, *[1] * (len(shape) - 1)) / count
    return torch.from_numpy((d * (1.5 / np.sqrt(count))).astype(np.float32))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VGGish().state_dict().items()}
    return {name: rule_weight(name, shape) for name, shape in shapes.items()}


# --- log-mel ----------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("name", ["test", "synth_16k_4s2"])
def test_log_mel_patches_and_paddings_are_the_published_ones(name: str) -> None:
    patches = LogMel()(consecutive(waveform_of(name)))
    for part, ours in {
        "examples": patches,
        "avsbench_5s": pad_avsbench(patches),
        "combo_10s": pad_zeros(patches),
    }.items():
        torch.testing.assert_close(ours[:, None], golden(f"{name}.{part}"), atol=1e-5, rtol=0)


def test_the_quiet_bands_beside_a_loud_tone_stay_exact() -> None:
    # A transform in single precision is off by a thousandth here.
    vggish_input = pytest.importorskip("torchvggish.vggish_input")
    sound = tone(1000.3, 3)
    reference = vggish_input.waveform_to_examples(sound.numpy(), RATE).detach()[:, 0]
    torch.testing.assert_close(LogMel()(consecutive(sound)), reference, atol=2e-6, rtol=0)


def test_silence_is_the_logarithm_of_the_offset() -> None:
    patches = LogMel()(consecutive(torch.zeros(2 * RATE)))
    assert patches.shape == (2, 96, 64)
    torch.testing.assert_close(patches, torch.full_like(patches, np.log(0.01)))


def test_every_mel_band_hears_something_and_none_hears_a_constant() -> None:
    weights = mel_weights()
    assert weights.shape == (257, 64)
    assert bool((weights.sum(0) > 0).all())
    assert not weights[0].any()
    assert float(weights.max()) <= 1


def test_a_clip_in_a_batch_gets_the_numbers_it_gets_alone() -> None:
    clips = [waveform_of("test"), waveform_of("synth_16k_4s2"), tone(440, 1.2).float()]
    windows = [consecutive(clip) for clip in clips]
    log_mel = LogMel()
    alone = torch.cat([log_mel(of_clip) for of_clip in windows])
    for at_once in (1, 3, 8, 4096):
        together = log_mel(torch.cat(windows), at_once)
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@given(samples=st.integers(1, 40_000))
def test_the_number_of_patches_is_the_front_ends(samples: int) -> None:
    columns = 1 + (samples - 400) // 160
    if columns < 96:
        with pytest.raises(ValueError, match=r"shorter than one window of 0\.975 s"):
            consecutive(torch.zeros(samples))
    else:
        assert len(consecutive(torch.zeros(samples))) == columns // 96


def test_what_is_no_waveform_is_refused() -> None:
    with pytest.raises(ValueError, match="floating point"):
        consecutive(torch.zeros(20_000, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"\[N\]"):
        consecutive(torch.zeros(2, 20_000))
    with pytest.raises(ValueError, match="15600"):
        LogMel()(torch.zeros(2, 15_360))


# --- windows around frames --------------------------------------------------------------------


def test_a_window_lies_around_its_frames_timestamp() -> None:
    click = torch.zeros(5 * RATE)
    click[round(2.5 * RATE)] = 1
    windows = centred(click, [0.5, 1.5, 2.5, 3.5, 4.5])
    assert windows.shape == (5, WINDOW)
    assert windows.nonzero().tolist() == [[2, WINDOW // 2]]


def test_a_window_reaching_over_an_end_holds_zeros_there() -> None:
    windows = centred(torch.ones(RATE), torch.tensor([0.0, 0.5, 1.0]))
    half = WINDOW // 2
    assert windows.sum(dim=1).tolist() == [half, WINDOW, half]
    assert not windows[0, :half].any()
    assert not windows[2, half:].any()


@given(rate=st.floats(0.5, 60), start=st.integers(0, 5))
@settings(max_examples=30)
def test_centred_windows_follow_any_frame_rate(rate: float, start: int) -> None:
    ramp = torch.arange(10 * RATE, dtype=torch.float64)
    times = [start + index / rate for index in range(4) if start + index / rate < 9]
    middles = centred(ramp, times)[:, WINDOW // 2]
    assert (middles - torch.tensor(times, dtype=torch.float64) * RATE).abs().max() <= 0.5


def test_a_frame_without_any_sound_around_it_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no sound around 3\.50 s: the sound is 2\.00 s long"):
        centred(torch.ones(2 * RATE), [0.5, 3.5])
    with pytest.raises(ValueError, match="shorter than one window"):
        centred(torch.ones(160), [0.0])
    with pytest.raises(ValueError, match="finite"):
        centred(torch.ones(2 * RATE), [float("nan")])


# --- paddings ---------------------------------------------------------------------------------


def test_the_two_published_paddings_differ_in_what_they_append() -> None:
    patches = torch.randn(3, 96, 64)
    repeated, zeros = PADDINGS["avsbench"](patches, 5), PADDINGS["zeros"](patches, 10)
    assert torch.equal(repeated, torch.cat([patches, patches[2:], patches[2:]]))
    assert torch.equal(zeros, torch.cat([patches, torch.zeros(7, 96, 64)]))
    assert torch.equal(pad_avsbench(torch.cat([patches, patches[:2]]))[3:], patches[:2])


@pytest.mark.parametrize(("pad", "count"), [(pad_avsbench, 6), (pad_zeros, 11), (pad_zeros, 0)])
def test_too_many_or_no_patches_are_an_error(pad: object, count: int) -> None:
    assert callable(pad)
    with pytest.raises(ValueError, match=f"{count} patches"):
        pad(torch.zeros(count, 96, 64))


def test_mel_statistics_are_means_then_population_deviations() -> None:
    patches = golden("test.examples")[:, 0]
    statistics = mel_statistics(patches)
    assert statistics.shape == (4, 128)
    values = patches.numpy().astype(np.float64)
    expected = np.concatenate([values.mean(axis=1), values.std(axis=1)], axis=1)
    np.testing.assert_allclose(statistics.numpy(), expected, atol=1e-5)


# --- the network ------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("name", ["test", "synth_44k1_stereo", "synth_16k_4s2"])
def test_embeddings_are_the_published_networks(name: str, state: dict[str, Tensor]) -> None:
    expected = golden(f"{name}.vggish")
    ours = embed(VGGish.from_state(state), golden(f"{name}.combo_10s"), at_once=4)
    assert (ours - expected).abs().max() <= 1e-4 * expected.std()


def test_the_network_is_torchvggishs(state: dict[str, Tensor]) -> None:
    package = pytest.importorskip("torchvggish.torchvggish")
    theirs = package.VGG(package.make_layers(), postprocess=False)
    theirs.load_state_dict(state)
    patches = golden("test.examples")
    with torch.no_grad():
        expected = theirs(patches)
    ours = embed(VGGish.from_state(state), patches)
    assert (ours - expected).abs().max() <= 1e-4 * expected.std()


def test_patches_at_once_bound_the_convolutions_and_change_nothing(
    state: dict[str, Tensor],
) -> None:
    network, seen = VGGish.from_state(state), list[int]()
    network.features.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    patches = golden("test.combo_10s").repeat(2, 1, 1, 1)
    expected = embed(network, patches)
    for at_once in (1, 3):
        seen.clear()
        ours = embed(network, patches, at_once)
        assert max(seen) == at_once
        assert sum(seen) == len(patches)
        assert (ours - expected).abs().max() <= 1e-4 * expected.std()


def test_parameters_are_named_as_in_published_checkpoints() -> None:
    if not SHARED_KEYS.exists():
        pytest.skip("the golden data beside the repository is not there")
    prefix = "audio_backbone."
    published = {
        name.removeprefix(prefix): tuple(shape)
        for name, shape, *_ in json.loads(SHARED_KEYS.read_text())
        if name.startswith(prefix)
    }
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in VGGish().state_dict().items()}
    assert ours == published


def test_the_loaded_network_is_frozen_and_a_wrong_state_is_named(state: dict[str, Tensor]) -> None:
    network = VGGish.from_state(state)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(RuntimeError, match=r"embeddings\.4\.bias"):
        VGGish.from_state({k: v for k, v in state.items() if k != "embeddings.4.bias"})
    with pytest.raises(RuntimeError, match=r"features\.0\.bias"):
        VGGish.from_state(state | {"features.0.bias": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="unknown"):
        VGGish.from_state(state | {"unknown": torch.zeros(3)})


def test_pca_whitens_clips_and_quantises() -> None:
    generator = torch.Generator().manual_seed(3)
    parameters = {
        "pca_eigen_vectors": torch.randn((128, 128), generator=generator),
        "pca_means": torch.randn((128, 1), generator=generator),
    }
    embeddings = torch.rand((6, 128), generator=generator) * 0.3
    numbers = Whitening.from_state(parameters)(embeddings)
    assert numbers.shape == (6, 128)
    assert torch.equal(numbers, numbers.round())
    eigenvectors, means = (value.double().numpy() for value in parameters.values())
    whitened = (eigenvectors @ (embeddings.double().numpy().T - means)).T
    expected = (np.clip(whitened, -2, 2) + 2) * 255 / 4
    # A value half-way between two numbers may go to either.
    assert np.abs(numbers.numpy() - expected).max() <= 0.5001
    assert numbers.min() == 0
    assert numbers.max() == 255
    with pytest.raises(ValueError, match="pca_means"):
        Whitening.from_state({"pca_eigen_vectors": torch.zeros(128, 128)})


@pytest.mark.gpu
def test_a_gpu_gives_the_same_patches() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    windows = consecutive(waveform_of("test"))
    on_gpu = LogMel().cuda()(windows.cuda(), 4096).cpu()
    torch.testing.assert_close(on_gpu[:, None], golden("test.examples"), atol=1e-5, rtol=0)
