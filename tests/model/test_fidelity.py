"""What the public code does and what the paper says: each difference alone, against its words."""

import math

import pytest
import torch
from torch import Tensor, nn

from combo.model import Combo, ComboOutput, ComboSettings, Criterion
from combo.model.bilateral_fusion import PaperFusion, ReferenceFusion
from combo.model.clips import ClipLayout
from combo.model.consistency import paper_consistency, reference_consistency
from combo.model.fidelity import FIDELITY, own_queries, reshaped_queries
from combo.model.positions import sine_positions
from combo.model.siam_encoder import LinearGate, SqueezeGate

TINY = {
    "backbone": "test_convnext2", "image_size": 64, "width": 32, "heads": 4, "fusion_heads": 4,
    "pixel_layers": 1, "pixel_ffn": 32, "audio_dim": 8, "audio_hidden": 16, "query_count": 6,
    "decoder_layers": 2, "decoder_ffn": 32,
}  # fmt: skip
FUSION = ComboSettings(width=32, heads=4, fusion_heads=4, audio_dim=8, fusion_dropout=0.0)


def run(net: Combo, batch: list[Tensor]) -> ComboOutput:
    with torch.inference_mode():
        return net(*batch)


def clips(batch: int, frames: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (batch, frames, 3, 64, 64)
    images = [torch.randint(0, 256, shape, generator=generator) for _ in range(2)]
    return [*images, torch.randn(batch, frames, 8, generator=generator)]


def tiny(fidelity: str, **settings: object) -> Combo:
    torch.manual_seed(0)
    return Combo.from_preset("combo-r50-s4", **{**TINY, **settings}, fidelity=fidelity).eval()


def test_the_reference_hands_queries_the_sound_of_other_frames() -> None:
    """The public code: query q of frame f receives the sound of frame floor((q F + f) / 100)."""
    frames = 5
    spread = reshaped_queries(torch.arange(float(frames))[:, None], 100)[..., 0]
    for f in range(frames):
        for q in range(100):
            assert spread[f, q] == (q * frames + f) // 100
    assert own_queries(torch.arange(3.0)[:, None], 4)[..., 0].tolist() == [
        [i] * 4 for i in range(3)
    ]


def test_a_sound_reaches_its_own_queries_in_the_paper_and_others_in_the_reference() -> None:
    batch = clips(1, 3)
    changed = [*batch[:2], batch[2].clone()]
    changed[2][0, 2] += 1
    reached: dict[str, list[bool]] = {}
    for fidelity in FIDELITY:
        net = tiny(fidelity, fusion="none")
        one, two = (run(net, b).layers[0].class_logits[0] for b in (batch, changed))
        reached[fidelity] = [not torch.equal(a, b) for a, b in zip(one, two, strict=True)]
    assert reached == {"paper": [False, False, True], "reference": [True, True, True]}


def test_clips_of_a_batch_mix_in_the_reference_only() -> None:
    batch = clips(2, 3)
    for fidelity, alike in (("paper", True), ("reference", False)):
        net = tiny(fidelity)
        together = run(net, batch).mask_logits[0]
        alone = run(net, [clip[:1] for clip in batch]).mask_logits[0]
        assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4) == alike


def test_gates_are_squashed_in_the_reference_and_linear_in_the_paper() -> None:
    feature = torch.randn(2, 32, 4, 4) * 100
    squeezed, linear = SqueezeGate(32, 16), LinearGate(32, 16)
    assert squeezed(feature).min() >= 0
    assert squeezed(feature).max() <= 1
    linear.fc.bias.data.zero_()
    torch.testing.assert_close(linear(2 * feature), 2 * linear(feature))
    expected = feature.mean(dim=(2, 3)) @ linear.fc.weight.T
    torch.testing.assert_close(linear(feature), expected)


PLACES = sine_positions([(4, 6)], 32)[0]


