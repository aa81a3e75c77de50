"""prune_mlp: fewer neurons in every MLP, and the layer behind them fitted again."""
