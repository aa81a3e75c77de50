"""Fine-tune the source model on the user's labelled images."""