def fusion_inputs(frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    pixels = torch.randn(frames, 32, 4, 6, generator=generator)
    return pixels, torch.randn(frames, 8, generator=generator)


def test_the_paper_fusion_is_equations_4_and_5() -> None:
    torch.manual_seed(0)
    fusion = PaperFusion(FUSION)
    pixels, sound = fusion_inputs(3)
    rows = pixels.flatten(2).transpose(1, 2)
    placed = rows + PLACES
    heard = sound + fusion.audio_pos.weight[:3]
    q = fusion.query(placed).flatten(0, 1)
    k = fusion.key(heard)
    scores = q @ k.T / math.sqrt(32)
    p1 = scores.softmax(dim=1) @ fusion.audio_value(heard) + rows.flatten(0, 1)
    fa = scores.T.softmax(dim=1) @ fusion.visual_value(placed).flatten(0, 1) + sound
    ours_p1, ours_fa = fusion(pixels, PLACES, sound, ClipLayout(1, 3))
    torch.testing.assert_close(ours_p1.flatten(0, 1), p1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours_fa, fa, rtol=1e-4, atol=1e-5)


def test_the_reference_fusion_is_spec_section_5() -> None:
    torch.manual_seed(0)
    fusion = ReferenceFusion(FUSION)
    fusion.gamma_v.data.fill_(0.7)
    fusion.gamma_a.data.fill_(0.3)
    attention = fusion.attention
    for bias in (attention.values_v_proj.bias, attention.v_proj.bias, attention.a_proj.bias):
        bias.data.normal_()
    pixels, sound = fusion_inputs(3)
    v = fusion.norm_v(pixels.flatten(2).transpose(1, 2) + fusion.level_embed.weight)
    a = fusion.norm_a(sound)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, 8)).transpose(-2, -3)

    q = heads(attention.v_proj(v + PLACES) * 8**-0.5)
    k = heads(attention.a_proj(a + fusion.audio_pos.weight)[:, None])
    over_pixels = (q @ k.transpose(2, 3)).softmax(dim=2)
    value_a, value_v = heads(attention.values_a_proj(a)[:, None]), heads(attention.values_v_proj(v))
    to_v = attention.out_v_proj((over_pixels @ value_a).transpose(1, 2).flatten(2))
    to_a = attention.out_a_proj((over_pixels.transpose(2, 3) @ value_v).transpose(1, 2).flatten(1))
    ours_v, ours_a = fusion(pixels, PLACES, sound, ClipLayout(1, 3))
    torch.testing.assert_close(ours_v, v + 0.7 * to_v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours_a, a + 0.3 * to_a, rtol=1e-4, atol=1e-5)


def test_dropout_of_the_fusion_can_be_switched_off() -> None:
    settings = ComboSettings(width=32, heads=4, fusion_heads=4, audio_dim=8, fusion_dropout=0.5)
    torch.manual_seed(0)
    fusion = ReferenceFusion(settings).train()
    fusion.gamma_a.data.fill_(1.0)
    pixels, sound = fusion_inputs(3)
    layout = ClipLayout(1, 3)
    assert not torch.equal(
        fusion(pixels, PLACES, sound, layout)[1], fusion(pixels, PLACES, sound, layout)[1]
    )
    for module in fusion.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trained = fusion(pixels, PLACES, sound, layout)
    torch.testing.assert_close(trained, fusion.eval()(pixels, PLACES, sound, layout))


