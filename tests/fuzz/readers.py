"""The readers that are fuzzed, each with a small good input. A new one is a row of READERS."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strata.engine.adapters.adapter_config import read_adapter_config
from strata.engine.heads.registry import HEADS
from strata.engine.prompts.drafts import DraftWriter
from strata.engine.prompts.layouts import PlainLayout
from strata.engine.prompts.templates import load_template
from strata.engine.questions.question_file import read_questions
from strata.engine.results.partial_scores import PartialScores
from strata.engine.types import Question, RunWarnings
from strata.engine.weights.checkpoint_folder import read_config, weight_files
from strata.engine.weights.safetensors_file import read_header
from strata.retrieval.corpus.pages import read_pages
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.journal import open_journal
from strata.retrieval.index.manifest import (
    CHUNKS_PART,
    Manifest,
    add_part,
    file_entry,
    read_manifest,
    write_manifest,
)
from strata.retrieval.index.vector_store import VectorStore, chunks_digest, map_array

from .harness import FuzzedReader, Mutate
from .mutation import mutate_bytes, mutate_json, mutate_json_lines, mutate_safetensors

QUESTION = Question(id="1", prompt="Why?", options=("because", "so"), row=1)
ROWS = [
    {"id": number, "prompt": "Why?", "A": "a", "B": "b, c", "C": "", "answer": "A", "context": "x"}
    for number in range(3)
]
PAGES = [
    {"_id": "a", "title": "T", "text": "First. Second."},
    {"id": 7, "contents": "x", "sections": [["H", "one"], {"heading": "I", "text": "two"}]},
]
SHARD = "chunks/00000.parquet"


def lines(records: list[dict]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet(columns: dict[str, list]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def write_safetensors(folder: Path) -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "model.layers.0.a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "lm_head.weight": {"dtype": "I8", "shape": [8], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(32)


def write_weight_index(folder: Path) -> bytes:
    (folder / "model-00001-of-00001.safetensors").write_bytes(write_safetensors(folder))
    names = {"model.layers.0.a.weight": "model-00001-of-00001.safetensors", "lm_head.weight": "x.safetensors"}
    return json.dumps({"metadata": {"total_size": 32}, "weight_map": names}).encode()


def write_config(folder: Path) -> bytes:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8, "vocab_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }  # fmt: skip
    return json.dumps(config).encode()


def write_adapter_config(folder: Path) -> bytes:
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none",
        "use_dora": False, "use_rslora": False, "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": None, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"^model.*v_proj": 16},
        "fan_in_fan_out": False,
    }  # fmt: skip
    return json.dumps(config).encode()


def write_partial(folder: Path) -> bytes:
    scores = {"scores": [0.5, -1.5], "probabilities": [0.8, 0.2], "members": {"m": [0.5, -1.5]}}
    return lines([{"fingerprint": "f"}, {"id": "1", **scores}])


def write_index(folder: Path) -> bytes:
    shutil.rmtree(folder / "chunks", ignore_errors=True)
    (folder / "chunks").mkdir()
    names = ("id", "page", "title", "section", "text")
    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in names])
    pq.write_table(pa.table({name: ["x", "y"] for name in names}, schema=schema), folder / SHARD)
    corpus = ({"path": "c.jsonl", "bytes": 2, "mtime_ns": 5},)
    settings = {"language": "english", "chunk_chars": 512}
    write_manifest(folder, Manifest(settings=settings, corpus=corpus, num_pages=2, num_chunks=2))
    add_part(folder, CHUNKS_PART, [SHARD], num_empty_pages=0, num_dropped_pages=0)
    add_part(folder, "dense/e", [])
    return (folder / "manifest.json").read_bytes()


def write_journal(folder: Path) -> bytes:
    manifest = json.loads(write_index(folder))
    (folder / "manifest.json").unlink()
    counts = {"num_pages": 2, "num_chunks_of_next": 0, "num_chunks": 2, "num_empty": 0, "num_dropped": 0}
    content = {name: manifest[name] for name in ("format_version", "settings", "corpus")}
    files = manifest["parts"]["chunks"]["files"]
    return json.dumps({**content, "files": files, **counts, "is_whole": True}).encode()


def write_encoder(folder: Path) -> bytes:
    write_index(folder)
    (folder / "dense" / "e").mkdir(parents=True, exist_ok=True)
    content = {
        "format_version": 1, "model": "m", "prompts": {"query": "q", "passage": ""}, "max_tokens": 9,
        "dim": 8, "normalised": True, "stored": "float16", "shard_rows": [2], "block_rows": 2048,
        "chunks_sha256": chunks_digest(read_manifest(folder)),
    }  # fmt: skip
    return json.dumps(content).encode()


def write_vectors(folder: Path) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.zeros((2, 8), dtype=np.float16))
    return sink.getvalue()


def write_shard(folder: Path) -> bytes:
    write_index(folder)
    return (folder / SHARD).read_bytes()


def read_shard(folder: Path) -> object:
    """Reads the chunks of a shard that the manifest's digest does not give away."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parts"][CHUNKS_PART]["files"][SHARD] = file_entry(folder / SHARD)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return list(ChunkStore(folder))


