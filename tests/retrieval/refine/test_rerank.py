"""Reranking: scorers see title and text of all queries in one call; a cross-encoder gives logits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.retrieval.refine.hits import load_hits, rank_hits
from strata.retrieval.refine.rerank import (
    CrossEncoderScorer,
    SentenceScorer,
    blend_hits,
    rerank_hits,
    score_each,
)
from strata.retrieval.types import Chunk, Hit


def hit(row: int, text: str, score: float = 0.0, title: str = "T") -> Hit:
    chunk = Chunk(id=f"p{row}#0", page=f"p{row}", title=title, section="", text=text)
    return Hit(chunk=chunk, score=score, row=row)


def rows(hits: Sequence[Hit]) -> list[int]:
    return [hit.row for hit in hits]


def test_scorer_decides_and_sees_all_queries_in_one_call() -> None:
    calls = []

    def count_characters(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        calls.append((list(queries), [list(group) for group in texts]))
        return [[float(len(text)) for text in group] for group in texts]

    hits = [[hit(0, "a"), hit(1, "ccc"), hit(2, "bb"), hit(3, "dddddd")], [], [hit(4, "x", title="")]]
    reranked = rerank_hits(["q", "none", "r"], hits, count_characters, top_k=3)
    assert [rows(hits) for hits in reranked] == [[1, 2, 0], [], [4]]
    assert [hit.score for hit in reranked[0]] == [5.0, 4.0, 3.0]
    assert calls == [(["q", "r"], [["T\na", "T\nccc", "T\nbb"], ["x"]])]


def test_ties_keep_the_order_they_had() -> None:
    same = score_each(lambda query, texts: [1.0] * len(texts))
    assert rows(rerank_hits(["q"], [[hit(5, "a"), hit(1, "b")]], same, 9)[0]) == [5, 1]


def test_no_hits_never_reach_the_scorer() -> None:
    def never(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list:
        raise AssertionError("was called")

    assert rerank_hits(["q"], [[]], never, 3) == [[]]


def test_wrong_number_of_scores_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one each"):
        rank_hits([hit(0, "a")], [1.0, 2.0])
    with pytest.raises(FloatingPointError, match="p1#0"):
        rank_hits([hit(0, "a"), hit(1, "b")], [1.0, float("nan")])


def test_load_hits_leaves_out_empty_places() -> None:
    import numpy as np

    from strata.retrieval.types import Ranking

    ranking = Ranking(
        rows=np.array([[2, 0, -1], [-1, -1, -1]]),
        scores=np.array([[3.0, 1.0, -np.inf], [-np.inf] * 3], dtype=np.float32),
    )
    chunks = [hit(row, f"text {row}").chunk for row in range(3)]
    loaded = load_hits(ranking, lambda wanted: [chunks[row] for row in wanted])
    assert [[(hit.row, hit.score, hit.chunk.text) for hit in hits] for hits in loaded] == [
        [(2, 3.0, "text 2"), (0, 1.0, "text 0")],
        [],
    ]
    assert rows(load_hits(ranking, lambda wanted: [chunks[row] for row in wanted], top_k=1)[0]) == [2]


def test_a_text_is_as_good_as_its_best_sentence() -> None:
    calls = []

    def count_characters(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        calls.append((list(queries), [list(group) for group in texts]))
        return [[float(len(text)) for text in group] for group in texts]

    texts = [["Title\nA one. A longer one. B two.", ""], [], ["Only."]]
    scores = SentenceScorer(count_characters)(["q", "r", "s"], texts)
    assert [values.tolist() for values in scores] == [[13.0, 0.0], [], [5.0]]
    assert calls == [(["q", "r", "s"], [["Title", "A one.", "A longer one.", "B two.", ""], [], ["Only."]])]


def test_the_best_sentence_may_score_below_zero() -> None:
    negative = score_each(lambda query, texts: [-float(len(text)) for text in texts])
    assert [values.tolist() for values in SentenceScorer(negative)(["q"], [["Aa. Bbb.", "Cccc."]])] == [
        [-3.0, -5.0]
    ]


def test_blended_scores_by_hand() -> None:
    found = [[hit(0, "a", 30.0), hit(1, "ccc", 25.0), hit(2, "bb", 10.0), hit(3, "dddd", 9.0)], []]
    lengths = score_each(lambda query, texts: [float(len(text)) for text in texts])
    reranked = rerank_hits(["q", "r"], found, lengths, top_k=3)
    # Found with 1, 0.75, 0 of the way up; the scorer says 0, 1, 0.5.
    blended = blend_hits(found, reranked, 0.5)
    assert [(hit.row, hit.score) for hit in blended[0]] == [(1, 0.875), (0, 0.5), (2, 0.25)]
    assert blended[1] == []
    assert rows(blend_hits(found, reranked, 1.0)[0]) == rows(reranked[0])
    assert rows(blend_hits(found, reranked, 0.0)[0]) == [0, 1, 2]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained BERT with one score a pair."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("cross-encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cats", "dogs", "purr", "bark", "t", "do"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_cross_encoder_gives_the_model_s_own_logits(cross_encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    queries, texts = ["do cats purr", "do dogs bark"], [["cats purr", "dogs"], ["bark bark dogs"]]
    scores = CrossEncoderScorer(cross_encoder, device="cpu", batch_size=2)(queries, texts)
    assert [len(values) for values in scores] == [2, 1]
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    for query, group, values in zip(queries, texts, scores, strict=True):
        for text, score in zip(group, values, strict=True):
            with torch.no_grad():
                logit = model(**tokenizer(query, text, return_tensors="pt")).logits.item()
            assert float(score) == pytest.approx(logit, abs=1e-5)


@pytest.fixture(scope="module", params=[None, "</s>", "<pad>"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained Llama with one score a text, its tokenizer without or with a padding token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("decoder")
    words = ["<unk>", "</s>", "<pad>", "cats", "dogs", "purr", "bark", "do"]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token=request.param
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=None,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_decoder_gives_a_pair_the_same_score_alone_and_among_others(decoder: Path) -> None:
    """The check: the model's own forward pass of each pair alone, unpadded."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    queries, texts = ["do cats purr", "do"], [["cats purr", "dogs", "bark </s>"], ["bark bark dogs do cats"]]
    scores = CrossEncoderScorer(decoder, device="cpu")(queries, texts)
    model = AutoModelForSequenceClassification.from_pretrained(decoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    for query, group, values in zip(queries, texts, scores, strict=True):
        for text, score in zip(group, values, strict=True):
            with torch.no_grad():
                ids = tokenizer(query, text, return_tensors="pt")["input_ids"]
                logit = model(input_ids=ids).logits.item()
            assert float(score) == pytest.approx(logit, abs=1e-5)


def test_cross_encoder_cuts_a_text_longer_than_its_window(cross_encoder: Path) -> None:
    scores = CrossEncoderScorer(cross_encoder, device="cpu")(["cats"], [["purr " * 5000, "bark"]])
    assert len(scores[0]) == 2


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        CrossEncoderScorer(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[" * 9999, "config.json: nested too deeply"),
        (
            "config.json",
            '{"num_hidden_layers": 1000000000}',
            "config.json: num_hidden_layers: input should be less",
        ),
        (
            "config.json",
            '{"model_type": "bert", "hidden_size": "x"}',
            "config.json: hidden_size: input should be",
        ),
        ("config.json", '{"model_type": "evil"}', "cannot be loaded as a cross-encoder"),
        ("config.json", '{"model_type": "bert", "hidden_size": 7}', "cannot be loaded as a cross-encoder"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: holds a list"),
        ("tokenizer.json", "{}", "tokenizer.json: "),
        ("model.safetensors", "x", "cannot be loaded as a cross-encoder"),
        ("modules.json", '[{"type": "os.path"}]', "modules.json: 0.type: 'os.path'; expected a class of"),
    ],
)
def test_a_broken_cross_encoder_is_one_line(
    cross_encoder: Path, tmp_path: Path, file: str, content: str, message: str
) -> None:
    folder = shutil.copytree(cross_encoder, tmp_path / "model")
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        CrossEncoderScorer(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_pickle_is_not_loaded(cross_encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cross_encoder, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded as a cross-encoder"):
        CrossEncoderScorer(folder)
