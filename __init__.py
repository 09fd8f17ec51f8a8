"""COMBO: which pixels make the sound that is heard? (Cooperation Does Matter, CVPR 2024)"""

__version__ = "0.1.0"
