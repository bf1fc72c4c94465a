# SPDX-License-Identifier: Apache-2.0
"""A device for tests: its tensors lie on the processor, mix with no others, and count how often the host waits.

PyTorch takes a backend written in Python (`privateuse1`). Tensors are wrappers; each operation unwraps them, computes
on the processor and wraps the results. The host waits where it looks at values: `.item()` and `bool()`, `nonzero` and
what is built on it (boolean indexing), `tolist` and copies to the processor.
"""

from collections import Counter

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "standin"
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "bool",
}
COPIES = (aten._to_copy.default, aten.copy_.default)
waits: Counter = Counter()


class StandInTensor(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0), requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __repr__(self) -> str:
        return f"StandInTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def is_ours(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def compute(function, args: tuple, kwargs: dict):
    """Run an operation on the processor; its results are of the device unless the host asked for them."""
    flat = pytree.tree_leaves((args, kwargs))
    tensors = [value for value in flat if torch.is_tensor(value)]
    ours = [tensor for tensor in tensors if isinstance(tensor, StandInTensor)]
    asked = kwargs.get("device")
    to_host = function is aten._to_copy.default and asked is not None and not is_ours(asked)
    if function is aten.copy_.default:
        to_host = not isinstance(args[0], StandInTensor)
    elif function not in COPIES:
        strangers = [tensor for tensor in tensors if not isinstance(tensor, StandInTensor) and tensor.dim()]
        if ours and strangers:
            raise RuntimeError(
                f"{function} mixes devices: {[tuple(tensor.shape) for tensor in strangers]} on the host"
            )
    if ours and (to_host or function in WAITS):
        waits[WAITS.get(function, "copy to host")] += 1
    indices = args[1] if function in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) else ()
    if any(index is not None and index.dtype == torch.bool for index in indices):
        waits["boolean index"] += 1
    if is_ours(asked):
        kwargs = kwargs | {"device": torch.device("cpu")}
    unwrapped_args, unwrapped = pytree.tree_map_only(StandInTensor, lambda tensor: tensor.inner, (args, kwargs))
    result = function(*unwrapped_args, **unwrapped)
    if to_host or not (ours or is_ours(asked)):
        return args[0] if function is aten.copy_.default else result
    written = {id(tensor.inner): tensor for tensor in ours}
    return pytree.tree_map_only(
        torch.Tensor, lambda t: written[id(t)] if id(t) in written else StandInTensor(t), result
    )


class StandInDevice(TorchDispatchMode):
    """While it is entered, `device="standin"` works in factories and in `.to`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def set_up() -> None:
    """Tell PyTorch of the device; once per process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
        torch._C._set_only_lift_cpu_tensors(True)
