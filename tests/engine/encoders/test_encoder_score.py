"""An encoder's scores are those of transformers called plainly, whatever the batch; its run leaves all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

from strata.engine.config import ScoreConfig
from strata.engine.encoders import batches as encoder_sweep
from strata.engine.encoders.encoder import is_encoder, measure_encoder
from strata.engine.encoders.rows import EncoderTokenizer, batch_by_length
from strata.engine.machine.rates import MachineRates
from strata.engine.results.tables import read_scores
from strata.engine.run import encoder_job as encoder_score
from strata.engine.run.artefacts import ScoreRun
from strata.engine.run.score import score_questions
from strata.engine.types import InputError, Question, RunWarnings

from ...sample_questions import QUESTIONS, write_jsonl
from .tiny_encoder import CONFIGS, build_encoder

FAMILIES = tuple(CONFIGS)
LONG = " The river carries sand from the hills to the sea." * 12


@pytest.fixture(scope="module", autouse=True)
def known_rates() -> Iterator[None]:
    """No run spends 0.2 s on measuring this machine."""
    with pytest.MonkeyPatch.context() as patch:
        rates = MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9)
        patch.setattr(encoder_score, "measure_rates", lambda *arguments: rates)
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("encoders")

    def build(family: str, with_head: bool = True) -> Path:
        folder = root / f"{family}-{with_head}"
        return folder if folder.is_dir() else build_encoder(family, folder, with_head=with_head)

    return build


@pytest.fixture
def score(tmp_path: Path, questions: Path) -> Callable[..., ScoreRun]:
    numbers = iter(range(1000))

    def run(model: Path, **settings: object) -> ScoreRun:
        defaults = {"questions": questions, "out": tmp_path / f"run{next(numbers)}", "devices": "cpu"}
        return score_questions(ScoreConfig.from_flags(model=model, **(defaults | settings)))

    return run


def plain_scores(folder: Path, question: Question | dict, max_length: int = 64) -> np.ndarray:
    """The documented way: one question, its rows padded to the longest, the context alone truncated."""
    row = question if isinstance(question, dict) else vars(question) | {"question": question.prompt}
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    return plain_logits(model, tokenizer, row, max_length)


def plain_logits(model: torch.nn.Module, tokenizer: object, row: dict, max_length: int = 64) -> np.ndarray:
    seconds = [f"{row['question']} {option}" for option in row["options"]]
    inputs = tokenizer(
        [row["context"]] * len(seconds),
        seconds,
        truncation="only_first" if row["context"] else False,
        max_length=max_length,
        padding=True,
        return_tensors="pt",
    )
    if getattr(model.config, "type_vocab_size", 2) == 1:
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**{name: values[None] for name, values in inputs.items()}).logits[0].double().numpy()


def as_row(number: int, context: str) -> dict:
    return dict(QUESTIONS[number % len(QUESTIONS)]) | {"id": str(number), "context": context}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers_question_by_question(
    family: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun]
) -> None:
    folder = encoder(family)
    for row, question in zip(score(folder).scores, QUESTIONS, strict=True):
        np.testing.assert_allclose(row.scores, plain_scores(folder, question), atol=1e-5)
        assert np.ptp(row.scores) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_batches_or_devices(
    family: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    rows = [as_row(number, "The moon pulls. " * (number % 5)) for number in range(17)]
    file = write_jsonl(tmp_path / "many.jsonl", rows)
    runs = [
        score(encoder(family), questions=file, micro_batch_tokens=tokens, devices=devices)
        for tokens, devices in ((1, "cpu"), (150, "cpu"), (100_000, "cpu"), (200, "cpu,cpu"))
    ]
    assert [run.record["plan"]["num_micro_batches"] for run in runs[:3:2]] == [17, 1]
    assert runs[0].record["measured"]["padding_tokens"] < runs[2].record["measured"]["padding_tokens"]
    for run in runs[1:]:
        for alone, together in zip(runs[0].scores, run.scores, strict=True):
            np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_contexts_are_cut_to_the_window_and_to_max_tokens(
    family: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "long.jsonl", [as_row(3, LONG), as_row(0, "")])
    window = 62 if family == "roberta" else 64
    run = score(encoder(family), questions=file)
    expected = plain_scores(encoder(family), as_row(3, LONG), window)
    np.testing.assert_allclose(run.scores[0].scores, expected, atol=1e-5)
    assert run.record["measured"]["truncated_questions"] == 1
    shorter = score(encoder(family), questions=file, max_tokens=40)
    expected = plain_scores(encoder(family), as_row(3, LONG), 40)
    np.testing.assert_allclose(shorter.scores[0].scores, expected, atol=1e-5)


def test_relative_positions_reach_beyond_the_window_and_a_table_does_not(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "long.jsonl", [as_row(3, LONG)])
    far = score(encoder("deberta"), questions=file, max_tokens=120)
    expected = plain_scores(encoder("deberta"), as_row(3, LONG), 120)
    np.testing.assert_allclose(far.scores[0].scores, expected, atol=1e-5)
    near = score(encoder("bert"), questions=file, max_tokens=120)
    assert near.record["plan"]["window_tokens"] == 64
    assert any("exceeds the model's window of 64" in line for line in near.record["warnings"]["messages"])


def test_question_and_option_too_long_for_the_window_keep_the_option(encoder: Callable[..., Path]) -> None:
    folder, warnings = encoder("bert"), RunWarnings()
    shape = measure_encoder(hf.AutoConfig.from_pretrained(folder))
    writer = EncoderTokenizer(folder, shape, None, warnings, "file")
    question = Question(id="7", prompt=LONG, options=("the sea", "sand"), context="The moon.")
    (prompt,) = writer.encode([question])
    assert [len(branch.token_ids) for branch in prompt.branches] == [64, 64]
    texts = [branch.text for branch in writer.with_texts(prompt).branches]
    assert texts[0].endswith("the sea[SEP]")
    assert texts[1].endswith("sand[SEP]")
    assert not any("moon" in text for text in texts)
    assert warnings.rows == {"longer than the window": ["7"]}
    assert prompt.num_truncated_tokens > 0


def test_context_that_just_fits_or_just_does_not(encoder: Callable[..., Path]) -> None:
    folder = encoder("bert")
    shape = measure_encoder(hf.AutoConfig.from_pretrained(folder))
    question = Question(id="1", prompt="Which?", options=("a", "b"), context="The moon pulls.")
    whole = EncoderTokenizer(folder, shape, None, RunWarnings(), "file").encode([question])[0].longest_tokens
    for max_tokens in range(12, whole + 2):
        writer = EncoderTokenizer(folder, shape, max_tokens, RunWarnings(), "file")
        (prompt,) = writer.encode([question])
        assert prompt.longest_tokens == min(max_tokens, whole)
        assert prompt.num_truncated_tokens == whole - prompt.longest_tokens


def test_a_run_leaves_the_artefacts_of_any_run(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun]
) -> None:
    run = score(encoder("deberta"), save_prompts=True, limit=3)
    kept = read_scores(run.out / "scores.parquet")
    assert [row.question.id for row in kept] == ["tide", "07", "\u00e9t\u00e9"]
    assert (run.out / "submission.csv").read_text(encoding="utf-8").startswith("id,prediction\ntide,")
    assert "<html" in (run.out / "report.html").read_text(encoding="utf-8")
    record = json.loads((run.out / "run.json").read_text())
    assert record["status"] == "done"
    assert record["plan"]["head"] == "multiple-choice"
    assert record["metrics"]["num_answered"] == 3
    measured = record["measured"]
    assert measured["tokens_computed"] == record["plan"]["tokens_computed"] > 0
    assert measured["peak_host_bytes"] >= measured["baseline_host_bytes"] > 0
    prompts = [json.loads(line) for line in (run.out / "prompts.jsonl").read_text().splitlines()]
    tokenizer = hf.AutoTokenizer.from_pretrained(encoder("deberta"))
    first = QUESTIONS[0]
    expected = tokenizer(first["context"], f"{first['question']} {first['options'][0]}")["input_ids"]
    assert prompts[0]["branches"][0]["ids"] == expected
    assert not (run.out / "partial.jsonl").exists()


def test_interrupted_run_is_resumed_to_the_same_scores(
    encoder: Callable[..., Path],
    score: Callable[..., ScoreRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = score(encoder("bert"))
    plain, calls = encoder_sweep.choice_logits, []

    def fail_at_third(model: object, inputs: dict) -> torch.Tensor:
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(model, inputs)

    out = tmp_path / "resumed"
    monkeypatch.setattr(encoder_sweep, "choice_logits", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        score(encoder("bert"), out=out, micro_batch_tokens=1)
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(InputError, match="another job"):
        score(encoder("bert"), out=out, micro_batch_tokens=1, resume=True, max_tokens=30)
    run = score(encoder("bert"), out=out, micro_batch_tokens=1, resume=True)
    assert run.record["measured"]["resumed_questions"] == 2
    assert len(calls) == 5
    for resumed, once in zip(run.scores, whole.scores, strict=True):
        np.testing.assert_allclose(resumed.scores, once.scores, atol=1e-5)


def test_questions_after_the_deadline_get_the_longest_option_first(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_sweep, "SAFETY", 1e9)
    run = score(encoder("bert"), micro_batch_tokens=1, deadline="1h")
    unreached = run.record["warnings"]["rows"]["not scored before the deadline"]["ids"]
    assert len(unreached) == 3
    assert (run.out / "partial.jsonl").exists()
    by_id = {row.question.id: row for row in run.scores}
    assert by_id["07"].order[0] == (0 if "07" in unreached else by_id["07"].order[0])


@pytest.fixture(scope="module")
def adapters(encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained-looking adapters on a plain BERT, whose choice heads are their own."""
    folders = []
    for seed in (1, 2):
        model = hf.AutoModelForMultipleChoice.from_pretrained(encoder("bert", with_head=False))
        settings = LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"])
        adapted = get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, weight in sorted(adapted.named_parameters()):
                if weight.requires_grad:
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        folders.append(tmp_path_factory.mktemp("adapters") / f"adapter{seed}")
        adapted.save_pretrained(str(folders[-1]))
    return folders


