"""Small programs with a race, and the same without: the checker tells them apart, whatever the timing."""

from __future__ import annotations

import threading

import pytest
import torch

CARD = torch.device("cuda:0")
OTHER = torch.device("cuda:1")


@pytest.fixture
def raced(accounts):
    """`raced(program, ordered=...)` -> the kinds of races that it has; they do not fail the test."""

    def run(program, *, ordered: bool) -> set[str]:
        accounts.races.clear()
        program(ordered)
        kinds = {race.kind for race in accounts.races}
        accounts.races.clear()
        return kinds

    return run


def other_stream_reads(ordered: bool) -> None:
    written = torch.zeros(8, device=CARD)
    side = torch.cuda.Stream(CARD)
    if ordered:
        side.wait_stream(torch.cuda.current_stream(CARD))
    else:
        written += 1
    with torch.cuda.stream(side):
        read = written + 1
    torch.cuda.synchronize(CARD)
    del read


def pinned_buffer_is_refilled(ordered: bool) -> None:
    buffer = torch.zeros(8, pin_memory=True)
    copied = torch.empty(8, device=CARD).copy_(buffer, non_blocking=True)
    event = torch.cuda.current_stream(CARD).record_event()
    if ordered:
        event.synchronize()
    buffer.fill_(1)
    del copied


def registered_buffer_is_refilled(ordered: bool) -> None:
    buffer = torch.zeros(8)
    assert torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 1) == 0
    copied = buffer.to(CARD, non_blocking=True)
    if ordered:
        torch.cuda.current_stream(CARD).synchronize()
    buffer.fill_(1)
    assert torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr()) == 0
    del copied


def memory_is_freed_in_use(ordered: bool) -> None:
    side = torch.cuda.Stream(CARD)
    used = torch.zeros(8, device=CARD)
    side.wait_stream(torch.cuda.current_stream(CARD))
    with torch.cuda.stream(side):
        result = used + 1
    if ordered:
        used.record_stream(side)
    del used
    torch.cuda.synchronize(CARD)
    del result


def threads_share_a_stream_or_not(ordered: bool) -> None:
    shared = torch.zeros(8, device=CARD)
    stream = torch.cuda.current_stream(CARD) if ordered else torch.cuda.Stream(CARD)
    torch.cuda.synchronize(CARD)

    def work() -> None:
        with torch.cuda.stream(stream):
            shared.add_(1)

    thread = threading.Thread(target=work)
    thread.start()
    shared.add_(1)
    thread.join()
    torch.cuda.synchronize(CARD)


PROGRAMS = (
    other_stream_reads,
    pinned_buffer_is_refilled,
    registered_buffer_is_refilled,
    memory_is_freed_in_use,
    threads_share_a_stream_or_not,
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_missing_order_is_found_and_a_present_one_is_not_blamed(program, raced):
    assert raced(program, ordered=True) == set()
    assert raced(program, ordered=False) != set()


def test_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(2, device=CARD) + torch.zeros(2, device=OTHER)
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(2, device=CARD) + torch.zeros(2)


def test_values_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 16, 16, generator=generator)
    product = (left.to(CARD) @ right.to(CARD)).softmax(-1).cpu()
    torch.testing.assert_close(product, (left @ right).softmax(-1))
    assert torch.tensor([1.0, 2.0], device=CARD).sum().item() == 3.0


def test_what_torch_pins_is_rounded_up_and_what_is_registered_is_not(accounts):
    before = accounts.live_bytes["pinned"]
    pinned = torch.empty((1 << 20) + 1, dtype=torch.uint8, pin_memory=True)
    assert accounts.live_bytes["pinned"] - before == 1 << 21
    assert pinned.is_pinned()
    plain = torch.empty((1 << 20) + 1, dtype=torch.uint8)
    torch.cuda.cudart().cudaHostRegister(plain.data_ptr(), plain.nbytes, 1)
    assert accounts.live_bytes["pinned"] - before == (1 << 21) + (1 << 20) + 4096
    torch.cuda.cudart().cudaHostUnregister(plain.data_ptr())


def test_waits_and_memory_are_counted(accounts):
    before = accounts.live_bytes["cuda:0"]
    tensor = torch.ones(1024, device=CARD)
    assert accounts.live_bytes["cuda:0"] - before == 4096
    accounts.waits.clear()
    assert tensor.sum().item() == 1024
    tensor.cpu()
    torch.ones(4).to(CARD)
    assert sorted(one.what for one in accounts.waits) == ["Tensor.item", "copy to device", "copy to host"]
    view = tensor[3:]
    del tensor
    assert accounts.live_bytes["cuda:0"] > before
    del view
    assert accounts.live_bytes["cuda:0"] == before


@pytest.mark.parametrize("kernel", ["efficient", "flash"])
def test_fused_attention_is_the_definition(kernel):
    """Two sequences in a row, causal from the bottom right. Independent check: one query at a time."""
    lengths = ((3, 5), (4, 4))
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(7, 4, 8, generator=generator)
    key, value = torch.randn(2, 9, 4, 8, generator=generator)
    starts = [torch.tensor([0, 3, 7], dtype=torch.int32), torch.tensor([0, 5, 9], dtype=torch.int32)]
    given = [one.to(CARD) for one in (query, key, value)]
    cu_seqlens = [one.to(CARD) for one in starts]
    if kernel == "efficient":
        batched = [one[None] for one in given]
        found = torch.ops.aten._efficient_attention_forward(*batched, None, *cu_seqlens, 4, 5, 0.0, 2)[0][0]
    else:
        found = torch.ops.aten._flash_attention_forward(*given, *cu_seqlens, 4, 5, 0.0, True, False)[0]
    expected = torch.empty_like(query)
    first_row = first_key = 0
    for rows, keys in lengths:
        for row in range(rows):
            seen = slice(first_key, first_key + keys - rows + row + 1)
            for head in range(4):
                scores = key[seen, head] @ query[first_row + row, head] / 8**0.5
                expected[first_row + row, head] = scores.softmax(0) @ value[seen, head]
        first_row, first_key = first_row + rows, first_key + keys
    torch.testing.assert_close(found.cpu(), expected)
