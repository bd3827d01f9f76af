"""Scores from GGUF files: those of transformers' dequantised load of the same file, however the run goes.

Independent check: transformers' forward on each branch alone, of from_pretrained(gguf_file=...), and, where
its loader drops what the file says, of the model that was written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from strata.engine.config import ScoreConfig
from strata.engine.results.partial_scores import PartialScores
from strata.engine.types import InputError
from strata.scripts.cli import main

from ...reference import Reference, Scores
from .gguf_references import GgufReference

pytest.importorskip("gguf")

from ...tiny_gguf import build_model, write_tiny_gguf

TOLERANCE = 1e-4
AS_TRANSFORMERS = ("llama", "llama-tied", "qwen2", "gemma2", "gemma3", "phi3", "starcoder2")
NO_TOKENIZER_EARLY = ("gemma2", "gemma3", "phi3")
"""Families of whose GGUF metadata transformers 5.0 makes no tokenizer, or one without tokens."""
IS_EARLY = Version(transformers.__version__) < Version("5.5")
DROPPED_BY_TRANSFORMERS = ("llama-biases", "qwen3", "qwen2moe", "qwen3moe")
SMALL_BLOCKS = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
SUPER_BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
STREAMED = {"resident_layers": 0, "num_groups": 2, "micro_batch_tokens": 64}


class SourceReference(Reference):
    """The model that a tiny file was written from; `folder` is its family."""

    def _load(self, model_class: type, **settings: object) -> torch.nn.Module:
        model = build_model(str(self.folder))
        model.set_attn_implementation(self.attention)
        model.set_experts_implementation("eager")
        return model


def assert_scores_are(run: object, expected: Scores, tolerance: float = TOLERANCE) -> None:
    assert [row.question.id for row in run.scores] == list(expected)
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=tolerance)
    widest = max(np.ptp(scores) for scores in expected.values())
    assert widest > 100 * tolerance, "the options' scores hardly differ: the comparison says nothing"


@pytest.mark.parametrize(
    "family", [name for name in AS_TRANSFORMERS if not (IS_EARLY and name in NO_TOKENIZER_EARLY)]
)
def test_scores_are_transformers_own(family, tmp_path, score):
    path = write_tiny_gguf(tmp_path / "model.gguf", family=family, matrix_type="Q8_0", embedding_type="Q8_0")
    run = score(model=path, head="yes-no")
    assert_scores_are(run, GgufReference(path).score(run.out, "yes_no"))


@pytest.mark.skipif(not IS_EARLY, reason="this transformers makes them all")
@pytest.mark.parametrize("family", NO_TOKENIZER_EARLY)
def test_tokenizers_that_transformers_cannot_make_are_refused(family, tmp_path, score):
    path = write_tiny_gguf(tmp_path / "model.gguf", family=family)
    with pytest.raises(InputError, match="tokenizer"):
        score(model=path, head="yes-no")


@pytest.mark.parametrize("family", DROPPED_BY_TRANSFORMERS)
def test_scores_are_the_written_models_own(family, tmp_path, score):
    path = write_tiny_gguf(tmp_path / "model.gguf", family=family)
    run = score(model=path, head="loglik", normalize="none")
    assert_scores_are(run, SourceReference(Path(family)).score(run.out, "loglik"))


@pytest.mark.parametrize("type_name", [*SMALL_BLOCKS, *SUPER_BLOCKS])
def test_every_storage_type(type_name, tmp_path, score):
    """Embedding and head are in blocks as well: rows of them for letters, the whole of them for loglik."""
    wide = type_name in SUPER_BLOCKS
    path = write_tiny_gguf(
        tmp_path / "model.gguf",
        family="llama-wide" if wide else "llama",
        matrix_type=type_name,
        embedding_type=type_name,
    )
    reference = GgufReference(path)
    for head in ("letters", "loglik"):
        run = score(model=path, head=head, normalize="none")
        expected = reference.score(run.out, head)
        widest = max(np.ptp(scores) for scores in expected.values())
        assert_scores_are(run, expected, min(TOLERANCE, widest / 200))


def test_streamed_cached_and_split_it_is_the_same(tmp_path, score):
    settings = {"family": "llama", "matrix_type": "Q4_1", "embedding_type": "Q5_1"}
    path = write_tiny_gguf(tmp_path / "model.gguf", **settings)
    (tmp_path / "split").mkdir()
    split = write_tiny_gguf(tmp_path / "split" / "model.gguf", split_tensors=9, **settings)
    expected = {row.question.id: row.scores for row in score(model=path).scores}
    for more in (STREAMED, STREAMED | {"cache_dir": tmp_path / "cache"}, {"devices": "cpu,cpu"}):
        for file in (path, split):
            run = score(model=file, **more)
            assert_scores_are(run, expected)
            record = json.loads((run.out / "run.json").read_text())
            assert record["measured"]["bytes_read"] == record["plan"]["bytes_read"]


def test_an_interrupted_run_of_a_file_is_gone_on_with(tmp_path, score, monkeypatch):
    path = write_tiny_gguf(tmp_path / "model.gguf", matrix_type="Q8_0", embedding_type="Q8_0")
    whole = score(model=path, resume=True, num_groups=2)
    add, added = PartialScores.add, []

    def add_one(self, rows):
        add(self, rows)
        added.append(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(PartialScores, "add", add_one)
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        score(model=path, resume=True, num_groups=2, out=out)
    monkeypatch.setattr(PartialScores, "add", add)
    resumed = score(model=path, resume=True, num_groups=2, out=out)
    assert 0 < len(added[0]) < len(whole.scores)
    assert resumed.record["measured"]["resumed_questions"] == len(added[0])
    assert_scores_are(resumed, {row.question.id: row.scores for row in whole.scores})
    # Another file is another job, although it has the same shape.
    other = write_tiny_gguf(tmp_path / "other.gguf", matrix_type="Q4_0", embedding_type="Q8_0")
    monkeypatch.setattr(PartialScores, "add", add_one)
    with pytest.raises(KeyboardInterrupt):
        score(model=path, resume=True, num_groups=2, out=tmp_path / "changed")
    monkeypatch.setattr(PartialScores, "add", add)
    with pytest.raises(InputError, match="--resume"):
        score(model=other, resume=True, num_groups=2, out=tmp_path / "changed")


def test_int8_takes_a_gguf_file(tmp_path, score):
    """It moves scores about as much as it does with the checkpoint that transformers makes of the file."""
    path = write_tiny_gguf(tmp_path / "model.gguf", matrix_type="Q8_0", embedding_type="Q8_0")
    exact = {row.question.id: row.scores for row in score(model=path).scores}
    run = score(model=path, dtype="int8")
    plain = tmp_path / "plain"
    loading = {"gguf_file": path.name, "dtype": torch.float32}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **loading)
    # transformers 5.0 does not say that it came from GGUF; later ones do, and then it cannot be saved.
    vars(loaded.config).pop("quantization_config", None)
    made = type(loaded)(loaded.config)
    made.load_state_dict(loaded.state_dict())
    made.save_pretrained(plain)
    transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name).save_pretrained(plain)
    moved, moved_plain = (
        max(np.abs(row.scores - exact[row.question.id]).max() for row in found.scores)
        for found in (run, score(model=plain, dtype="int8"))
    )
    assert TOLERANCE < moved < 2 * moved_plain


def test_the_command_line_plans_and_scores_a_file(tmp_path, questions, fixed_rates, capsys):
    path = write_tiny_gguf(tmp_path / "model.gguf", matrix_type="Q4_0", embedding_type="Q8_0")
    arguments = ["--model", str(path), "--questions", str(questions), "--devices", "cpu"]
    assert main(["plan", *arguments]) == 0
    assert "model.gguf" in capsys.readouterr().out.replace("\n", "")
    out = tmp_path / "out"
    assert main(["score", *arguments, "--out", str(out)]) == 0
    assert (out / "submission.csv").is_file()


def test_a_file_has_no_checksums(tmp_path, score):
    path = write_tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"--verify: .*model\.gguf.*strata pack"):
        score(model=path, verify=True)


def test_a_folder_with_nothing_but_a_gguf_file_is_told_so(tmp_path, score):
    write_tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"--model .*model\.gguf"):
        score(model=tmp_path)


def test_flags_take_a_file():
    assert ScoreConfig.from_flags(model=Path("m.gguf"), questions=Path("q"), out=Path("o"))