def peft_scores(base: Path, adapter: Path) -> list[np.ndarray]:
    model = hf.AutoModelForMultipleChoice.from_pretrained(base)
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    return [plain_logits(adapted, tokenizer, question) for question in QUESTIONS]


def test_adapters_bring_the_head_of_a_plain_encoder_and_are_members(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], adapters: Sequence[Path]
) -> None:
    base = encoder("bert", with_head=False)
    alone = [peft_scores(base, adapter) for adapter in adapters]
    one = score(base, adapter=(adapters[0],))
    for row, expected in zip(one.scores, alone[0], strict=True):
        np.testing.assert_allclose(row.scores, expected, atol=1e-5)
    both = score(base, adapter=tuple(adapters))
    for number, row in enumerate(both.scores):
        for adapter, expected in zip(adapters, alone, strict=True):
            np.testing.assert_allclose(row.member_scores[adapter.name], expected[number], atol=1e-5)
        means = np.mean([np.exp(own[number]) / np.exp(own[number]).sum() for own in alone], axis=0)
        np.testing.assert_allclose(row.probabilities, means, atol=1e-5)


def test_plain_encoder_is_refused_with_what_to_do(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"plain encoder.*classifier.*strata train --task multiple-choice"):
        score(encoder("bert", with_head=False), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_adapter_without_the_head_is_refused(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    model = hf.AutoModelForMultipleChoice.from_pretrained(encoder("bert", with_head=False))
    get_peft_model(model, LoraConfig(target_modules=["query"])).save_pretrained(str(tmp_path / "bare"))
    with pytest.raises(InputError, match=r"--adapter: .*bare: holds no tensor for classifier"):
        score(encoder("bert", with_head=False), adapter=(tmp_path / "bare",))


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"head": "letters"}, "--head letters"),
        ({"debias": "rotate"}, "--debias rotate"),
        ({"template": "letters"}, "--template letters"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"hidden_store": "disk"}, "--hidden-store"),
        ({"resident_layers": 1}, "--resident-layers"),
        ({"max_tokens": 3}, "--max-tokens 3"),
        ({"memory_gib": 1e-6}, "--memory-gib"),
        ({"devices": "cuda:99"}, "--devices"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_without_a_meaning_are_refused(
    settings: dict, flag: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun]
) -> None:
    with pytest.raises(InputError, match=flag):
        score(encoder("bert"), **settings)


