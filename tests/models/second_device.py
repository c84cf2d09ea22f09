"""An emulated device in the CPU's memory that rejects mixed devices as a GPU does.

    python -m tests.models.second_device [KIND ...]

Trains and predicts with small detectors on it and on the CPU; every difference is an error. Prints
how often the host would wait for a GPU.

Tensors of the device "second" wrap tensors of the CPU. Operations run on these, but raise errors
for mixed devices as torch's CUDA operations do. This detects missing and unnecessary copies without
a GPU. Native operations run their CPU kernels (tests/ops tests those of a GPU); all other code runs
as on a GPU.

A device stays registered for the life of a process: import this module in a separate one.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from unittest import mock

import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import models.register  # noqa: F401
from models.decoder.mixing import AdaptiveMixing
from models.host_numbers import HostNumbers
from models.layers import SparseConv3d, SubMConv3d
from models.ops import _extension, voxel_sets
from scripts.runtime.finite_steps import FiniteOptimWrapper
from tests.models.cases import (
    DETECTOR,
    HEAD,
    POINT_HEAD,
    make_batch,
    merge,
    with_lidar,
)

NAME = "second"
aten = torch.ops.aten
# Operations that may read from one device and write to another.
COPIES = {aten._to_copy.default, aten.copy_.default}
# A GPU takes their indices from the CPU as well.
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._unsafe_index.Tensor, aten._index_put_impl_.default,
}  # fmt: skip

# Operations for which the host waits: it reads a number, the size of a result depends on numbers,
# or a factorisation is checked. Arguments show selections by a mask and copies to the host.
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.unique_dim_consecutive, aten.bincount, aten.histc, aten._linalg_check_errors,
    aten._linalg_det, aten.linalg_lstsq, aten._linalg_eigh, aten._linalg_svd, aten.linalg_eig,
}  # fmt: skip
WAITING_BY_MASK = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# A number of voxels is a shape.
WAITING_NATIVE = {"opus::unique_voxels"}
# Results of native operations that a GPU's kernels leave on the host, by their number.
ON_HOST = {"opus::voxel_sets": 3}

KINDS: dict[str, dict[str, Any]] = dict(
    v1=dict(pts_bbox_head=POINT_HEAD),
    v2=dict(pts_bbox_head=HEAD),
    v2_density_aware=dict(
        pts_bbox_head=merge(HEAD, loss_pts=dict(type="ChamferLoss", density_aware=True))
    ),
    v2_auxiliary=dict(
        pts_bbox_head=HEAD,
        stop_prev_grad=1,
        grid_mask=dict(type="GridMask"),
        img_aux_head=dict(type="FirstHitHead"),
        data_preprocessor=dict(
            type="OPUSDataPreprocessor", distortion=dict(type="PhotometricDistortion")
        ),
    ),
    v2_losses=dict(
        pts_bbox_head=merge(HEAD, loss_lovasz=dict(type="LovaszSoftmaxLoss"), near_negative_m=1.2)
    ),
    v2_seen=dict(
        pts_bbox_head=merge(HEAD, num_seen_queries=4, num_seen_points=12),
        img_aux_head=dict(type="FirstHitHead"),
    ),
    v1_fusion=with_lidar(POINT_HEAD),
    v2_fusion=with_lidar(HEAD),
)


class Module:
    """Module that torch needs for a device."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_autocast_enabled() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None: ...


class OnDevice(torch.Tensor):
    """Tensor of the device; `inner` is its tensor on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        outer: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=inner.requires_grad,
        )
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Create tensors on the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if names_device(kwargs.get("device")):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


class NewTensors(TorchFunctionMode):
    """Create tensors from Python numbers, which torch creates without dispatch modes."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and names_device(kwargs.get("device")):
            return torch.tensor(*args, **dict(kwargs, device="cpu")).to(NAME)
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            kwargs.setdefault("dtype", args[0].dtype)
            where = kwargs.pop("device", NAME)
            return torch.tensor(*args[1:], **kwargs).to(where)
        return func(*args, **kwargs)


def names_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


WAITS: list[str] = []  # names of operations for which a GPU's host would have waited
IS_BUSY = [False]  # whether the device has computed anything since the host last waited


def restart_count() -> None:
    """Forget the waits, and let the device be idle."""
    WAITS.clear()
    IS_BUSY[0] = False


def note_work(func: Any) -> None:
    """Record that the device computes; views and allocations are no work."""
    is_view = any(x.alias_info and not x.alias_info.is_write for x in func._schema.returns)
    if not is_view and "empty" not in func.name() and func not in COPIES:
        IS_BUSY[0] = True


