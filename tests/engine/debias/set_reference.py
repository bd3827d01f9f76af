"""Owns the oracle of masked sets: transformers' own forward under an explicit 4D mask and position ids.

One path of prompts.jsonl a call, the mask written from the rule. Imports nothing of the
engine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as hf

from ...reference import Scores, num_options, read_prompts


def places(num_tokens: int, siblings: list[list[int]]) -> tuple[list[int], list[int]]:
    """Position and part of every token: part 0 before the siblings, k in the k-th, -1 behind."""
    positions, parts = [], []
    deepest = -1
    for index in range(num_tokens):
        inside = next((k for k, (start, end) in enumerate(siblings, 1) if start <= index < end), None)
        if inside is not None:
            parts.append(inside)
            positions.append(siblings[0][0] + index - siblings[inside - 1][0])
        else:
            parts.append(-1 if siblings and index >= siblings[-1][1] else 0)
            positions.append(deepest + 1)
        deepest = max(deepest, positions[-1])
    return positions, parts


def dense_mask(positions: list[int], parts: list[int], window: int | None) -> torch.Tensor:
    """[1, 1, L, L] float32, 0 where a row sees a key and a very negative number elsewhere."""
    position, part = torch.tensor(positions), torch.tensor(parts)
    rows, keys = part[:, None], part[None, :]
    apart = (rows > 0) & (keys != 0) & (keys != rows)
    seen = torch.ones_like(apart).tril() & ~apart
    if window is not None:
        seen &= position[None, :] > position[:, None] - window
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


class SetReference:
    """A checkpoint as transformers runs it, eagerly, in float32."""

    def __init__(self, model: Path) -> None:
        self.model = hf.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    @torch.no_grad()
    def log_probabilities(self, ids: list[int], siblings: list[list[int]]) -> torch.Tensor:
        """[L, V] of the token after each of `ids`."""
        positions, parts = places(len(ids), siblings)
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds and len(set(kinds)) > 1:
            mask = {
                "full_attention": dense_mask(positions, parts, None),
                "sliding_attention": dense_mask(positions, parts, window),
            }
        else:
            slides = kinds[0] == "sliding_attention" if kinds else True
            mask = dense_mask(positions, parts, window if slides else None)
        logits = self.model(
            input_ids=torch.tensor([ids]),
            attention_mask=mask,
            position_ids=torch.tensor([positions]),
            use_cache=False,
        ).logits[0]
        return logits.float().log_softmax(dim=-1)

    def score(self, out: Path, head: str) -> Scores:
        """Scores [O] by question id, from prompts.jsonl: sums of loglik, yes minus no of yes-no."""
        return {line["id"]: self._score(line, head) for line in read_prompts(out)}

    def _score(self, question: dict, head: str) -> np.ndarray:
        scores = np.zeros(num_options(question))
        for branch in question["branches"]:
            rows = self.log_probabilities(branch["ids"], branch.get("siblings", []))
            total = sum(rows[position - 1, token].item() for position, token in branch["targets"])
            sign = -1.0 if head == "yes-no" and branch["label"].lower() == "no" else 1.0
            scores[branch["option"]] += sign * total
        return scores
