"""What the model takes from each framework besides recurrent layers, arithmetic and indexing."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unirnn import registry

__all__ = ["Framework", "mindspore", "numpy", "torch"]


@dataclass(frozen=True)
class Framework:
    """The functions of a framework.

    Parameters
    ----------
    title
        Its name, as its makers write it.
    backend
        Its name in unirnn.
    tensor
        Makes an array of NumPy an array of the framework.
    stack
        Puts a list of arrays into one, on a new first axis.
    softmax, log_softmax
        Over the last axis.
    """

    title: str
    backend: str
    tensor: Callable[[Any], Any]
    stack: Callable[[list[Any]], Any]
    softmax: Callable[[Any], Any]
    log_softmax: Callable[[Any], Any]


def torch() -> Framework:
    import torch

    return Framework(
        title="PyTorch",
        backend="torch",
        tensor=torch.tensor,
        stack=torch.stack,
        softmax=lambda x: torch.softmax(x, -1),
        log_softmax=lambda x: torch.log_softmax(x, -1),
    )


def mindspore() -> Framework:
    """MindSpore, if it is installed; else this raises a `MissingBackendError`."""
    # MindSpore warns at length of each kind of device that this machine lacks.
    os.environ.setdefault("GLOG_v", "3")
    registry.load("mindspore")
    import mindspore
    from mindspore import ops

    # By default MindSpore gives each operator to threads that wait for work by spinning. On few cores they take the
    # time that the work itself needs.
    mindspore.runtime.launch_blocking()
    return Framework(
        title="MindSpore",
        backend="mindspore",
        tensor=mindspore.Tensor,
        stack=ops.stack,
        softmax=lambda x: ops.softmax(x, -1),
        log_softmax=lambda x: ops.log_softmax(x, -1),
    )


def numpy() -> Framework:
    def log_softmax(x: Any) -> Any:
        shifted = x - x.max(axis=-1, keepdims=True)  # no exponential overflows
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    return Framework(
        title="NumPy",
        backend="numpy",
        tensor=np.asarray,
        stack=np.stack,
        softmax=lambda x: np.exp(log_softmax(x)),
        log_softmax=log_softmax,
    )
