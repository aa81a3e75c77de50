"""prune_width: a narrower residual stream, and all layers that read or write it cut consistently."""
