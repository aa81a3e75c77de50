"""How many processes a launcher started. Light: one environment variable."""

import os


def launched() -> int:
    """Return the number that `accelerate launch` and `torchrun` write to WORLD_SIZE; 1 without a launcher."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        return 1
