"""Memory of the simulated machine: who accessed which bytes, and whether that was in order. Knows no streams.

A block is an allocation on a device, or pinned memory of the host. Ordinary host memory is not followed.
"""

from __future__ import annotations

import weakref

import torch

from .accounts import ACCOUNTS, Race, place
from .clocks import LOCK, Actor, this_thread

Span = tuple[int, int]
PAGE_BYTES = 4096


class Block:
    """One allocation, and the accesses that later ones have to be ordered after.

    Args:
        account: which memory it counts as: "cuda:0", or "pinned".
        home: the stream it was allocated on; None on the host.
        num_bytes: that are taken.
    """

    def __init__(self, account: str, home: Actor | None, num_bytes: int) -> None:
        self.account, self.home, self.num_bytes = account, home, num_bytes
        self.allocated_at = place()
        self.recorded: set[Actor] = set()
        self._accesses: dict[tuple[Actor, bool, Span], tuple[int, str]] = {}
        ACCOUNTS.take(account, num_bytes)

    def __del__(self) -> None:
        ACCOUNTS.give_back(self.account, self.num_bytes)
        if self.home is not None:
            self._check_free(self.home)

    def access(self, who: Actor, span: Span, *, is_write: bool) -> None:
        """Checks an access against those before; those that it is ordered after and covers are forgotten."""
        if span[0] == span[1]:
            return
        with LOCK:
            ACCOUNTS.accesses += 1
            here = place()
            for key, (epoch, elsewhere) in list(self._accesses.items()):
                other, wrote, (low, high) = key
                if high <= span[0] or span[1] <= low:
                    continue
                is_ordered = other is who or who.has_seen(other, epoch)
                if not is_ordered and (is_write or wrote):
                    kind = f"{_verb(is_write)} not ordered after {_verb(wrote)}"
                    self._report(kind, f"{other} at {elsewhere}", f"{who} at {here}")
                elif is_ordered and is_write and span[0] <= low and high <= span[1]:
                    del self._accesses[key]
            self._accesses[who, is_write, span] = (who.epoch, here)

    def _check_free(self, home: Actor) -> None:
        """The caching allocator's rule: memory goes to its stream's next allocation at once."""
        with LOCK:
            thread = this_thread()
            for (actor, _, _), (epoch, where) in self._accesses.items():
                is_ordered = home.has_seen(actor, epoch) or thread.has_seen(actor, epoch)
                if actor is not home and actor not in self.recorded and not is_ordered:
                    self._report("freed while another stream may use it", f"{actor} at {where}", f"{thread}")

    def _report(self, kind: str, first: str, second: str) -> None:
        ACCOUNTS.races[Race(kind, first, second, self.allocated_at)] += 1


def _verb(is_write: bool) -> str:
    return "write" if is_write else "read"


_blocks: dict[int, weakref.ref[Block]] = {}
"""Blocks of device memory by the address of the storage object that plays it."""

_pinned: dict[int, Block] = {}
"""Pinned memory by its address."""


def block_of(values: torch.Tensor) -> Block | None:
    """The block of device memory that a tensor's values lie in."""
    found = _blocks.get(values.untyped_storage()._cdata)
    return None if found is None else found()


def make_block(values: torch.Tensor, home: Actor, device: torch.device) -> Block:
    """A block of device memory for a tensor's storage."""
    storage = values.untyped_storage()
    block = Block(str(device), home, storage.nbytes())
    _blocks[storage._cdata] = weakref.ref(block)
    return block


def pin(values: torch.Tensor) -> None:
    """Makes a tensor's memory pinned, as torch's allocator does it: rounded up to a power of two."""
    storage = values.untyped_storage()
    if storage.nbytes():
        _pinned[storage.data_ptr()] = Block("pinned", None, 1 << (storage.nbytes() - 1).bit_length())
        weakref.finalize(storage, _pinned.pop, storage.data_ptr(), None)


def register_pinned(address: int, num_bytes: int) -> bool:
    """Pins memory where it lies; False when it is pinned already."""
    if address in _pinned:
        return False
    _pinned[address] = Block("pinned", None, -(-num_bytes // PAGE_BYTES) * PAGE_BYTES)
    return True


def unregister_pinned(address: int) -> bool:
    """Ends it; False when the memory was not pinned."""
    return _pinned.pop(address, None) is not None


def pinned_block(values: torch.Tensor) -> Block | None:
    """The pinned memory that a host tensor lies in."""
    return _pinned.get(values.untyped_storage().data_ptr()) if _pinned else None


def span_of(values: torch.Tensor) -> Span:
    """The bytes [first, last) of its storage that a tensor reaches."""
    if values.numel() == 0:
        return (0, 0)
    reach = sum((size - 1) * step for size, step in zip(values.shape, values.stride(), strict=True))
    first = values.storage_offset() * values.element_size()
    return first, first + (reach + 1) * values.element_size()


def host_access(values: torch.Tensor, *, is_write: bool) -> None:
    """The calling thread accesses a host tensor; only pinned memory is followed."""
    block = pinned_block(values)
    if block is not None:
        block.access(this_thread(), span_of(values), is_write=is_write)
