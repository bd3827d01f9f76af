"""Settings of a training run: what is refused, and by which name."""

from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.training.config import TrainConfig

GIVEN = {"model": Path("model"), "out": Path("out"), "questions": Path("train.csv")}
PASSAGES = {"task": "lm", "questions": None, "passages": Path("corpus.jsonl")}

REFUSED = {
    "no questions": ({"questions": None}, "--questions"),
    "no passages": ({"task": "lm", "questions": None}, "--passages"),
    "questions for lm": ({**PASSAGES, "questions": Path("train.csv")}, "--questions"),
    "passages for another task": ({"passages": Path("corpus.jsonl")}, "--passages"),
    "soft labels for lm": ({**PASSAGES, "soft_labels": Path("scores.parquet")}, "--soft-labels"),
    "two validation sets": ({"valid": Path("valid.csv"), "valid_share": 0.1}, "--valid-share"),
    "all held out": ({"valid_share": 1.0}, "--valid-share"),
    "nothing to stop by": ({"early_stop": 3}, "--early-stop"),
    "no evaluations to stop by": ({"early_stop": 3, "valid_share": 0.1, "eval_every": 0}, "--early-stop"),
    "no learning rate": ({"learning_rate": 0.0}, "--learning-rate"),
    "an endless learning rate": ({"learning_rate": float("inf")}, "--learning-rate"),
    "no number": ({"learning_rate": float("nan")}, "--learning-rate"),
    "a negative decay": ({"weight_decay": -0.1}, "--weight-decay"),
    "only warm-up": ({"warmup_share": 1.0}, "--warmup-share"),
    "no epochs": ({"epochs": 0.0}, "--epochs"),
    "no steps": ({"max_steps": 0}, "--max-steps"),
    "no batch": ({"batch_questions": 0}, "--batch-questions"),
    "no rank": ({"lora_r": 0}, "--lora-r"),
    "dropout of everything": ({"lora_dropout": 1.0}, "--lora-dropout"),
    "no targets": ({"lora_targets": ()}, "--lora-targets"),
    "a bias of no classifier": ({"task": "letters", "head_bias": True}, "--head-bias"),
    "an empty target": ({"lora_targets": ("q_proj", "")}, "--lora-targets"),
    "no soft weight": ({"soft_weight": 0.0}, "--soft-weight"),
    "frozen soft labels": ({"soft_temperature": 0.0}, "--soft-temperature"),
    "a negative seed": ({"seed": -1}, "--seed"),
    "no memory": ({"memory_gib": 0.0}, "--memory-gib"),
    "no checkpoints kept": ({"keep_checkpoints": 0}, "--keep-checkpoints"),
    "all weights of an adapter": ({"full": True, "adapter": Path("lora")}, "--adapter"),
    "all weights in 4 bits": ({"full": True, "base_storage": "nf4"}, "--base-storage"),
    "all weights streamed": ({"full": True, "streamed": True}, "--streamed"),
    "a GGUF file": ({"model": Path("model.gguf")}, "--model"),
    "a streamed encoder": ({"streamed": True, "task": "multiple-choice"}, "--streamed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_nothing_is_refused_by_its_flag(case):
    changes, flag = REFUSED[case]
    with pytest.raises(InputError, match=flag):
        TrainConfig(**(GIVEN | changes)).check()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        PASSAGES,
        {"valid_share": 0.2, "early_stop": 2},
        {"full": True, "max_steps": 5},
        {"max_grad_norm": 0.0, "save_every": 0, "eval_every": 0, "warmup_share": 0.0},
    ],
)
def test_what_can_be_run_is_accepted(changes):
    TrainConfig(**(GIVEN | changes)).check()