def test_encoders_whose_scores_change_with_padding_are_refused(
    score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    hf.FNetConfig(architectures=["FNetForMultipleChoice"]).save_pretrained(tmp_path / "fnet")
    assert is_encoder(tmp_path / "fnet")
    with pytest.raises(InputError, match=r"'fnet', whose scores change with padding"):
        score(tmp_path / "fnet")


def test_decoders_are_no_encoders(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    assert not is_encoder(checkpoint("llama-gqa"))
    assert not is_encoder(tmp_path)


def test_float16_that_overflows_is_computed_in_float32(
    score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    folder = build_encoder("bert", tmp_path / "huge")
    model = hf.AutoModelForMultipleChoice.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.mul_(60000)
        model.classifier.bias.fill_(60000)
    model.save_pretrained(folder)
    run = score(folder, dtype="float16")
    assert run.record["measured"]["float32_micro_batches"] > 0
    assert all(np.isfinite(row.scores).all() for row in run.scores)


def test_batches_hold_every_question_once_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    lengths = [(int(rows), int(tokens)) for rows, tokens in generator.integers(1, 30, (200, 2))]
    batches = batch_by_length(lengths, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    for batch in batches:
        padded = sum(lengths[index][0] for index in batch) * max(lengths[index][1] for index in batch)
        assert padded <= 100 or len(batch) == 1
    firsts = [lengths[batch[0]][1] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_replace_keeps_rows(encoder: Callable[..., Path]) -> None:
    folder = encoder("bert")
    shape = measure_encoder(hf.AutoConfig.from_pretrained(folder))
    assert shape.reads_token_types
    assert not measure_encoder(hf.AutoConfig.from_pretrained(encoder("deberta"))).reads_token_types
    writer = EncoderTokenizer(folder, shape, None, RunWarnings(), "file")
    (prompt,) = writer.encode([Question(id="1", prompt="Which?", options=("a", "b"), context="The moon.")])
    assert replace(prompt, num_truncated_tokens=2).token_types is prompt.token_types
