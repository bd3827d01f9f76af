"""Trees on which a card's attention is compared with its definition in float64. Knows no model.

Shape suffixes: T tokens of a tree, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from strata.engine.tree.intervals import indexes
from strata.engine.tree.lanes import split_lanes
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.tree.tiles import tile_finder
from strata.kernels.prefix_attention.backend import AttentionRequest, AttentionSettings, Backend
from strata.kernels.prefix_attention.reference import reference_attention
from strata.kernels.prefix_attention.registry import choose_backend

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 2, 64


T4 = (7, 5)


def attention_errors(dtype: torch.dtype, device: torch.device, *, tiny: bool) -> dict[str, float]:
    """Norm of the difference from float64 over that of the result, by backend and case.

    With what this card runs and with what a T4 would: cards to come can be tried by those at hand.
    """
    capabilities = [torch.cuda.get_device_capability(device)]
    if dtype != torch.bfloat16:
        capabilities.append(T4)
    backends = {}
    for capability in capabilities:
        request = AttentionRequest(
            device_type=device.type, dtype=dtype, head_dim=HEAD_DIM, capability=capability
        )
        backend = choose_backend(request)
        backends[backend.name] = backend
    errors = {}
    for name, tree in _trees(tiny=tiny).items():
        for way, error in _errors(tree, dtype, device, backends.values()).items():
            errors[f"{way}, {name}"] = error
    return errors


def _trees(*, tiny: bool) -> dict[str, PrefixTree]:
    long = 96 if tiny else 8192
    return {
        "one token": _tree(1, []),
        "an empty branch": _tree(33, [0, 5]),
        "26 options of a token": _tree(129, [1] * 26),
        "questions of a template": _tree(30, [300, 45, 45, 45], num_questions=3),
        f"a prefix of {long}": _tree(long, [45] * 5),
    }


def _tree(num_shared: int, branches: Sequence[int], num_questions: int = 1) -> PrefixTree:
    """Branches of some tokens below shared ones, the first of which are shared by all questions."""
    new = iter(range(1, 1 << 20))
    shared = [next(new) for _ in range(num_shared)]
    paths = []
    for _ in range(num_questions):
        own = [*shared, *([next(new)] if num_questions > 1 else [])]
        paths += [[*own, *(next(new) for _ in range(size))] for size in branches] or [own]
    return build_prefix_tree([np.asarray(path, np.int32) for path in paths])


def _errors(
    tree: PrefixTree, dtype: torch.dtype, device: torch.device, backends: Iterable[Backend]
) -> dict[str, float]:
    num_tokens = tree.num_tokens
    (lane,) = split_lanes(tree, np.arange(num_tokens), 1, num_tokens)
    (batch,) = lane.micro_batches
    generator = torch.Generator().manual_seed(num_tokens)
    query_NTH = torch.randn(NUM_HEADS, num_tokens, HEAD_DIM, generator=generator).to(dtype)
    keys_KTH, values_KTH = torch.randn(2, NUM_KV_HEADS, num_tokens, HEAD_DIM, generator=generator).to(dtype)
    settings = AttentionSettings(scaling=HEAD_DIM**-0.5)
    expected_TNH = _expected(tree, query_NTH, keys_KTH, values_KTH, settings)
    query, keys, values = (states.to(device) for states in (query_NTH, keys_KTH, values_KTH))
    errors: dict[str, float] = {}
    for backend in backends:
        tiles = tile_finder(tree, batch, scored=False)(backend.cut, None)
        # As transformers' layers leave queries, and as the fused rotation does.
        for given in (query, query.transpose(0, 1).contiguous().transpose(0, 1)):
            found_TNH = backend.attend(given, keys, values, tiles, settings)
            error = float((found_TNH.cpu().double() - expected_TNH).norm() / expected_TNH.norm())
            errors[backend.name] = max(error, errors.get(backend.name, 0.0))
    return errors


def _expected(
    tree: PrefixTree,
    query_NTH: torch.Tensor,
    keys_KTH: torch.Tensor,
    values_KTH: torch.Tensor,
    settings: AttentionSettings,
) -> torch.Tensor:
    """Each path by itself, from its own tokens, under a causal mask; a block of rows at a time."""
    expected_TNH = torch.empty(tree.num_tokens, NUM_HEADS, HEAD_DIM, dtype=torch.float64)
    is_done = np.zeros(tree.num_tokens, bool)
    for intervals in tree.sequence_paths:
        path = indexes(intervals)
        rows = np.flatnonzero(~is_done[path])
        keys, values = keys_KTH[:, path], values_KTH[:, path]
        for part in np.array_split(rows, -(-len(rows) // 512)) if len(rows) else ():
            visible = torch.from_numpy(np.arange(len(path))[None] <= part[:, None])
            expected_TNH[path[part]] = reference_attention(
                query_NTH[:, path[part]], keys, values, visible, settings
            )
        is_done[path] = True
    return expected_TNH
