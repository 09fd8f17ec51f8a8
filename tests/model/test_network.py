"""What the network promises beside the numbers of the public one (test_golden_network.py)."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from combo.model import Combo, Criterion, deformable_attention, preset
from combo.model.clips import ClipLayout
from combo.model.levels import Levels
from combo.model.mask_decoder import Attention

TINY = {
    "backbone": "test_convnext2", "image_size": 64, "width": 32, "heads": 4, "fusion_heads": 4,
    "pixel_layers": 1, "pixel_ffn": 32, "audio_dim": 8, "audio_hidden": 16, "query_count": 6,
    "decoder_layers": 2, "decoder_ffn": 32, "classes": 3, "fusion_dropout": 0.0,
}  # fmt: skip


def tiny(**settings: object) -> Combo:
    """A seeded network of the reference's kind that runs in milliseconds, in eval mode."""
    torch.manual_seed(0)
    net = Combo.from_preset("combo-r50-s4", **{**TINY, **settings}).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "gamma" in name:
                parameter.fill_(20.0)
    return net


def clips(batch: int, frames: int, size: tuple[int, int] = (64, 64), seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(0, 256, (batch, frames, 3, *size), generator=generator, dtype=torch.uint8)
        for _ in range(2)
    ]
    return [*images, torch.randn(batch, frames, 8, generator=generator)]


