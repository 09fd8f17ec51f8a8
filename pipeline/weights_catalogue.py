"""Published weights: where they lie, what is known of them, and under which terms.

Digests are SHA-256: in full where the file lies on Hugging Face (for SAM: in several copies there
that agree), or the first digits after the hyphen in the file's name, which is PyTorch's rule. The
digits in SAM's names begin its MD5 and are not used.
"""

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Weights:
    """One published file.

    file: its name in the weights folder.  url: where to fetch it; None when only a page is known.
    page: where a person finds it.  licence: of the weights, as published.
    size: bytes.  sha256: hex digits of the digest, all or the first ones; None where not published.
    """

    name: str
    file: str
    url: str | None
    page: str
    licence: str
    about: str
    size: int | None = None
    sha256: str | None = None

    @property
    def source(self) -> str:
        return self.url or self.page

    @property
    def digest_start(self) -> str | None:
        """The first digits of the SHA-256 that the file must have, or None."""
        if self.sha256:
            return self.sha256
        named = re.search(r"-([0-9a-f]{8,})\.\w+$", self.file)
        return named.group(1) if named else None


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything"
_SEMANTIC_SAM = "https://github.com/UX-Decoder/Semantic-SAM/releases/download/checkpoint/"
_SEMANTIC_SAM_PAGE = "https://github.com/UX-Decoder/Semantic-SAM"
_VGGISH = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/"
_VGGISH_PAGE = "https://github.com/harritaylor/torchvggish"
_COMBO_PAGE = "https://huggingface.co/YannQi/COMBO-AVS-checkpoints"
_COMBO_BACKBONES = f"{_COMBO_PAGE}/resolve/main/pretrained/"
_TIMM = "https://huggingface.co/timm/"

_ALL = (
    Weights(
        "sam-vit-b",
        "sam_vit_b_01ec64.pth",
        f"{_SAM}sam_vit_b_01ec64.pth",
        _SAM_PAGE,
        "Apache-2.0",
        "SAM, ViT-B: Maskige generator sam-vit-b",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    Weights(
        "sam-vit-l",
        "sam_vit_l_0b3195.pth",
        f"{_SAM}sam_vit_l_0b3195.pth",
        _SAM_PAGE,
        "Apache-2.0",
        "SAM, ViT-L: Maskige generator sam-vit-l",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    Weights(
        "sam-vit-h",
        "sam_vit_h_4b8939.pth",
        f"{_SAM}sam_vit_h_4b8939.pth",
        _SAM_PAGE,
        "Apache-2.0",
        "SAM, ViT-H: Maskige generator sam-vit-h",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    Weights(
        "semantic-sam-t",
        "swint_only_sam_many2many.pth",
        f"{_SEMANTIC_SAM}swint_only_sam_many2many.pth",
        _SEMANTIC_SAM_PAGE,
        "not stated",
        "Semantic-SAM, Swin-T: Maskige generator semantic-sam-t",
    ),
    Weights(
        "semantic-sam-l",
        "swinl_only_sam_many2many.pth",
        f"{_SEMANTIC_SAM}swinl_only_sam_many2many.pth",
        _SEMANTIC_SAM_PAGE,
        "not stated",
        "Semantic-SAM, Swin-L: the paper's Maskiges",
    ),
    Weights(
        "vggish",
        "vggish-10086976.pth",
        f"{_VGGISH}vggish-10086976.pth",
        _VGGISH_PAGE,
        "Apache-2.0",
        "VGGish: sound encoder vggish",
    ),
    Weights(
        "vggish-pca",
        "vggish_pca_params-970ea276.pth",
        f"{_VGGISH}vggish_pca_params-970ea276.pth",
        _VGGISH_PAGE,
        "Apache-2.0",
        "VGGish's optional PCA step, which COMBO does not use",
    ),
    Weights(
        "resnet50",
        "resnet50.tv_in1k.safetensors",
        f"{_TIMM}resnet50.tv_in1k/resolve/main/model.safetensors",
        f"{_TIMM}resnet50.tv_in1k",
        "BSD-3-Clause",
        "ResNet-50, ImageNet (torchvision's, timm's file)",
        sha256="5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    ),
    Weights(
        "pvt-v2-b5",
        "pvt_v2_b5.in1k.safetensors",
        f"{_TIMM}pvt_v2_b5.in1k/resolve/main/model.safetensors",
        f"{_TIMM}pvt_v2_b5.in1k",
        "Apache-2.0",
        "PVT-v2-B5, ImageNet (timm's file)",
        sha256="070ea6f6e2b9c06fa8dc9ba943c04d5fb74df01f2cb328d95ae65c94c304176b",
    ),
    Weights(
        "resnet50-detectron2",
        "R-50.pkl",
        f"{_COMBO_BACKBONES}R-50.pkl",
        _COMBO_PAGE,
        "Apache-2.0",
        "ResNet-50, ImageNet, as COMBO's authors start from it",
    ),
    Weights(
        "pvt-v2-b5-detectron2",
        "d2_pvt_v2_b5.pkl",
        f"{_COMBO_BACKBONES}d2_pvt_v2_b5.pkl",
        _COMBO_PAGE,
        "Apache-2.0",
        "PVT-v2-B5, ImageNet, as COMBO's authors start from it",
    ),
    Weights(
        "combo-r50-s4",
        "combo_r50_s4.pth",
        None,
        f"{_COMBO_PAGE}/tree/main/checkpoints/avs_s4",
        "Apache-2.0",
        "COMBO's published checkpoint, ResNet-50, S4",
    ),
    Weights(
        "combo-pvt-s4",
        "combo_pvt_s4.pth",
        None,
        f"{_COMBO_PAGE}/tree/main/checkpoints/avs_s4",
        "Apache-2.0",
        "COMBO's published checkpoint, PVT-v2-B5, S4",
    ),
)

CATALOGUE: Final[dict[str, Weights]] = {weights.name: weights for weights in _ALL}
