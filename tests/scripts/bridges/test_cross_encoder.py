"""StrataCrossEncoder beside sentence-transformers' CrossEncoder on the same tiny rerankers."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

from strata.engine.machine.settings import MachineSettings
from strata.scripts.bridges.cross_encoder import StrataCrossEncoder

from . import tiny_rerankers

pytestmark = pytest.mark.usefixtures("fixed_rates")

FLOAT32 = MachineSettings(devices="cpu", dtype="float32")
QUERY = "What carries sand to the sea?"
DOCUMENTS = [
    "The river carries sand from the hills to the sea.",
    "Copper, iron and tin were melted together by the smiths.",
    "",
    "A bee finds the field again by the light of the sky. " * 3,
    "The river carries sand from the hills to the sea.",
]
PAIRS = [*((QUERY, text) for text in DOCUMENTS), ("The tide", "turns")]
PROMPTS = {"prompts": {"judge": "Judge it. ", "other": "Say: "}, "default_prompt_name": "judge"}
KINDS = {
    "causal": tiny_rerankers.build_causal,
    "causal-prompts": lambda folder: tiny_rerankers.build_causal(folder, **PROMPTS),
    "chat": lambda folder: tiny_rerankers.build_causal(folder, chat=True),
    "chat-prompts": lambda folder: tiny_rerankers.build_causal(folder, chat=True, **PROMPTS),
    "decoder": lambda folder: tiny_rerankers.build_decoder(folder, 1),
    "decoder-2": lambda folder: tiny_rerankers.build_decoder(folder, 2),
    "decoder-3": lambda folder: tiny_rerankers.build_decoder(folder, 3),
    "encoder": lambda folder: tiny_rerankers.build_encoder(folder, 1),
    "encoder-3": lambda folder: tiny_rerankers.build_encoder(folder, 3),
}
ONE_LABEL = [name for name in KINDS if name[-1] not in "23"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rerankers")
    return {name: build(root / name) for name, build in KINDS.items()}


@pytest.fixture
def both(folders):
    """`both(kind, **settings)` -> ours and CrossEncoder, on one folder."""
    library = pytest.importorskip("sentence_transformers")
    opened = []

    def build(kind, **settings):
        ours = StrataCrossEncoder(folders[kind], machine=FLOAT32, **settings)
        opened.append(ours)
        theirs = library.CrossEncoder(
            str(folders[kind]), device="cpu", local_files_only=True, trust_remote_code=False, **settings
        )
        return ours, theirs

    yield build
    for ours in opened:
        ours.close()


def assert_same(found, expected):
    """Values within 1e-5 of the largest, in the same kind of object."""
    assert type(found) is type(expected)
    if isinstance(found, list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    one, other = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1.0, float(np.abs(other).max(initial=0))))


@pytest.mark.parametrize("kind", KINDS)
def test_scores(kind, both):
    ours, theirs = both(kind)
    assert ours.num_labels == theirs.num_labels
    assert_same(ours.predict(PAIRS), theirs.predict(PAIRS))
    plain = {"activation_fn": torch.nn.Identity()}
    logits = ours.predict(PAIRS, **plain)
    assert_same(logits, theirs.predict(PAIRS, **plain))
    assert np.abs(logits[0] - logits[1]).max() > 1e-2
    assert_same(ours.predict(PAIRS[0], **plain), theirs.predict(PAIRS[0], **plain))


@pytest.mark.parametrize("kind", ["decoder", "encoder-3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"apply_softmax": True},
        {"activation_fn": torch.tanh},
        {"batch_size": 2},
        {"prompt": "Say: "},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_calls_may_ask_for(kind, settings, both):
    ours, theirs = both(kind)
    for inputs in (PAIRS, PAIRS[1], list(PAIRS[1]), [list(pair) for pair in PAIRS], np.array(PAIRS[:2])):
        assert_same(ours.predict(inputs, **settings), theirs.predict(inputs, **settings))


@pytest.mark.parametrize("settings", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}], ids=str)
def test_no_pair(settings, both):
    ours, theirs = both("decoder")
    assert_same(ours.predict([], **settings), theirs.predict([], **settings))


@pytest.mark.parametrize("kind", ["causal-prompts", "chat-prompts"])
@pytest.mark.parametrize("settings", [{}, {"prompt_name": "other"}, {"prompt": "Of help? "}], ids=str)
def test_prompts(kind, settings, both):
    ours, theirs = both(kind)
    assert_same(ours.predict(PAIRS, **settings), theirs.predict(PAIRS, **settings))


@pytest.mark.parametrize("kind", ["causal", "chat", "chat-prompts", "decoder", "encoder"])
@pytest.mark.parametrize("max_length", [34, 60])
def test_long_pairs_are_cut_alike(kind, max_length, both):
    ours, theirs = both(kind, max_length=max_length)
    assert_same(ours.predict(PAIRS), theirs.predict(PAIRS))


@pytest.mark.parametrize("kind", ONE_LABEL)
@pytest.mark.parametrize("settings", [{}, {"top_k": 3, "return_documents": True}], ids=str)
def test_ranks(kind, settings, both):
    ours, theirs = both(kind)
    found, expected = ours.rank(QUERY, DOCUMENTS, **settings), theirs.rank(QUERY, DOCUMENTS, **settings)
    assert [set(row) for row in found] == [set(row) for row in expected]
    by_place = {row["corpus_id"]: row for row in expected}
    for row in found:
        other = by_place.pop(row["corpus_id"])
        assert row["score"] == pytest.approx(other["score"], rel=1e-5, abs=1e-5)
        assert isinstance(row["score"], float)
        assert row.get("text") == other.get("text")
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("method", ["predict", "rank"])
def test_signatures_are_the_same(method):
    library = pytest.importorskip("sentence_transformers")
    ours, theirs = (
        inspect.signature(getattr(owner, method)) for owner in (StrataCrossEncoder, library.CrossEncoder)
    )
    kept = [(name, one.kind, one.default) for name, one in ours.parameters.items()]
    assert kept == [(name, one.kind, one.default) for name, one in theirs.parameters.items()]
    assert ours.return_annotation == theirs.return_annotation


def test_a_query_is_computed_once(folders):
    with StrataCrossEncoder(folders["decoder"], machine=FLOAT32) as model:
        pairs = [(QUERY, text) for text in DOCUMENTS]
        encoded = [pair["input_ids"] for pair in model._tokens.encode(pairs, None)]
        prompts = [model._scorer._build_prompt(place, ids) for place, ids in enumerate(encoded)]
        job = model._scorer._scorer.prepare(prompts)
    assert job.sweep.tree.num_tokens == len(
        {tuple(ids[:end]) for ids in encoded for end in range(1, len(ids) + 1)}
    )
    assert job.sweep.tree.num_tokens < 0.7 * sum(map(len, encoded))


def test_sentence_transformers_is_not_loaded():
    code = (
        "import sys, strata.scripts.bridges.cross_encoder; assert 'sentence_transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