@pytest.mark.parametrize(
    ("name", "settings", "trainable"),
    [
        ("combo-r50-s4", {}, 86_761_907),
        ("combo-r50-avss", {}, 86_779_640),
        ("combo-pvt-s4", {}, 201_366_019),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    name: str, settings: dict[str, object], trainable: int
) -> None:
    with torch.device("meta"):
        net = Combo.from_preset(name, **settings)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trainable


PARTS = {
    "siam_encoder.frames": (23_454_912, 81_443_008),
    "siam_encoder.maskiges": (23_454_912, 81_443_008),
    "siam_encoder.gates": (700_400, 49_216),
    "pixel_decoder": (6_035_904, 5_315_008),
    "bilateral_fusion": (297_856, 297_856),
    "audio_mlp": (18_358_528, 18_358_528),
    "mask_decoder": (14_459_395, 14_459_395),
}


@pytest.mark.parametrize("column", [0, 1])
def test_each_part_has_the_published_number_of_parameters(column: int) -> None:
    with torch.device("meta"):
        net = Combo.from_preset(("combo-r50-s4", "combo-pvt-s4")[column])
    counted = {name: sum(p.numel() for p in net.get_submodule(name).parameters()) for name in PARTS}
    assert counted == {name: counts[column] for name, counts in PARTS.items()}
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(("sem", "millions"), [("separate", 158.9), ("shared", 135.5)])
def test_sharing_the_encoders_saves_what_the_paper_says(sem: str, millions: float) -> None:
    with torch.device("meta"):
        net = Combo.from_preset("combo-r50-avss", sem=sem)
    vggish = 72_141_184
    assert round((sum(p.numel() for p in net.parameters()) + vggish) / 1e6, 1) == millions


def test_frames_that_do_not_exist_influence_nothing() -> None:
    net = tiny()
    frames, maskige, sound = clips(2, 4)
    valid = torch.tensor([[True, True, False, False], [True] * 4])
    others = [clip.clone() for clip in (frames, maskige, sound)]
    for clip in others:
        clip[0, 2:] = 99
    others[2][0, 2:] = torch.nan
    with torch.inference_mode():
        one, two = net(frames, maskige, sound, valid), net(*others, valid)
        assert torch.equal(net.scores(one), net.scores(two))
        assert not net.scores(one)[0, 2:].any()
    for a, b in zip(one.layers, two.layers, strict=True):
        assert torch.equal(a.mask_logits, b.mask_logits)
        assert torch.equal(a.class_logits, b.class_logits)
        assert not a.mask_logits[0, 2:].any()


def test_valid_frames_are_stacked_as_if_they_were_one_row() -> None:
    """The public code sees frames only: a 2- and a 4-frame clip are three 2-frame ones to it."""
    net = tiny()
    frames, maskige, sound = clips(3, 2)
    padded = [torch.zeros(2, 4, *clip.shape[2:], dtype=clip.dtype) for clip in (frames, maskige)]
    padded.append(torch.zeros(2, 4, 8))
    for mixed, rows in zip(padded, (frames, maskige, sound), strict=True):
        mixed[0, :2] = rows[0]
        mixed[1] = rows[1:].flatten(0, 1)
    valid = torch.tensor([[True, True, False, False], [True] * 4])
    with torch.inference_mode():
        rows_out, mixed_out = net(frames, maskige, sound), net(*padded, valid)
    expected = rows_out.mask_logits.flatten(0, 1)
    torch.testing.assert_close(mixed_out.mask_logits[0, :2], expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed_out.mask_logits[1], expected[2:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_masks_at_full_size_are_made_in_blocks(at_once: int) -> None:
    net, valid = tiny(), torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.inference_mode():
        out = net(*clips(2, 4, (50, 70)), valid)
        expected = torch.cat([net.scores(out.clip(number)) for number in range(2)])
        torch.testing.assert_close(net.scores(out, at_once), expected, rtol=1e-5, atol=1e-5)


def test_images_of_any_size_come_back_at_their_size() -> None:
    net = tiny()
    frames, maskige, sound = clips(1, 2, (50, 70))
    with torch.inference_mode():
        out = net(frames, maskige, sound)
        scores = net.scores(out)
        whole = [nn.functional.pad(net.normalise(c[0])[..., :50, :70], (0, 26, 0, 14))
                 for c in (frames, maskige)]  # fmt: skip
        features = net.siam_encoder(*whole)
    assert out.mask_logits.shape == (1, 2, 6, 13, 18)
    assert scores.shape == (1, 2, 3, 50, 70)
    assert features[0].shape[-2:] == (16, 24)


@pytest.mark.parametrize("sem", ["separate", "shared", "off"])
@pytest.mark.parametrize("fidelity", ["reference", "paper"])
def test_every_siam_encoder_of_table_4_trains(sem: str, fidelity: str) -> None:
    net = tiny(sem=sem, fidelity=fidelity)
    assert_every_parameter_learns(net)


@pytest.mark.parametrize("fusion", ["bilateral", "visual", "audio", "none"])
@pytest.mark.parametrize("fidelity", ["reference", "paper"])
def test_every_fusion_of_table_5_trains(fusion: str, fidelity: str) -> None:
    net = tiny(fusion=fusion, fidelity=fidelity)
    assert_every_parameter_learns(net)


@pytest.mark.parametrize("queries", ["add", "all", "none"])
def test_every_kind_of_queries_of_table_6_trains(queries: str) -> None:
    net = tiny(queries=queries, fusion="visual")
    assert_every_parameter_learns(net)
    if queries != "none":
        frames, maskige, sound = clips(1, 2)
        with torch.inference_mode():
            one, two = (net(frames, maskige, s).class_logits for s in (sound, -sound))
        assert not torch.allclose(one, two)


def assert_every_parameter_learns(net: Combo) -> None:
    """Nothing is built that no gradient reaches (value gradients that cancel are near zero)."""
    out = net(*clips(1, 2))
    sum(
        (layer.mask_logits.square().mean() + layer.class_logits.square().mean())
        for layer in out.layers
    ).backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None]
    assert not silent


def test_the_network_without_maskiges_looks_at_none() -> None:
    net = tiny(sem="off")
    frames, maskige, sound = clips(1, 2)
    with torch.inference_mode():
        one, two = net(frames, maskige, sound), net(frames, maskige // 2, sound)
    assert torch.equal(one.mask_logits, two.mask_logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_masks(dtype: torch.dtype) -> None:
    net = tiny()
    with torch.inference_mode():
        exact = net.scores(net(*clips(1, 2)))
        with torch.autocast("cpu", dtype=dtype):
            out = net(*clips(1, 2))
            half = net.scores(out)
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    assert (half - exact).abs().mean() < 0.05 * exact.std()


def test_what_the_pixel_decoder_adds_up_and_where_it_looks_stay_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = tiny()
    seen: list[Tensor] = []
    computed: list[Tensor] = []
    sample = deformable_attention.sample_levels

    def watched(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        computed.append(value)
        seen.extend([locations, weights])
        return sample(value, levels, locations, weights)

    monkeypatch.setattr(deformable_attention, "sample_levels", watched)
    net.pixel_decoder.register_forward_hook(lambda _m, _i, out: seen.extend(out[1]))
    net.pixel_decoder.mask_features.register_forward_hook(lambda _m, _i, out: computed.append(out))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        net(*clips(1, 2))
    assert {each.dtype for each in seen} == {torch.float32}
    assert {each.dtype for each in computed} == {torch.bfloat16}


def test_a_network_in_float64_computes_in_float64() -> None:
    net, batch = tiny(), clips(1, 2)
    with torch.inference_mode():
        single = net(*batch)
        net, batch[2] = net.double(), batch[2].double()
        double = net(*batch)
    assert double.mask_logits.dtype == double.class_logits.dtype == torch.float64
    torch.testing.assert_close(double.mask_logits.float(), single.mask_logits, rtol=1e-3, atol=1e-3)


def test_channels_last_changes_no_number_that_matters() -> None:
    net = tiny()
    with torch.inference_mode():
        exact = net(*clips(1, 2)).mask_logits
        last = net.to(memory_format=torch.channels_last)(*clips(1, 2)).mask_logits
    torch.testing.assert_close(last, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fidelity", ["reference", "paper"])
def test_the_forward_compiles_into_one_graph(fidelity: str) -> None:
    net = tiny(fidelity=fidelity, decoder_layers=1)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    batch = clips(1, 2)
    with torch.no_grad():
        out, exact = compiled(*batch), net(*batch)
    torch.testing.assert_close(out.mask_logits, exact.mask_logits, rtol=1e-4, atol=1e-4)


def test_the_forward_of_mixed_lengths_compiles_with_a_layout_made_before() -> None:
    net = tiny(decoder_layers=1)
    valid = torch.tensor([[True, True, False], [True] * 3])
    layout = ClipLayout.of(2, 3, valid, torch.device("cpu"))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        out, exact = compiled(*clips(2, 3), layout), net(*clips(2, 3), valid)
    torch.testing.assert_close(out.mask_logits, exact.mask_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"fidelity": "paper", "backbone": "resnet10t"}])
def test_training_is_the_same_with_compiled_parts(settings: dict[str, object]) -> None:
    """Each is one graph, for whole clips and for mixed lengths, or this would raise."""
    net = tiny(mask_points=64, decoder_layers=1, pixel_layers=1, **settings).train()
    criterion = Criterion(net.settings)
    labels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    labels[:, :, 20:50, 10:40] = 1
    points = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    mixed = torch.tensor([[True, True, False], [True] * 3])

    def train(valid: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        total = criterion(net(*clips(2, 3), valid), labels, points=points).total
        return total, list(torch.autograd.grad(total, list(net.parameters())))

    expected = [train(None), train(mixed)]
    net.compile_parts("aot_eager")
    for valid, (loss, gradients) in zip((None, mixed), expected, strict=True):
        compiled, of_compiled = train(valid)
        torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=1e-5)
        # Biases before a norm have none but rounding's gradient.
        noise = 1e-5 * max(float(each.abs().max()) for each in gradients)
        for ours, theirs in zip(of_compiled, gradients, strict=True):
            atol = max(1e-3 * float(theirs.abs().max()), noise)
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=atol)


def test_layers_of_one_kind_are_compiled_once() -> None:
    """Two encoders, the pixel decoder's layers, the fusion; the mask decoder's for the first map,
    and for maps of any size."""
    net = tiny(fidelity="paper", backbone="resnet10t", pixel_layers=3, decoder_layers=4)
    counter = CompileCounter()
    batch = clips(1, 2)
    with torch.no_grad():
        exact = net(*batch)
        net.compile_parts(counter)
        out = net(*batch)
    assert counter.frame_count == 5
    torch.testing.assert_close(out.mask_logits, exact.mask_logits, rtol=1e-4, atol=1e-4)


def test_compiled_parts_take_more_kinds_of_calls_than_pytorch_allows_by_itself() -> None:
    """A long run meets them: training and evaluation, lengths of clips, precisions."""
    net = tiny()
    net.compile_parts("eager")
    part = net.mask_decoder.layers[0].ffn_norm
    part.compile(fullgraph=True, backend="eager")
    with torch.no_grad():
        for dimensions in range(1, 13):
            given = torch.randn([2] * dimensions + [32])
            torch.testing.assert_close(part(given), part.forward(given))


def test_the_network_exports() -> None:
    net = tiny(decoder_layers=1)
    batch = clips(1, 2)
    with torch.inference_mode():
        exact = net(*batch)
    program = torch.export.export(net, tuple(batch))
    with torch.inference_mode():
        out = program.module()(*batch)
    torch.testing.assert_close(out.mask_logits, exact.mask_logits, rtol=1e-4, atol=1e-4)
    assert len(out.layers) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"backbones": "resnet18"}, "backbones"),
        ({"sem": "twice"}, "twice"),
        ({"width": 30}, "30"),
        ({"backbone": "resnet51"}, "resnet51"),
    ],
)
def test_a_setting_that_cannot_be_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Combo.from_preset("combo-small-s4", **change)


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="combo-pvt-avss"):
        preset("combo-r101-s4")


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_arrays_that_do_not_fit_together_are_refused(wrong: int) -> None:
    net = tiny()
    batch = clips(1, 2)
    batch[wrong] = batch[wrong][:, :, :2]
    with pytest.raises(ValueError, match="not"):
        net(*batch)


