"""The store: finished artifacts by key, complete or absent, safe with several processes at once.

    entries/<key>/            an artifact: its files and manifest.json, written last; moved here by one rename
    work/<key>/output-*       what is being written; owned by whoever holds the lock of the key
    work/<key>/scratch        a stage's own notes for resuming; survives an interruption
    work/<key>/holder.json    who holds the lock of the key
    locks/<key>.lock          held with flock: the kernel releases it when its holder ends
    records/<kind>/<key>.json small results: validations, decisions, tables
    broken/                   entries that did not verify, set aside

Two locks keep things apart: the lock of a key (one writer), and a lease on an entry's folder (any number of readers),
which the collector respects. The folder's modification time is the time of last use.
"""

from pipeline.store.contents import Collected, EntryInfo, Problem, Removal
from pipeline.store.locks import Holder
from pipeline.store.store import Store, Writing, default_store_root

__all__ = ["Collected", "EntryInfo", "Holder", "Problem", "Removal", "Store", "Writing", "default_store_root"]
