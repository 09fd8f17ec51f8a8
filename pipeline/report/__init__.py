"""What a store and a run look like: gathered, drawn, and put on one page or in one picture."""
