"""The independent oracle of whole runs: transformers' own forward on every branch of prompts.jsonl, alone.

Slow and obvious on purpose: no packing, no cache, no sharing, one path a call. It knows the file format of
prompts.jsonl and the meaning of the heads, and imports nothing of the engine.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file

Scores = dict[str, np.ndarray]


def read_prompts(out: Path) -> list[dict]:
    """The lines of a run's prompts.jsonl, one a question."""
    return [json.loads(line) for line in (out / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def count_trie_nodes(questions: list[dict]) -> int:
    """Nodes of one trie over all branches of all questions: the distinct non-empty prefixes of their ids."""
    paths = [branch["ids"] for question in questions for branch in question["branches"]]
    return len({tuple(ids[:length]) for ids in paths for length in range(1, len(ids) + 1)})


class Reference:
    """A checkpoint, perhaps with one adapter, as transformers and peft themselves run it."""

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        dtype: str = "float32",
        attention: str | None = "eager",
    ):
        self.dtype, self.adapter = getattr(torch, dtype), adapter
        self.attention, self.folder = attention, model
        self.known: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.no_grad()
    def log_probabilities(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities [L, V] float32 of the token after each of `ids`."""
        if tuple(ids) not in self.known:
            if not hasattr(self, "causal_lm"):
                self.causal_lm = self._load(hf.AutoModelForCausalLM)
            logits = self.causal_lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            self.known[tuple(ids)] = logits.float().log_softmax(dim=-1)
        return self.known[tuple(ids)]

    @torch.no_grad()
    def classifier_logit(self, ids: list[int]) -> float:
        """What a SequenceClassification model of one output says of `ids`, read at the last token."""
        if not hasattr(self, "classifier"):
            self.classifier = self._load(hf.AutoModelForSequenceClassification, num_labels=1)
        return self.classifier(input_ids=torch.tensor([ids]), use_cache=False).logits.item()

    @torch.no_grad()
    def readout(self, ids: list[int]) -> torch.Tensor:
        """Final-norm hidden state [D] of the last token."""
        if not hasattr(self, "decoder"):
            self.decoder = self._load(hf.AutoModel)
        return self.decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]

    def _load(self, model_class: type, **settings: object) -> torch.nn.Module:
        model = model_class.from_pretrained(
            self.folder,
            dtype=self.dtype,
            attn_implementation=self.attention,
            experts_implementation="eager",
            **settings,
        )
        if self.adapter is not None:
            model = PeftModel.from_pretrained(model, self.adapter)
        return model.eval()

    def score(self, out: Path, head: str) -> Scores:
        """Scores [O] a question id, from the branches of the prompts.jsonl in `out`."""
        return {line["id"]: np.array(getattr(self, f"_{head}")(line)) for line in read_prompts(out)}

    def _target_sum(self, branch: dict) -> float:
        rows = self.log_probabilities(branch["ids"])
        return sum(rows[position - 1, token].item() for position, token in branch["targets"])

    def _yes_no(self, question: dict) -> list[float]:
        scores = [0.0] * num_options(question)
        for branch in question["branches"]:
            sign = {"yes": 1.0, "no": -1.0}[branch["label"].strip().lower()]
            scores[branch["option"]] += sign * self._target_sum(branch)
        return scores

    def _letters(self, question: dict) -> list[float]:
        orders = self._letters_by_order(question)
        (scores,) = orders.values()
        return scores

    def _letters_rotate(self, question: dict) -> list[float]:
        orders = self._letters_by_order(question)
        assert len(orders) == num_options(question)
        probabilities = [np.exp(scores) / np.exp(scores).sum() for scores in orders.values()]
        return np.log(np.mean(probabilities, axis=0)).tolist()

    def _letters_by_order(self, question: dict) -> dict[tuple[int, ...], list[float]]:
        orders: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0] * num_options(question))
        for branch in question["branches"]:
            shown_at = branch["order"].index(branch["option"])
            assert branch["label"].strip() == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[shown_at]
            orders[tuple(branch["order"])][branch["option"]] += self._target_sum(branch)
        return orders

    def _loglik(self, question: dict) -> list[float]:
        scores = [0.0] * num_options(question)
        for branch in question["branches"]:
            scores[branch["option"]] += self._target_sum(branch)
        return scores

    def _binary(self, question: dict) -> list[float]:
        scores = [0.0] * num_options(question)
        for branch in question["branches"]:
            assert branch["targets"] == [[len(branch["ids"]) - 1, None]]
            scores[branch["option"]] = self.classifier_logit(branch["ids"])
        return scores

    def _contrast(self, question: dict) -> list[float]:
        weight = load_file(self.folder / "model.safetensors")["score.weight"][0].float()
        own_weight, others_weight = weight.chunk(2)
        readouts = {branch["option"]: self.readout(branch["ids"]).float() for branch in question["branches"]}
        scores = []
        for option in range(num_options(question)):
            others = torch.stack([readout for other, readout in readouts.items() if other != option])
            scores.append((own_weight @ readouts[option] + others_weight @ others.mean(dim=0)).item())
        return scores


def num_options(question: dict) -> int:
    """How many options a line of prompts.jsonl has."""
    return 1 + max(branch["option"] for branch in question["branches"])
