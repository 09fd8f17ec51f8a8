"""What the decoders compute by hand going backward, against what autograd makes of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from combo.model.mask_decoder import MaskDecoder
from combo.model.pixel_decoder import DeformableLayer


def test_the_feed_forward_layer_has_the_gradients_of_its_definition() -> None:
    torch.manual_seed(0)
    layer = DeformableLayer(width=8, heads=2, points=1, ffn=24).double()
    shapes = [(3, 2), (2, 2), (1, 2)]
    x = torch.randn(3, 12, 8, dtype=torch.float64, requires_grad=True)
    positions = torch.randn(12, 8, dtype=torch.float64)
    centres = torch.rand(1, 12, 3, 2, dtype=torch.float64)

    def defined() -> Tensor:
        seen = layer.norm1(x + layer.self_attn(x + positions, centres, x, shapes))
        return layer.norm2(seen + layer.linear2(F.relu(layer.linear1(seen))))

    towards = torch.randn(3, 12, 8, dtype=torch.float64)
    wanted = [x, *layer.parameters()]
    ours = layer(x, positions, centres, shapes)
    torch.testing.assert_close(ours, defined())
    torch.testing.assert_close(
        torch.autograd.grad(ours, wanted, towards), torch.autograd.grad(defined(), wanted, towards)
    )


def test_masks_of_every_layer_have_the_gradients_of_their_products() -> None:
    torch.manual_seed(0)
    decoder = MaskDecoder(
        width=8, heads=2, ffn=16, layers=3, queries=4, classes=2, mode="add"
    ).double()
    maps = [torch.randn(2, 8, side, side, dtype=torch.float64) for side in (1, 2, 3)]
    pixels = torch.randn(2, 30, 8, dtype=torch.float64, requires_grad=True)
    sound = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    embeddings: list[Tensor] = []
    decoder.mask_embed.register_forward_hook(lambda _, __, made: embeddings.append(made))
    masks = [mask for _, mask in decoder(maps, pixels, (5, 6), sound)]
    products = [(made @ pixels.transpose(1, 2)).unflatten(2, (5, 6)) for made in embeddings]
    torch.testing.assert_close(masks, products)

    wanted = [pixels, sound, *decoder.mask_embed.parameters()]
    # The prediction before the last layer is looked at by nobody, as with consistency off.
    towards = [torch.randn(2, 4, 5, 6, dtype=torch.float64) for _ in masks]
    del masks[2], products[2], towards[2]
    torch.testing.assert_close(
        torch.autograd.grad(masks, wanted, towards, retain_graph=True),
        torch.autograd.grad(products, wanted, towards),
    )