def note_upload(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Record a copy to a busy device: the host waits until it is over, unless told otherwise."""
    if func is aten._to_copy.default:
        is_upload = not isinstance(args[0], OnDevice) and names_device(kwargs.get("device"))
        is_blocking = not kwargs.get("non_blocking", False)
    elif func is aten.copy_.default:
        is_upload = isinstance(args[0], OnDevice) and not isinstance(args[1], OnDevice)
        is_blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
    elif func in INDEXING and isinstance(args[0], OnDevice):
        is_upload = any(isinstance(x, Tensor) and not isinstance(x, OnDevice) for x in args[1])
        is_blocking = True  # torch copies the indices
    else:
        return
    if is_upload and is_blocking and IS_BUSY[0]:
        WAITS.append(f"{func.name()} to the device")


def note_wait(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to_host: bool) -> None:
    """Record an operation with a result that the host waits for."""
    packet = func.overloadpacket
    waits = to_host or packet in WAITING or func.name() in WAITING_NATIVE
    if packet in WAITING_BY_MASK:
        masks = (torch.bool, torch.uint8)
        waits |= any(index is not None and index.dtype in masks for index in args[1])
    if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
        waits = True
    if packet is aten.copy_:
        is_blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        waits |= isinstance(args[1], OnDevice) and not isinstance(args[0], OnDevice) and is_blocking
    if waits or leaves_on_host(func, args, kwargs) is not None:
        WAITS.append(func.name())
    else:
        note_upload(func, args, kwargs)


def leaves_on_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return which result of a native operation is on the host, so that the host has waited."""
    number = ON_HOST.get(func.name())
    capacity = kwargs.get("capacity", args[6] if len(args) > 6 else None)
    return number if capacity is None else None


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the inner tensors after a check of their devices."""
    given = pytree.tree_leaves((args, kwargs))
    ours = [x for x in given if isinstance(x, OnDevice)]
    others = [
        x for x in given if isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.dim() > 0
    ]
    if func in INDEXING:
        others = [x for x in others if not isinstance(args[0], OnDevice)]
    if ours and others and func not in COPIES:
        shapes = [list(x.shape) for x in (*ours, *others)]
        raise RuntimeError(f"{func} mixes the devices {NAME} and cpu: shapes {shapes}")
    target = kwargs.get("device")
    from_device = bool(ours) and target is not None and not names_device(target)
    from_device &= not kwargs.get("non_blocking", False)
    before = len(WAITS)
    note_wait(func, args, kwargs, to_host=from_device)
    if len(WAITS) > before:
        IS_BUSY[0] = False
    note_work(func)
    on_host = leaves_on_host(func, args, kwargs)
    if target is not None:
        kwargs = dict(kwargs, device=torch.device("cpu"))
    inner_args, inner_kwargs = pytree.tree_map_only(OnDevice, lambda x: x.inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if target is not None and not names_device(target):
        return out  # copied to the CPU
    if func is aten.copy_.default and not isinstance(args[0], OnDevice):
        return args[0]
    if on_host is not None:
        return tuple(
            part if i == on_host else pytree.tree_map_only(Tensor, OnDevice, part)
            for i, part in enumerate(out)
        )
    out = pytree.tree_map_only(Tensor, OnDevice, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def count_waits_for_numbers() -> None:
    """Counts waits for numbers that were sent ahead: one where there was none since."""
    start = HostNumbers.__init__

    def init(self: Any, numbers: Tensor) -> None:
        start(self, numbers)
        self.waits_before = len(WAITS) if isinstance(numbers, OnDevice) else None

    def wait(self: Any) -> None:
        if self.waits_before == len(WAITS):
            WAITS.append("HostNumbers.read")

    HostNumbers.__init__ = init  # type: ignore[method-assign]
    HostNumbers._wait = wait  # type: ignore[method-assign]


def register() -> None:
    """Register the device with torch, for the life of this process."""
    count_waits_for_numbers()
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module)
    chosen = _extension.runs_natively

    def runs_natively(name: str, tensor: Tensor, on_gpu: Any = None) -> bool:
        return tensor.device.type == NAME or chosen(name, tensor, on_gpu)

    for module in list(sys.modules.values()):
        if getattr(module, "runs_natively", None) is chosen:
            module.runs_natively = runs_natively  # type: ignore[attr-defined]


def results(kind: str, device: str) -> dict[str, Any]:
    """Return losses, parameters after a step, predictions and waits of a detector."""
    torch.manual_seed(0)
    model = MODELS.build(merge(DETECTOR, **KINDS[kind]))
    for name, parameter in model.named_parameters():
        if name.endswith(("sampling_offset.weight", "parameter_generator.weight")):
            torch.nn.init.normal_(parameter, std=0.01)  # they start at zero
    model = model.to(device).train()
    wrapper = FiniteOptimWrapper(
        torch.optim.AdamW(model.parameters(), lr=1e-3), clip_grad=dict(max_norm=35, norm_type=2)
    )
    torch.manual_seed(1)
    restart_count()
    found: dict[str, Any] = dict(model.train_step(make_batch(0, lidar=model.has_lidar), wrapper))
    for name, value in found.items():  # as MMEngine's hook does in every iteration
        MessageHub.get_current_instance().update_scalar(f"train/{name}", value)
    assert all(value.device.type == "cpu" for value in found.values())
    waits = {"training": list(WAITS)}
    found |= {f"step {name}": value for name, value in model.state_dict().items()}
    restart_count()
    elsewhere = [
        name
        for name, value in found.items()
        if name.startswith("step ") and value.device.type != device
    ]
    assert not elsewhere, f"not on {device}: {elsewhere}"
    with torch.no_grad():
        model.eval()
        # The first one determines the usual number of voxels.
        for phase, seeds in (("first prediction", [2]), ("prediction", [3])):
            restart_count()
            samples = model.test_step(make_batch(*seeds, lidar=model.has_lidar))
            waits[phase] = list(WAITS)
            for i, sample in enumerate(samples):
                parts = {key: value for key, value in sample.items() if key.startswith("pred_")}
                assert all(value.device.type == "cpu" for value in parts.values())
                found |= {f"{phase} {i} {key}": value for key, value in parts.items()}
        samples = model.test_step(make_batch(0, 1, 2, lidar=model.has_lidar))  # needs more room
        for i, sample in enumerate(samples):
            parts = {key: value for key, value in sample.items() if key.startswith("pred_")}
            found |= {f"batch {i} {key}": value for key, value in parts.items()}
    return {name: value.detach().cpu() for name, value in found.items()} | {"waits": waits}


def check(kind: str) -> None:
    """Compare a kind of detector on the device and on the CPU.

    The CPU computes sparse convolutions and adaptive mixing as the device does, so that results can
    be compared bitwise. test_sparse_conv.py and test_precision.py compare the two methods.
    """
    with (
        mock.patch.object(AdaptiveMixing, "forward", AdaptiveMixing._mix_together),
        mock.patch.object(SubMConv3d, "_forward_native", SubMConv3d._forward_gathered),
        mock.patch.object(SparseConv3d, "_forward_native", SparseConv3d._forward_gathered),
        mock.patch.dict(voxel_sets._GATHERED_BYTES, cpu=voxel_sets._GATHERED_BYTES_ON_DEVICE),
    ):
        expected = results(kind, "cpu")
    with SecondDevice(), NewTensors():
        found = results(kind, NAME)
    waits = found.pop("waits")
    expected.pop("waits")
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different, (len(different), different[:5])
    told = ", ".join(f"{len(names)} in {phase}" for phase, names in waits.items())
    if os.environ.get("OPUS_TELL_WAITS"):
        print(waits)
    print(f"{kind}: {len(expected)} tensors are equal; waits: {told}")


def check_strictness() -> None:
    """Check that the device rejects what a GPU rejects."""
    with SecondDevice(), NewTensors():
        here, there = torch.ones(3), torch.ones(3, device=NAME)
        assert (there + 1 + torch.tensor(2.0)).cpu().tolist() == [4, 4, 4]
        assert there[torch.tensor([0, 1])].device.type == NAME
        for mixing in (
            lambda: here + there,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: there.new_tensor([1.0, 2.0, 3.0]) * here,
            lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
        ):
            try:
                mixing()
            except RuntimeError as error:
                assert "mixes the devices" in str(error), error
            else:
                raise AssertionError("devices were mixed")


def check_count() -> None:
    """Check which operations on a busy device count as a wait of the host."""
    waiting = {
        "number": lambda x: x[0].item(),
        "copy to the host": lambda x: x.cpu(),
        "copy to the device": lambda x: torch.ones(3).to(NAME),
        "new tensor": lambda x: x.new_tensor([1.0]),
        "indices of the host": lambda x: x[torch.tensor([1])],
        "nonzero": lambda x: x.nonzero(),
        "mask": lambda x: x[x > 0],
        "inverse": lambda x: torch.linalg.inv(x.diag()),
    }
    going_on = {
        "arithmetic": lambda x: (x + 1).sum() * torch.tensor(2.0),
        "asynchronous copy to the host": lambda x: x.to("cpu", non_blocking=True),
        "asynchronous copy to the device": lambda x: torch.ones(3).to(NAME, non_blocking=True),
        "indices": lambda x: x[x.long()[:1] - 1],
        "unchecked inverse": lambda x: torch.linalg.inv_ex(x.diag()),
    }
    with SecondDevice(), NewTensors():
        for cases, expected in ((waiting, 1), (going_on, 0)):
            for name, function in cases.items():
                x = torch.ones(3, device=NAME) + 1
                WAITS.clear()
                function(x)
                assert len(WAITS) == expected, (name, WAITS)
        restart_count()
        torch.ones(3).to(NAME)
        assert not WAITS, "the device is idle"


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    register()
    check_strictness()
    check_count()
    for kind in sys.argv[1:] or KINDS:
        check(kind)


if __name__ == "__main__":
    main()
