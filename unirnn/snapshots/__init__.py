"""Snapshots: a spec and its weights, free of any framework, and how they come out of objects and go back.

`unirnn.snapshot` and `unirnn.load_weights` are in `unirnn.snapshots.objects`.
"""

from .snapshot import Snapshot
from .stacking import stack, unstack

__all__ = ["Snapshot", "stack", "unstack"]
