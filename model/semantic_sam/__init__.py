"""Semantic-SAM inference in plain PyTorch: masks from points, at six granularities."""

from .network import VARIANTS, SemanticSam

__all__ = ["VARIANTS", "SemanticSam"]
