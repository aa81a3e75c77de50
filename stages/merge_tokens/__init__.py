"""merge_tokens: patch tokens that are alike become one, block by block."""
