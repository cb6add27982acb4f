"""Snapshots: a spec and its weights, free of any framework.

`unirnn.snapshot` and `unirnn.load_weights`, which take them from objects and write them back, are in `unirnn.objects`.
"""

from .snapshot import Snapshot
from .stacking import stack, unstack

__all__ = ["Snapshot", "stack", "unstack"]
