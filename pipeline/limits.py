"""How much one file may ask for, so that a damaged one costs its clip and nothing else."""

from pydantic import BaseModel, ByteSize, ConfigDict, Field


class Limits(BaseModel):
    """What media may be at most; `limits` in data_manifest.yaml. Beyond it a clip has failed.

    Not part of any result: no limit changes what a file within it becomes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(default=86_400.0, gt=0, allow_inf_nan=False)
    """Length of a sound or video."""
    rate: int = Field(default=768_000, ge=1_000, le=10_000_000)
    """Samples of sound per second, of each channel; fewer than 1,000 are no sound either."""
    pixels: int = Field(default=100_000_000, ge=1)
    """Width x height of an image."""
    video_pixels: int = Field(default=36_000_000, ge=1)
    """Width x height of a video (8K has 33,177,600); its decoder holds many pictures at once."""
    bytes: ByteSize = Field(default=ByteSize(1 << 30), ge=1)
    """Size of a file that is read as a whole: images, labels, log-mel patches."""


USUAL = Limits()
