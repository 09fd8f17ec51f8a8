"""A lean trainer over a finished store: loader, augment, trainer, checkpoint, presets."""
