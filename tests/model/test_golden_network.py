"""The network against the public implementation, number for number.

Everything up to the mask decoder is held to float noise. So are its predictions, but in a frame
where a bit of an attention mask fell on the other side of zero they are held, from there on, to
what such a bit can do; with the public side taken in these bits, all is held to float noise again.
tests/data/network/README.md says which bits these are, and why.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from combo.model import Combo
from combo.model.fidelity import own_queries
from combo.model.mask_decoder import OpenKeys

from .golden import SETS, Arrays, golden_arrays, key_side
from .near_zero import Bit, NearZero, settled

pytestmark = pytest.mark.golden

STRICT, STRICT_RMS = 1e-4, 1e-5
"""Largest and root mean square difference, in deviations of the golden array."""
LOOSE, LOOSE_ROWS, LOOSE_SCORES, LOOSE_BITS = 5e-3, 0.95, 2e-3, 1e-3
"""What bits can do: root mean square difference, which so many rows keep to; of scores; bits."""
NEVER = SETS

SETS_OF = {
    "pred_logits": range(10),
    "pred_masks.aux.mean": range(9),
    "pred_masks.aux.crop": range(9),
    "pred_masks.last": range(9, 10),
    "pred_masks.last.crop": range(9, 10),
    "sem_seg": range(9, 10),
    "sem_seg.crop": range(9, 10),
}
"""Arrays that bits have a say in, and the prediction sets that they are of."""

Change = Callable[[Combo], None]


def bits(arrays: Arrays, of_set: int) -> np.ndarray:
    """Which keys a set's masks block, [frames, queries, keys]."""
    packed = arrays[f"attn_mask_blocked_packed.{of_set}"]
    return np.unpackbits(packed, axis=-1, count=key_side(of_set) ** 2).astype(bool)


def first_differing(ours: Arrays, golden: Arrays, near: NearZero) -> np.ndarray:
    """Of each frame the first set whose bits differ, or NEVER; they may where they are open.

    Frames do not see each other in the decoder: a bit has consequences in its own frame alone.
    """
    first = np.full(len(bits(golden, 0)), NEVER)
    of_themselves = consequences = total = 0
    for number in range(SETS):
        differs = bits(ours, number) != bits(golden, number)
        follows, is_open = first < number, near.open(number, differs.shape)
        beyond = differs & ~is_open
        assert not beyond[~follows].any(), f"set {number}: bits differ whose logits are not zero"
        of_themselves += (differs & is_open).sum()
        consequences += beyond.sum()
        total += differs.size
        first[~follows & differs.any(axis=(1, 2))] = number
    assert of_themselves <= near.most, f"{of_themselves} bits differ, {near.most} at most can"
    assert consequences <= LOOSE_BITS * total, f"{consequences} bits follow from others"
    return first


def check(ours: Arrays, golden: Arrays, near: NearZero) -> np.ndarray:
    """Compares all arrays; returns of each frame the first set with a bit that differs."""
    first = first_differing(ours, golden, near)
    for name, expected in golden.items():
        if name in ("vggish", "attn_mask_margins") or "packed" in name:
            continue
        difference = np.abs(ours[name] - expected) / expected.std()
        if name in SETS_OF:
            sets = np.array(SETS_OF[name])
            of_frames = difference.reshape(len(sets), len(first), -1)
            check_consequences(name, of_frames, difference.shape[2 if len(sets) > 1 else 1])
            difference = of_frames[sets[:, None] <= first]
        if difference.size:
            assert difference.max() <= STRICT, name
            assert rms(difference) <= STRICT_RMS, name
    return first


