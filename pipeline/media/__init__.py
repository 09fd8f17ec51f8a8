"""Frames, labels and sound from disk, block by block; errors name the file."""