# --- the real ResNet-50 network, at a small size ------------------------------------------------


def seeded_resnet(**settings: object) -> Combo:
    """combo-r50-avss, not as deep; the residual branches, which start at zero, take part."""
    torch.manual_seed(0)
    shallow = {"decoder_layers": 2, "pixel_layers": 2, "audio_hidden": 64, "fusion_dropout": 0.0}
    net = Combo.from_preset("combo-r50-avss", **{**shallow, **settings}).eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "gamma" in name or name.endswith("norm.weight"):
                value.fill_(0.5)
        net.load_state_dict(net.state_dict())  # frozen norms work out what follows
    return net


@pytest.fixture(scope="module")
def resnet() -> Combo:
    """Blocks of ResNet-50's kind, two a stage: enough for what compiles and exports, and faster."""
    shallow = {"backbone": "resnet26", "decoder_layers": 1, "pixel_layers": 1}
    return seeded_resnet(**shallow).requires_grad_(False)


def small_clips(batch: int, frames: int) -> list[Tensor]:
    images = clips(batch, frames)[:2]
    return [*images, torch.randn(batch, frames, 128, generator=torch.Generator().manual_seed(3))]


def test_the_resnet_network_compiles_into_one_graph(resnet: Combo) -> None:
    batch = small_clips(1, 2)
    compiled = torch.compile(resnet, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        out, exact = compiled(*batch), resnet(*batch)
    torch.testing.assert_close(out.mask_logits, exact.mask_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.class_logits, exact.class_logits, rtol=1e-4, atol=1e-4)


def test_the_resnet_network_exports(resnet: Combo) -> None:
    batch = small_clips(1, 2)
    program = torch.export.export(resnet, tuple(batch))
    with torch.no_grad():
        out, exact = program.module()(*batch), resnet(*batch)
    torch.testing.assert_close(out.mask_logits, exact.mask_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_resnet_network_learns_under_autocast(dtype: torch.dtype) -> None:
    net = seeded_resnet()
    batch = small_clips(1, 2)

    def gradient() -> Tensor:
        out = net(*batch)
        loss = out.mask_logits.float().square().mean() + out.class_logits.float().square().mean()
        weight = net.siam_encoder.maskiges.body.get_submodule("layer4.2.conv3").weight
        return torch.autograd.grad(loss, [weight])[0]

    exact = gradient()
    with torch.autocast("cpu", dtype=dtype):
        half = gradient()
    assert half.dtype == torch.float32
    assert nn.functional.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.9


def test_half_precision_converts_packed_parameters_once_to_the_same_bits() -> None:
    torch.manual_seed(0)
    attention, query, key = Attention(32, 4), torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    parts = [each.detach().chunk(3) for each in (attention.in_proj_weight, attention.in_proj_bias)]
    with torch.autocast("cpu", torch.bfloat16), Conversions() as conversions:
        out = attention(query, key, key, None)
        made, by_attention = out.square().mean(), conversions.of_parameters
        leaves = [[each.requires_grad_() for each in part] for part in parts]
        q, k, v = (
            nn.functional.linear(x, *of).unflatten(2, (4, -1)).transpose(1, 2)
            for x, *of in zip((query, key, key), *leaves, strict=True)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        plain = attention.out_proj(attended.transpose(1, 2).flatten(2))
        assert torch.equal(out, plain)
    made.backward()
    plain.square().mean().backward()
    for packed, of in zip((attention.in_proj_weight, attention.in_proj_bias), leaves, strict=True):
        assert torch.equal(packed.grad, torch.cat([each.grad for each in of]))
    assert by_attention == 4, "two packed ones and two of the product at the end"


class Conversions(TorchDispatchMode):
    """Counts what autocast, or anybody, converts of what is learned."""

    of_parameters = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        converts = func.overloadpacket is torch.ops.aten._to_copy
        self.of_parameters += converts and args[0].requires_grad
        return func(*args, **(kwargs or {}))


def test_the_resnet_network_is_the_same_in_channels_last(resnet: Combo) -> None:
    batch = small_clips(1, 2)
    with torch.no_grad():
        exact = resnet(*batch).mask_logits
        last = resnet.to(memory_format=torch.channels_last)(*batch).mask_logits
    resnet.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(last, exact, rtol=1e-3, atol=1e-3 * exact.std().item())


@pytest.mark.parametrize("order", [(5, 10), (10, 5)])
def test_a_clip_of_five_and_one_of_ten_are_what_they_are_alone(order: tuple[int, int]) -> None:
    """With `fidelity=paper` clips do not see each other; the reference mixes their sounds."""
    net = seeded_resnet(fidelity="paper")
    batch = small_clips(2, 10)
    valid = torch.arange(10)[None] < torch.tensor(order)[:, None]
    with torch.inference_mode():
        together = net(*batch, valid)
        scores = net.scores(together)
        for i, frames in enumerate(order):
            alone = net(*[clip[i : i + 1, :frames] for clip in batch])
            for ours, theirs in zip(together.layers, alone.layers, strict=True):
                for name in ("class_logits", "mask_logits"):
                    expected = getattr(theirs, name)[0]
                    close = 1e-3 * expected.std().item()
                    torch.testing.assert_close(
                        getattr(ours, name)[i, :frames], expected, rtol=1e-3, atol=close
                    )
            assert not scores[i, frames:].any()


@pytest.mark.parametrize("order", [(5, 10), (10, 5)])
def test_the_reference_stacks_clips_of_five_and_ten_into_rows_of_five(
    resnet: Combo, order: tuple[int, int]
) -> None:
    rows = small_clips(3, 5)
    valid = torch.arange(10)[None] < torch.tensor(order)[:, None]
    mixed = []
    for clip in rows:
        padded = clip.new_zeros(2, 10, *clip.shape[2:])
        padded[valid] = clip.flatten(0, 1)
        mixed.append(padded)
    with torch.inference_mode():
        stacked, ours = resnet(*rows), resnet(*mixed, valid)
    for a, b in zip(ours.layers, stacked.layers, strict=True):
        torch.testing.assert_close(
            a.mask_logits[valid], b.mask_logits.flatten(0, 1), rtol=1e-3, atol=1e-3
        )
