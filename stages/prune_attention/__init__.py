"""prune_attention: fewer or narrower heads in every attention, and the layer behind them fitted again."""
