"""Lets tests of this folder import the programs that they start as processes, and the runtime that sleeps."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "targets"))
