"""The large variant of Semantic-SAM: its windows, and the way from an image to masks."""

import pytest
import torch
from public_masks import PublicGrid
from torch import nn
from torchvision.models.swin_transformer import shifted_window_attention

from combo.model.maskige import label_map
from combo.model.semantic_sam import VARIANTS, SemanticSam
from combo.model.semantic_sam.swin import SwinBlock


@pytest.mark.parametrize("shift", [0, 6])
def test_large_windows_attend_as_torchvisions_do(shift: int) -> None:
    # torchvision gives up the shift where a window covers the map; on larger maps, padded ones
    # included, it computes the same.
    torch.manual_seed(0)
    size = VARIANTS["swin-l"]
    block = SwinBlock(size.embed_dim, size.heads[0], size.window, shift)
    attention = block.attn
    nn.init.normal_(attention.relative_position_bias_table)
    tokens = torch.randn(2, 17, 30, size.embed_dim)
    index, table = attention.relative_position_index, attention.relative_position_bias_table
    with torch.no_grad():
        expected = shifted_window_attention(
            tokens,
            attention.qkv.weight,
            attention.proj.weight,
            table[index].permute(2, 0, 1)[None],
            [size.window] * 2,
            size.heads[0],
            [shift] * 2,
            qkv_bias=attention.qkv.bias,
            proj_bias=attention.proj.bias,
        )
        torch.testing.assert_close(block._attend(tokens), expected, rtol=0, atol=1e-5)


def test_the_large_variant_goes_from_an_image_to_masks() -> None:
    torch.manual_seed(0)
    net = SemanticSam.from_variant("swin-l")
    widths = [level.shape[1] for level in net.backbone(torch.zeros(1, 3, 64, 96))]
    assert widths == [192, 384, 768, 1536]
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    # An untrained network's logits are all near the threshold: any offset would refuse them.
    accepting = {"pred_iou_thresh": -9, "stability_score_offset": 0.0}
    grid = PublicGrid(net, points_per_side=4, levels=(3, 1), **accepting)
    records = grid.records(image)
    assert len(records) > 0
    masks = torch.stack([record.segmentation for record in records])
    assert torch.equal(grid.label_map(image), label_map(masks))