def read_journal(folder: Path) -> None:
    settings = {"language": "english", "chunk_chars": 512}
    open_journal(folder, settings, [{"path": "c.jsonl", "bytes": 2, "mtime_ns": 5}])


def read_template(file: str, head: str) -> object:
    def read(folder: Path) -> object:
        template = load_template(str(folder / file), head=HEADS[head])
        return DraftWriter(template, head=HEADS[head], layout=PlainLayout()).write(QUESTION, "some context")

    return read


def questions(name: str, content: bytes, mutate: Mutate) -> FuzzedReader:
    def read(folder: Path) -> object:
        return read_questions(folder / f"q.{name}", warnings=RunWarnings())

    return FuzzedReader(
        name=f"questions_{name}", file=f"q.{name}", prepare=lambda folder: content, mutate=mutate, read=read
    )


def corpus(name: str, file: str, content: bytes, mutate: Mutate) -> FuzzedReader:
    def read(folder: Path) -> object:
        return list(read_pages([folder / file]))

    return FuzzedReader(
        name=f"corpus_{name}", file=file, prepare=lambda folder: content, mutate=mutate, read=read
    )


CSV = b'id,prompt,A,B,C,answer,context\n1,Why?,a,"b, c",,A,x\n2,"How ""so""?\nWell?",d,e,f,C,\n'
YAML = b'# for yes-no\ntext: |\n  {{ context }}\n  {{ prompt }} {{ option }}\nlabels: ["true", "false"]\n'
JINJA = (
    b"{% if context %}{{ context | trim }}{% endif %}{% for letter, text in options %}{{ loop.index }}"
    b"{{ letter ~ '. ' ~ text | replace('a', 'b') }}{% endfor %}{% set x = 3 * 4 %}{{ x }}{{ prompt[:99] }}"
)
CIRRUS = [
    {"index": {"_id": "12"}},
    {"title": "M", "text": "Open. Head one.", "opening_text": "Open.", "heading": ["Head"], "namespace": 0},
]

READERS = (
    FuzzedReader(
        name="safetensors", file="m.safetensors", prepare=write_safetensors, mutate=mutate_safetensors,
        read=lambda folder: read_header(folder / "m.safetensors"),
    ),
    FuzzedReader(
        name="weight_index", file="model.safetensors.index.json", prepare=write_weight_index,
        mutate=mutate_json, read=weight_files,
    ),
    FuzzedReader(
        name="config", file="config.json", prepare=write_config, mutate=mutate_json, read=read_config
    ),
    FuzzedReader(
        name="adapter_config", file="adapter_config.json", prepare=write_adapter_config,
        mutate=mutate_json, read=read_adapter_config,
    ),
    questions("csv", CSV, mutate_bytes),
    questions("jsonl", lines(ROWS), mutate_json_lines),
    questions("parquet", parquet({name: [row[name] for row in ROWS] for name in ROWS[0]}), mutate_bytes),
    FuzzedReader(
        name="template_yaml", file="t.yaml", prepare=lambda folder: YAML, mutate=mutate_bytes,
        read=read_template("t.yaml", "yes-no"),
    ),
    FuzzedReader(
        name="template_jinja", file="t.txt", prepare=lambda folder: JINJA, mutate=mutate_bytes,
        read=read_template("t.txt", "letters"),
    ),
    FuzzedReader(
        name="partial_scores", file="partial.jsonl", prepare=write_partial, mutate=mutate_json_lines,
        read=lambda folder: PartialScores(folder, "f").read([QUESTION]),
    ),
    corpus("jsonl", "c.jsonl", lines(PAGES), mutate_json_lines),
    corpus("cirrus", "cirrussearch.json", lines(CIRRUS), mutate_json_lines),
    corpus("text_gz", "c.txt.gz", gzip.compress(b"One.\nTwo.\n", mtime=0), mutate_bytes),
    corpus("parquet", "c.parquet", parquet({"id": ["a", "b"], "text": ["x", "y"]}), mutate_bytes),
    FuzzedReader(
        name="manifest", file="manifest.json", prepare=write_index, mutate=mutate_json,
        read=lambda folder: list(ChunkStore(folder)),
    ),
    FuzzedReader(
        name="journal", file="building.json", prepare=write_journal, mutate=mutate_json, read=read_journal
    ),
    FuzzedReader(
        name="encoder", file="dense/e/encoder.json", prepare=write_encoder, mutate=mutate_json,
        read=lambda folder: VectorStore(folder, "e"),
    ),
    FuzzedReader(name="shard", file=SHARD, prepare=write_shard, mutate=mutate_bytes, read=read_shard),
    FuzzedReader(
        name="vectors", file="v.npy", prepare=write_vectors, mutate=mutate_bytes,
        read=lambda folder: map_array(folder / "v.npy", (2, 8), np.float16),
    ),
)  # fmt: skip
