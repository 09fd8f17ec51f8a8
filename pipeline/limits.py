"""How much a file may ask for before it is taken for damaged or hostile."""

from pydantic import BaseModel, ByteSize, ConfigDict, Field


class Limits(BaseModel):
    """Bounds beyond which a file fails its clip; no part of what a stage makes of the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_bytes: ByteSize = Field(default=ByteSize(512 << 20), ge=1)
    """Size of an image file on the disk."""
    pixels: int = Field(default=100_000_000, ge=1)
    """Width times height of a picture."""


USUAL = Limits()
