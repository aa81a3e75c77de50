"""Take whole attentions, or whole blocks, out of a model."""
