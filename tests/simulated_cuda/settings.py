"""What kind of machine is simulated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MachineSettings:
    """Cards, and how the host treats them.

    Attributes:
        devices: how many cards.
        capability: of each.
        total_bytes: of each card's memory.
        uploads_wait: copies from pageable memory order the host after the device, as they do on a card. Off,
            such waits hide no missing one.
        peers_are_broken: copies from card to card leave zeros.
        refuses_registration: memory cannot be pinned where it lies.
    """

    devices: int = 2
    capability: tuple[int, int] = (7, 5)
    total_bytes: int = 15 << 30
    uploads_wait: bool = True
    peers_are_broken: bool = False
    refuses_registration: bool = False


SETTINGS = MachineSettings()