@pytest.mark.parametrize("fusion", ["visual", "audio"])
@pytest.mark.parametrize("fidelity", ["reference", "paper"])
def test_a_one_way_fusion_leaves_the_other_side_alone(fidelity: str, fusion: str) -> None:
    settings = ComboSettings(
        width=32, heads=4, fusion_heads=4, audio_dim=8, fusion_dropout=0.0, fusion=fusion
    )
    torch.manual_seed(0)
    module = FIDELITY[fidelity].fusion(settings)
    pixels, sound = fusion_inputs(3)
    ours_pixels, ours_sound = module(pixels, PLACES, sound, ClipLayout(1, 3))
    shifted_pixels, shifted_sound = module(pixels, PLACES, -sound, ClipLayout(1, 3))
    _, other_sound = module(pixels * 2, PLACES, sound, ClipLayout(1, 3))
    if fusion == "visual":
        assert torch.equal(ours_sound, sound)
        assert torch.equal(other_sound, sound)
        assert not torch.equal(ours_pixels, shifted_pixels)
    else:
        assert torch.equal(ours_pixels, shifted_pixels)
        assert not torch.equal(other_sound, ours_sound)
        assert not torch.equal(shifted_sound, ours_sound)


def test_clips_too_long_for_the_learned_positions_are_refused() -> None:
    net = tiny("paper", max_frames=2)
    with pytest.raises(ValueError, match="max_frames"):
        run(net, clips(1, 3))


def neighbours(masks: Tensor) -> list[float]:
    flat = masks.double().flatten(1)
    return [
        nn.functional.cosine_similarity(flat[t], flat[t + 1], dim=0).item()
        for t in range(len(flat) - 1)
    ]


def test_consistency_in_the_words_of_both() -> None:
    generator = torch.Generator().manual_seed(7)
    masks = torch.randn(1, 10, 2, 3, 4, 4, generator=generator) + 0.5
    sets = masks[0].unbind(1)
    terms = [[(1 - s) * math.exp(s - 1) for s in neighbours(m)] for m in sets]
    inside = [t[:4] + t[5:] for t in terms]
    expected = torch.tensor([sum(t) / 2 / 4 for t in inside])
    torch.testing.assert_close(reference_consistency(masks, None), expected)
    terms = [[(1 - s) * math.exp(s - 1) for s in neighbours(m.sigmoid())] for m in sets]
    torch.testing.assert_close(paper_consistency(masks, None), torch.tensor([*map(sum, terms)]))


def test_frames_that_are_nearly_alike_keep_their_small_distance() -> None:
    generator = torch.Generator().manual_seed(8)
    still = torch.randn(1, 1, 1, 100, 56, 56, generator=generator)
    masks = still + 1e-2 * torch.randn(1, 5, 1, 100, 56, 56, generator=generator)
    expected = sum((1 - s) * math.exp(s - 1) for s in neighbours(masks[0, :, 0])) / 4
    assert expected < 2e-4
    assert reference_consistency(masks, None).item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "fidelity", "weight"),
    [
        ("combo-r50-s4", "reference", 10),
        ("combo-r50-avss", "reference", 10),
        ("combo-r50-ms3", "paper", 10),
        ("combo-r50-avss", "paper", 5),
    ],
)
def test_the_weight_and_the_layers_of_the_consistency_loss(
    name: str, fidelity: str, weight: float
) -> None:
    masks = torch.randn(1, 5, 10, 4, 8, 8)
    settings = {"fidelity": fidelity, "mask_points": 16}
    criterion = Criterion.from_preset(name, **settings)
    logits = torch.randn(1, 5, 10, 4, criterion.settings.classes + 1)
    out = ComboOutput(logits, masks, (32, 32), None)
    losses = criterion(out, torch.zeros(1, 5, 32, 32, dtype=torch.uint8))
    sets = {name for name in losses if name.startswith("loss_cosine")}
    first = 0 if fidelity == "reference" else 1
    assert sets == {f"loss_cosine_{i}" for i in range(first, 9)}
    assert losses.weighted["loss_cosine_3"] == weight * losses["loss_cosine_3"]


def test_one_lambda_overrules_both() -> None:
    for fidelity in FIDELITY:
        criterion = Criterion.from_preset("combo-r50-avss", fidelity=fidelity, lambda_ada=20.0)
        assert criterion.weights["loss_cosine"] == 20
