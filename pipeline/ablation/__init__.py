"""Tables of runs that differ in a few settings: the paper's, and one's own."""
