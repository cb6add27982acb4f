"""Snapshots: a spec and its weights, free of any framework; taken from objects, and written back into them.

`unirnn.snapshot` and `unirnn.load_weights` are in `unirnn.snapshots.objects`.
"""

from .snapshot import Snapshot
from .stacking import stack, unstack

__all__ = ["Snapshot", "stack", "unstack"]
