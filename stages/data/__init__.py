"""Images by role: where they come from, how they are decoded, that roles do not overlap."""
