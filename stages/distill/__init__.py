"""Bring a pruned model back to what its source model answers."""
