"""prune: attention and MLPs cut to shapes of their own in one sweep, each repaired where it was cut."""
