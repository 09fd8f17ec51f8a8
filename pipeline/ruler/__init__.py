"""One ruler for everybody: networks from anywhere, with right and wrong sounds, side by side."""
