"""Transfer of batches to the GPU: order, content, and time of the next fetch."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmengine.structures import BaseDataElement

from scripts.runtime import device_prefetch
from scripts.runtime.device_prefetch import map_tensors, prefetched, tensors_of

Pair = namedtuple("Pair", "first second")


def make_batch(number: int, device: str = "cpu") -> dict[str, Any]:
    element = BaseDataElement(metainfo=dict(token=f"t{number}", pose=torch.zeros(2)))
    element.set_data(dict(grid=torch.full((2, 3), number, device=device)))
    images = torch.full((4, 3, 8, 8), number, dtype=torch.uint8, device=device)
    pair = Pair(torch.tensor(number, device=device), "text")
    return dict(inputs=dict(img=[images], none=None), data_samples=[element], pair=pair)


def test_map_tensors_reaches_all_and_changes_nothing_else() -> None:
    batch = make_batch(3)
    doubled = map_tensors(batch, lambda t: t * 2)
    assert [t.max().item() for t in tensors_of(doubled)] == [6, 6, 6]
    assert [t.max().item() for t in tensors_of(batch)] == [3, 3, 3]
    assert doubled["data_samples"][0].token == "t3" and doubled["inputs"]["none"] is None
    assert type(doubled["pair"]) is Pair and doubled["pair"].second == "text"


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_on_a_cpu_batches_pass_as_they_are(device: torch.device | None) -> None:
    batches = [make_batch(i) for i in range(3)]
    passed = list(prefetched(batches, device, ahead=True))
    assert all(a is b for a, b in zip(passed, batches, strict=True))


def test_one_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next copy starts before the previous batch is returned; no batch is lost."""
    events: list[str] = []

    def batches() -> Iterator[int]:
        for i in range(3):
            events.append(f"load {i}")
            yield i

    def start(batch: int) -> Any:
        events.append(f"start {batch}")
        return lambda: events.append(f"finish {batch}") or batch

    for batch in device_prefetch._one_ahead(batches(), start):
        events.append(f"step {batch}")
    assert events == [
        "load 0", "start 0", "load 1", "start 1", "finish 0", "step 0",
        "load 2", "start 2", "finish 1", "step 1", "finish 2", "step 2",
    ]  # fmt: skip
    assert list(device_prefetch._one_ahead([], start)) == []


def test_an_error_while_looking_ahead_is_raised() -> None:
    def batches() -> Iterator[int]:
        yield 0
        raise RuntimeError("broken")

    ahead = device_prefetch._one_ahead(batches(), lambda batch: lambda: batch)
    with pytest.raises(RuntimeError, match="broken"):
        list(ahead)


@pytest.mark.cuda
@pytest.mark.parametrize("ahead", [False, True])
def test_content_arrives_on_the_gpu(ahead: bool) -> None:
    """The step takes long, so that memory released too early would be detected."""
    batches = (map_tensors(make_batch(i), lambda t: t.pin_memory()) for i in range(12))
    weights, sums = torch.ones(2048, 2048, device="cuda"), []
    for batch in prefetched(batches, torch.device("cuda", 0), ahead=ahead):
        for _ in range(5):
            weights = weights @ weights / 2048
        tensors = list(tensors_of(batch))
        assert all(tensor.is_cuda for tensor in tensors)
        sums.append(torch.stack([tensor.double().mean() for tensor in tensors]))
        del batch, tensors
    expected = torch.arange(12.0).double().unsqueeze(1).expand(12, 3)
    assert torch.equal(torch.stack(sums).cpu(), expected)
