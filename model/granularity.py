"""Semantic-SAM's levels of granularity, for the network and for whoever plans a store without it.

Imports nothing, so that a process which only names its settings needs no PyTorch.
"""

TOKEN_OF_LEVEL = {1: 3, 2: 2, 3: 0, 4: 4, 5: 1, 6: 5}
"""Level that a caller asks for -> the network's own token, as the published code maps them: levels
look swapped to whoever sees only one of the two numbers, so the store records both."""
