"""A trained network on anybody's own videos: what is segmented, when, and how it is shown."""
