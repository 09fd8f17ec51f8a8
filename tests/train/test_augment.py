"""Training augmentation: what moves together, what is drawn apart, and what it may never do."""

import colorsys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from combo.pipeline.media.labels import LABEL_IGNORED
from combo.pipeline.train.augment import (
    OF_CLIP,
    OF_PICTURE,
    PADDING,
    SHORT_SIDES,
    Augment,
    Recipe,
    shift_colours,
)
from combo.pipeline.train.draws import AUGMENTATION, generators
from combo.pipeline.train.loader import Batch

SIZE = 64
RECIPES: tuple[Recipe, ...] = ("colour-flip", "resize-crop-colour-flip")


def shapes(clips: int = 4, frames: int = 2, seed: int = 0) -> Batch:
    """White blobs on black whose labels are the blobs; every frame and Maskige shows its labels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((clips, frames, 4, 4), generator=generator) < 0.5
    labels = coarse.repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3).to(torch.uint8)
    pictures = (labels * 255)[:, :, None].expand(-1, -1, 3, -1, -1)
    return Batch(
        frames=pictures,
        maskige=pictures.clone(),
        labels=labels,
        sound=torch.rand((clips, frames, 128), generator=generator),
        present=torch.ones(clips, frames, dtype=torch.bool),
        annotated=torch.ones(clips, frames, dtype=torch.bool),
        clips=tuple(f"clip{i}" for i in range(clips)),
    )


def augmented(batch: Batch, recipe: Recipe, seed: int) -> Batch:
    augment = Augment(recipe)
    return augment(batch, augment.draw(draws(seed, len(batch.labels)), batch))


def draws(seed: int, clips: int) -> list[torch.Generator]:
    return generators(seed, 0, range(clips), AUGMENTATION, torch.device("cpu"))


def white(pictures: Tensor) -> Tensor:
    """Jitter leaves black below 48 and white above 111."""
    return pictures.mean(2) > 80


def test_no_augmentation_gives_the_batch_itself() -> None:
    batch = shapes()
    assert augmented(batch, "none", 0) is batch


def even(labels: Tensor) -> Tensor:
    """Where all labels two pixels around are the same, and count."""
    near = F.pad(labels.float(), (2, 2, 2, 2), value=LABEL_IGNORED).unfold(2, 5, 1).unfold(3, 5, 1)
    low, high = near.amin((-1, -2)), near.amax((-1, -2))
    return (low == high) & (high != LABEL_IGNORED)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_draws_give_the_same_batch_and_others_another(recipe: Recipe) -> None:
    once, again, other = (augmented(shapes(), recipe, seed) for seed in (3, 3, 4))
    for name in ("frames", "maskige", "labels"):
        assert torch.equal(getattr(once, name), getattr(again, name))
    assert not torch.equal(once.frames, other.frames)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_batch_that_came_in_and_what_is_no_picture_stay_as_they_are(recipe: Recipe) -> None:
    batch, before = shapes(), shapes()
    after = augmented(batch, recipe, 1)
    for name in ("frames", "maskige", "labels"):
        assert torch.equal(getattr(batch, name), getattr(before, name))
    for name in ("sound", "present", "annotated", "clips"):
        assert getattr(after, name) is getattr(batch, name)


@pytest.mark.parametrize("recipe", RECIPES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_labels_go_where_frames_and_maskiges_go(recipe: Recipe, seed: int) -> None:
    batch = augmented(shapes(seed=seed), recipe, seed)
    # At a blob's edge the frame blends and the label does not.
    plain = even(batch.labels)
    assert plain.float().mean() > 0.1
    for pictures in (batch.frames, batch.maskige):
        assert pictures.min() >= 0
        assert pictures.max() <= 255
        assert torch.equal(white(pictures)[plain], batch.labels[plain] == 1)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_padding_lies_right_and_below_in_grey_with_labels_that_do_not_count(seed: int) -> None:
    batch = augmented(shapes(), "resize-crop-colour-flip", seed)
    for clip in range(4):
        ignored = (batch.labels[clip] == LABEL_IGNORED).all(0)
        rows = int((~ignored).any(1).sum())
        columns = int((~ignored).any(0).sum())
        assert (rows, columns) in {
            (min(SIZE, round(SIZE * side / 224)),) * 2 for side in SHORT_SIDES
        }
        inside = torch.zeros_like(ignored)
        inside[:rows, :columns] = True
        assert torch.equal(ignored, ~inside)
        for pictures in (batch.frames, batch.maskige):
            assert (pictures[clip][..., ~inside] == PADDING).all()


@pytest.mark.parametrize("side", SHORT_SIDES)
def test_the_picture_is_the_resized_one_cropped_mirrored_and_padded(side: int) -> None:
    height, width = 60, 84
    size = (round(height * side / 224), round(width * side / 224))
    rows, columns = min(height, size[0]), min(width, size[1])
    top, left = (size[0] - rows) // 2, size[1] - columns
    drawn = torch.full((2, OF_CLIP + 2 * OF_PICTURE), 0.75)  # colours stay as they are
    drawn[:, 0] = (SHORT_SIDES.index(side) + 0.5) / len(SHORT_SIDES)
    drawn[:, 1] = (top + 0.5) / (size[0] - rows + 1)
    drawn[:, 2], drawn[0, 3] = 1 - 1e-6, 0.25
    frames = torch.randint(0, 256, (2, 1, 3, height, width), dtype=torch.uint8)
    plain = replace(
        shapes(clips=2, frames=1), frames=frames, maskige=frames, labels=frames[:, :, 0].clone()
    )
    got = Augment("resize-crop-colour-flip")(plain, drawn)
    window = (..., slice(top, top + rows), slice(left, left + columns))
    whole = F.interpolate(frames[:, 0].float(), size, mode="bilinear", antialias=True)[window]
    labels = F.interpolate(plain.labels.float(), size, mode="nearest-exact")[window]
    whole[0], labels[0] = whole[0].flip(-1), labels[0].flip(-1)
    for pictures in (got.frames, got.maskige):
        torch.testing.assert_close(pictures[:, 0, :, :rows, :columns], whole, rtol=0, atol=2e-3)
        assert (pictures[..., rows:, :] == PADDING).all()
    assert torch.equal(got.labels[..., :rows, :columns], labels.to(torch.uint8))
    assert (got.labels[..., columns:] == LABEL_IGNORED).all()


def test_parts_of_a_batch_with_their_rows_of_what_was_drawn_are_the_batch() -> None:
    batch, augment = shapes(), Augment("resize-crop-colour-flip")
    drawn = augment.draw(draws(0, 4), batch)
    whole = augment(batch, drawn)
    for first in (0, 2):
        part, of_part = (
            augment(batch.part(first, first + 2), drawn[first : first + 2]),
            whole.part(first, first + 2),
        )
        assert torch.equal(part.frames, of_part.frames)
        assert torch.equal(part.labels, of_part.labels)


def test_sizes_and_crops_vary_from_clip_to_clip_but_not_inside_a_clip() -> None:
    batch = augmented(shapes(clips=24, frames=3), "resize-crop-colour-flip", 0)
    sizes = [
        {int((batch.labels[clip, t] != LABEL_IGNORED).sum()) for t in range(3)}
        for clip in range(24)
    ]
    assert all(len(each) == 1 for each in sizes)
    assert len({size for each in sizes for size in each}) > 3


def test_about_half_of_the_clips_are_mirrored_as_a_whole() -> None:
    batch = shapes(clips=64, frames=2)
    after = augmented(batch, "colour-flip", 0)
    mirrored = [
        torch.equal(after.labels[clip], batch.labels[clip].flip(-1))
        and not torch.equal(after.labels[clip], batch.labels[clip])
        for clip in range(64)
    ]
    same = [torch.equal(after.labels[clip], batch.labels[clip]) for clip in range(64)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert 18 < sum(mirrored) < 46


def test_every_frame_and_every_maskige_gets_colours_of_its_own() -> None:
    batch = shapes(clips=1, frames=8)
    grey = torch.full_like(batch.frames, 100)
    after = augmented(replace(batch, frames=grey, maskige=grey), "colour-flip", 1)
    values = torch.cat((after.frames, after.maskige), 1)[0, :, :, 0, 0]
    assert len(values.unique(dim=0)) > 5  # brightness and contrast stay for a quarter of them


def seen_so(value: float, low: float, high: float) -> tuple[float, float]:
    """What is drawn, of 0..1, for a change by that value: how much, and that there is one."""
    return (value - low) / (high - low), 0.25


@pytest.mark.parametrize("early", [True, False])
def test_colours_change_in_the_order_of_the_public_code(early: bool) -> None:
    wanted = (20.0, 1.4, 0.7, 30.0)  # brightness, contrast, saturation, hue
    ranges = ((-32, 32), (0.5, 1.5), (0.5, 1.5), (-36, 36))
    drawn = [seen_so(value, *limits) for value, limits in zip(wanted, ranges, strict=True)]
    picture = [0.25 if early else 0.75, *(much for much, _ in drawn), *(by for _, by in drawn)]
    batch = shapes(clips=1, frames=1)
    colour = torch.tensor([200, 90, 40], dtype=torch.uint8)[:, None, None].expand(3, SIZE, SIZE)
    batch = replace(batch, frames=colour[None, None], maskige=colour[None, None])
    numbers = torch.tensor([[0.5, 0.5, 0.5, 0.75, *picture, *picture]])
    got = Augment("colour-flip")(batch, numbers).frames[0, 0, :, 0, 0].tolist()

    def limited(values: list[float]) -> list[float]:
        return [min(255.0, max(0.0, value)) for value in values]

    brightness, contrast, saturation, hue = wanted
    values = limited([value + brightness for value in (200, 90, 40)])
    if early:
        values = limited([value * contrast for value in values])
    h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in values))
    values = [255 * c for c in colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1, s * saturation), v)]
    if not early:
        values = limited([value * contrast for value in values])
    assert got == pytest.approx(values, abs=0.1)


rgb = st.tuples(*[st.integers(0, 255)] * 3)


def one_pixel(colour: tuple[int, ...], saturation: float, hue: float) -> list[float]:
    picture = torch.tensor(colour, dtype=torch.float32)[None, :, None, None]
    factors = (torch.full((1, 1, 1, 1), value) for value in (saturation, hue))
    return shift_colours(picture, *factors).flatten().tolist()


@given(colour=rgb, saturation=st.floats(0.5, 1.5), hue=st.floats(-36, 36))
def test_colours_shift_as_hsv_says(
    colour: tuple[int, int, int], saturation: float, hue: float
) -> None:
    h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in colour))
    wanted = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1.0, s * saturation), v)
    assert one_pixel(colour, saturation, hue) == pytest.approx(
        [value * 255 for value in wanted], abs=0.05
    )


@given(colour=rgb, turns=st.integers(-1, 1))
def test_a_whole_turn_of_the_hue_changes_nothing(colour: tuple[int, int, int], turns: int) -> None:
    assert one_pixel(colour, 1.0, 360.0 * turns) == pytest.approx(colour, abs=0.05)
