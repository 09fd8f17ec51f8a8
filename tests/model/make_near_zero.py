"""Makes tests/data/network/r50_s4_near_zero.json: python -m tests.model.make_near_zero

Our network in float64, whose attention masks are the public one's bit for bit (checked here), tells
how near to zero each logit is. Takes two minutes on two cores and 10 GB of memory.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from combo.model import Combo, ComboOutput
from combo.model.state_dicts import published_combo

from .golden import DATA, deterministic_weight, golden_batch, key_side
from .near_zero import FILE

NOISE = 2e-5
"""The most that a second float32 run of the public network's masks was from the first, in their
deviation: 1.4e-5, which the golden README rounds up."""
MARGIN = 2 * NOISE
"""The stored run and the one compared with it may both be as far from the exact logits."""


def near_zero(out: ComboOutput) -> tuple[list[list[float]], list[float]]:
    """Bits within the margin, as [set, frame, query, key, logit], and the sets' deviations."""
    bits: list[list[float]] = []
    deviations: list[float] = []
    for number, (logits, deviation) in enumerate(resized(out)):
        units = logits / deviation
        found = (units.abs() <= MARGIN).nonzero()
        bits += [[number, *place.tolist(), float(f"{units[tuple(place)]:.3g}")] for place in found]
        deviations.append(float(f"{deviation:.4g}"))
    return bits, deviations


def resized(out: ComboOutput) -> list[tuple[Tensor, Tensor]]:
    """Of each set the logits [frames, queries, keys] and the mask logits' deviation."""
    made = []
    for number, layer in enumerate(out.layers):
        masks, side = layer.mask_logits.flatten(0, 1), key_side(number)
        made.append((F.interpolate(masks, (side, side), mode="bilinear").flatten(2), masks.std()))
    return made


def main() -> None:
    listed = json.loads((DATA / "r50_s4_keys.json").read_text())
    weights = {
        name: deterministic_weight(name, tuple(shape))
        for name, shape, _, _ in listed
        if not name.startswith("audio_backbone.")
    }
    net = Combo.from_preset("combo-r50-s4").eval()
    net.load_state_dict(published_combo(weights)[0])
    net = net.double()
    with np.load(DATA / "r50_s4_inputs.npz") as inputs, np.load(DATA / "r50_s4_loss.npz") as loss:
        written: dict[str, object] = {"noise": NOISE, "margin": MARGIN}
        for name, case in (("outputs", "fully_annotated"), ("first_frame_only",) * 2):
            labels = torch.from_numpy(loss[f"{case}.labels"])
            (frames, maskige, sound), _ = golden_batch(case, dict(inputs), labels)
            with torch.inference_mode():
                out = net(frames, maskige, sound.double())
            if name == "outputs":
                with np.load(DATA / "r50_s4_outputs.npz") as golden:
                    for number, (logits, _) in enumerate(resized(out)):
                        blocked = np.packbits(logits.numpy() < 0, axis=-1)
                        assert (blocked == golden[f"attn_mask_blocked_packed.{number}"]).all()
            bits, deviations = near_zero(out)
            written[name] = {"deviation": deviations, "bits": bits}
    text = json.dumps(written).replace("], [", "],\n[").replace("}, ", "},\n")
    FILE.write_text(text + "\n")


if __name__ == "__main__":
    main()