def check_consequences(name: str, difference: np.ndarray, queries: int) -> None:
    """difference: [sets, frames, queries x values], or [1, frames, values] of the scores."""
    if name.startswith("sem_seg"):
        assert rms(difference) <= LOOSE_SCORES, name
        return
    rows = difference.reshape(-1, queries, difference.shape[2] // queries).max(axis=2)
    assert rms(difference) <= LOOSE, name
    assert (rows <= LOOSE).mean() >= LOOSE_ROWS, name


def rms(difference: np.ndarray) -> np.floating:
    return np.sqrt((difference**2).mean())


@pytest.fixture(scope="module")
def golden(network_golden: Callable[[str], Arrays]) -> Arrays:
    return network_golden("outputs")


@pytest.fixture(scope="module")
def inputs(network_golden: Callable[[str], Arrays]) -> Arrays:
    return network_golden("inputs")


@pytest.fixture(scope="module")
def near() -> NearZero:
    return NearZero.of("outputs")


@pytest.fixture(scope="module")
def loaded(network_state: dict[str, Tensor]) -> Combo:
    """combo-r50-s4 with the golden weights; not to be changed."""
    net = Combo.from_preset("combo-r50-s4").eval()
    net.load_state_dict(network_state)
    return net


@pytest.fixture
def net(loaded: Combo, network_state: dict[str, Tensor]) -> Iterator[Combo]:
    """The same, for a test that makes it a wrong one."""
    spread = loaded.spread
    yield loaded
    loaded.spread = spread
    loaded.mask_decoder.open_keys = OpenKeys()
    loaded.load_state_dict(network_state)


@pytest.fixture(scope="module")
def ours(loaded: Combo, inputs: Arrays) -> Arrays:
    return golden_arrays(loaded, inputs)


def test_the_network_gives_the_public_numbers(ours: Arrays, golden: Arrays, near: NearZero) -> None:
    check(ours, golden, near)


def test_the_network_gives_all_the_public_numbers(
    ours: Arrays, whole_outputs: Arrays, near: NearZero
) -> None:
    assert set(whole_outputs) - set(ours) == {"vggish", "attn_mask_margins"}
    check(ours, whole_outputs, near)


def test_with_zero_on_the_public_side_all_differences_are_float_noise(
    loaded: Combo, inputs: Arrays, golden: Arrays, near: NearZero
) -> None:
    arrays = settled_arrays(loaded, inputs, near.logits)
    assert (check(arrays, golden, near) == NEVER).all()


def settled_arrays(net: Combo, inputs: Arrays, sides: dict[Bit, float]) -> Arrays:
    """The golden arrays of a processor on which these logits fall on these sides of zero."""
    with settled(net, sides):
        arrays = golden_arrays(net, inputs)
    for (number, *place), logit in sides.items():
        blocked = bits(arrays, number)
        blocked[tuple(place)] = logit < 0
        arrays[f"attn_mask_blocked_packed.{number}"] = np.packbits(blocked, axis=-1)
    return arrays


def test_a_bit_on_the_other_side_is_borne_and_so_is_what_follows_in_its_frame(
    loaded: Combo, inputs: Arrays, golden: Arrays, near: NearZero
) -> None:
    bit = min((b for b in near.logits if b[0] == 4), key=lambda b: abs(near.logits[b]))
    sides = {**near.logits, bit: -near.logits[bit]}
    arrays = settled_arrays(loaded, inputs, sides)
    first = check(arrays, golden, near)
    assert first.tolist() == [4 if frame == bit[1] else NEVER for frame in range(5)]
    difference = np.abs(arrays["pred_logits"] - golden["pred_logits"]).max(axis=(2, 3))
    seen = difference > STRICT * golden["pred_logits"].std()
    assert seen[5, bit[1]]
    assert not np.delete(seen, bit[1], axis=1).any()


def test_a_bit_whose_logit_is_not_zero_is_not_borne(golden: Arrays, near: NearZero) -> None:
    with pytest.raises(AssertionError, match="set 4: bits differ whose logits are not zero"):
        check(turned(golden, [(4, 0, 0, 0)]), golden, near)


def test_more_bits_than_noise_can_turn_are_not_borne(golden: Arrays, near: NearZero) -> None:
    assert near.most < len(near.logits) < 50
    by_size = sorted(near.logits, key=lambda bit: abs(near.logits[bit]))
    check(turned(golden, by_size[: near.most]), golden, near)
    with pytest.raises(AssertionError, match=f"{near.most + 1} bits differ, {near.most} at most"):
        check(turned(golden, by_size[: near.most + 1]), golden, near)


def turned(arrays: Arrays, places: list[Bit]) -> Arrays:
    """The arrays with these bits on the other side, and nothing that follows from them."""
    arrays = dict(arrays)
    for number, *place in places:
        blocked = bits(arrays, number)
        blocked[tuple(place)] ^= True
        arrays[f"attn_mask_blocked_packed.{number}"] = np.packbits(blocked, axis=-1)
    return arrays


# --- wrong networks, which the comparison must tell ----------------------------------------------


class HigherThreshold(OpenKeys):
    """Keys are open from a logit of 0.01."""

    def forward(self, mask_logits: Tensor) -> Tensor:
        return super().forward(mask_logits - 0.01)


def higher_threshold(net: Combo) -> None:
    net.mask_decoder.open_keys = HigherThreshold()


def transposed_queries(net: Combo) -> None:
    net.spread = own_queries


def one_weight(net: Combo) -> None:
    net.mask_decoder.class_embed.bias[0] += 1e-3


def off_by_a_thousandth(name: str) -> Change:
    def change(net: Combo) -> None:
        net.get_parameter(name).mul_(1.001)

    return change


def without_level(net: Combo) -> None:
    net.mask_decoder.level_embed.weight[1] = 0


WRONG = {
    "mask threshold": higher_threshold,
    "query order": transposed_queries,
    "level embedding": without_level,
    "one weight": one_weight,
    **{
        name: off_by_a_thousandth(name)
        for name in (
            "siam_encoder.frames.body.layer4.2.conv3.weight",
            "mask_decoder.layers.8.linear2.weight",
        )
    },
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_network_is_told(
    wrong: str, net: Combo, inputs: Arrays, golden: Arrays, near: NearZero
) -> None:
    with torch.no_grad():
        WRONG[wrong](net)
    arrays = golden_arrays(net, inputs)
    with pytest.raises(AssertionError):
        check(arrays, golden, near)
