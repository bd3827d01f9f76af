"""A backend of one's own: with one line in the registry, whole runs are planned and scored by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from strata.kernels.prefix_attention import registry
from strata.kernels.prefix_attention.backend import AttentionRequest, AttentionSettings, TileSize
from strata.kernels.prefix_attention.reference import reference_attention
from strata.kernels.prefix_attention.tile import Tile, TileCut, gather_keys

SCRATCH_BYTES = 3 << 20


@dataclass
class ExactBackend:
    """The oracle, a tile at a time in float64; it remembers what it was asked."""

    name: str = "exact"
    cut: TileCut = field(default_factory=lambda: TileCut(max_rows=5, joins=True))
    sizes: list[TileSize] = field(default_factory=list)
    planned: set[AttentionRequest] = field(default_factory=set)
    settings: set[AttentionSettings] = field(default_factory=set)
    rows: list[int] = field(default_factory=list)

    def takes(self, request: AttentionRequest) -> bool:
        return request.device_type == "cpu" and not request.needs_gradients

    def scratch_bytes(self, size: TileSize, request: AttentionRequest) -> int:
        self.sizes.append(size)
        self.planned.add(request)
        return SCRATCH_BYTES

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        self.settings.add(settings)
        output = query.new_full((query.shape[1], *query.shape[::2]), float("nan"))
        for tile in tiles:
            self.rows.append(tile.num_rows)
            visible = torch.ones(tile.num_rows, tile.num_keys, dtype=torch.bool)
            if tile.num_masked:
                visible[:, tile.num_unmasked :] = tile.visible_mask(query.device)
            part = query[:, slice(*tile.rows)]
            key, value = gather_keys(keys, tile), gather_keys(values, tile)
            output[slice(*tile.rows)] = reference_attention(part, key, value, visible, settings).to(query)
        return output


def add(backend: ExactBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a backend before those that the registry has; `monkeypatch` takes it away again."""
    monkeypatch.setattr(registry, "BACKENDS", [backend, *registry.BACKENDS])


@pytest.mark.parametrize(("family", "softcap"), [("llama-gqa", None), ("mistral", None), ("gemma2", 5.0)])
def test_a_new_backend_scores_as_the_usual_one(family, softcap, checkpoint, score, monkeypatch):
    flags = {"model": checkpoint(family), "head": "letters", "debias": "rotate", "micro_batch_tokens": 24}
    usual, backend = score(**flags), ExactBackend()
    add(backend, monkeypatch)
    run = score(**flags)
    for row, usual_row in zip(run.scores, usual.scores, strict=True):
        np.testing.assert_allclose(row.scores, usual_row.scores, rtol=0, atol=1e-5)
    # It computed the run, on tiles of the height that it wants.
    assert sum(backend.rows) >= run.record["measured"]["tokens_computed"]
    assert max(backend.rows) == backend.cut.max_rows
    assert {settings.softcap for settings in backend.settings} == {softcap}


def test_the_plan_asks_the_backend_for_its_memory(checkpoint, score, monkeypatch):
    flags = {"model": checkpoint("gemma2"), "head": "yes-no", "micro_batch_tokens": 24}
    backend = ExactBackend()
    add(backend, monkeypatch)
    run = score(**flags)
    assert {(asked.device_type, asked.has_softcap) for asked in backend.planned} == {("cpu", True)}
    assert {size.rows for size in backend.sizes} == {backend.cut.max_rows}
    monkeypatch.setattr(backend, "scratch_bytes", lambda size, request: 5 * SCRATCH_BYTES)
    larger = score(**flags)
    growth = larger.record["plan"]["memory_bytes"] - run.record["plan"]["memory_bytes"]
    assert growth == 4 * SCRATCH_BYTES
