"""Documents as data: pages, their fenced blocks, their sections."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for blocks.py
sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "report"))  # for browser.py
