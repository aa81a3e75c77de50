"""The history: an append-only database of what was measured, and a folder of what was measured in full.

tables.py   the tables, and triggers that refuse to change a row
history.py  write and read rows
objects.py  raw samples, answers and engines by the digest of their content
"""

from pipeline.nightly.history.history import CellRow, HistoryStore, Run, open_history
from pipeline.nightly.history.objects import Objects

__all__ = ["CellRow", "HistoryStore", "Objects", "Run", "open_history"]
