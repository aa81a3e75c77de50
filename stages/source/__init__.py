"""The source stage: the user's trained model becomes a model folder."""
