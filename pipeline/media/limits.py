"""How much a file may ask for before it is taken for damaged or hostile."""

from pydantic import BaseModel, ByteSize, ConfigDict, Field


class Limits(BaseModel):
    """Bounds beyond which a file fails its clip; no part of what a stage makes of the others."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seconds: float = Field(default=86_400.0, gt=0)
    """Length of a sound or video."""
    rate: int = Field(default=768_000, ge=1_000, le=10_000_000)
    """Samples of a sound per second; fewer than 1,000 are no sound either."""
    pixels: int = Field(default=100_000_000, ge=1)
    """Width times height of a picture."""
    video_pixels: int = Field(default=36_000_000, ge=1)
    """The same of a video (8K has 33,177,600); its decoder holds many pictures at once."""
    bytes: ByteSize = Field(default=ByteSize(512 << 20), ge=1)
    """Size of a file that is read as a whole: an image, a label, log-mel patches."""


USUAL = Limits()
