"""llama.cpp, through llama-cpp-python, on a GGUF file of the checkpoint; knows strata's questions only.

A question is one `llama_decode`, as llama.cpp's HellaSwag scoring does it: prefix tokens that belong to
all options' sequences, then each option's tokens in a separate sequence, in one unified KV cache with flash
attention. So every token is computed once, and only the options' last tokens reach the vocabulary projection.
Source: hellaswag_score in tools/perplexity/perplexity.cpp of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from strata.scripts.bench.peers.exchange import (
    PeerJob,
    answer_request,
    find_missing,
    peer_parser,
    read_job,
    warm_up_question,
)
from strata.scripts.bench.peers.gguf_file import OUTPUT_TYPE, write_gguf
from strata.scripts.bench.workloads.baselines import BaselineRun, time_questions
from strata.scripts.bench.workloads.synthetic_questions import LABEL_TOKENS, SyntheticQuestion

if TYPE_CHECKING:
    from llama_cpp import llama_batch, llama_context_p, llama_context_params

MODULES = ("llama_cpp", "gguf", "safetensors", "torch")
UBATCH_TOKENS = 512
CONTEXT_MULTIPLE = 256


def missing_reason() -> str | None:
    """Why llama.cpp cannot run in this interpreter, or None."""
    return find_missing(MODULES)


def measure_llama_cpp(job: PeerJob, matrix_type: str, *, ubatch_tokens: int = UBATCH_TOKENS) -> BaselineRun:
    """Times llama.cpp on the CPU, weights in memory; converting and loading are not timed.

    Args:
        job: What to score, and where; the GGUF file goes to its work folder and is removed at the end.
            Options may differ in length.
        matrix_type: bf16, q8_0 or q4_0; see `gguf_file.write_gguf`.
        ubatch_tokens: Most tokens that go through a layer at once.

    Raises:
        RuntimeError: llama.cpp refuses the file, the context or a batch.
    """
    with tempfile.TemporaryDirectory(dir=job.work_folder, prefix="llama_cpp-") as folder:
        path = Path(folder) / f"{matrix_type}.gguf"
        write_gguf(job.checkpoint, path, matrix_type)
        with _open_context(path, job, ubatch_tokens) as context:
            _score(context, warm_up_question(job.questions[0]))
            return time_questions(job.questions, partial(_score, context))


@contextmanager
def _open_context(path: Path, job: PeerJob, ubatch_tokens: int) -> Iterator[llama_context_p]:
    """A model and a context that is large enough for any of the questions."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path.name}: see its messages above")
    params = _context_params(job, ubatch_tokens)
    context = llama_cpp.llama_init_from_model(model, params)
    try:
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
        yield context
    finally:
        if context:
            llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _context_params(job: PeerJob, ubatch_tokens: int) -> llama_context_params:
    import llama_cpp

    num_tokens = max(_num_tokens(question) for question in job.questions)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = -(-num_tokens // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
    params.n_batch = params.n_ctx
    params.n_ubatch = min(ubatch_tokens, params.n_ctx)
    params.n_seq_max = max(len(question.option_ids) for question in job.questions)
    params.n_threads = params.n_threads_batch = job.num_threads
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.kv_unified = True
    return params


def _score(context: llama_context_p, question: SyntheticQuestion) -> np.ndarray:
    """Scores [O] float32 of one question, computed from an empty KV cache."""
    import llama_cpp

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
    batch = llama_cpp.llama_batch_init(_num_tokens(question), 0, len(question.option_ids))
    try:
        last_rows = _fill_batch(batch, question)
        status = llama_cpp.llama_decode(context, batch)
    finally:
        llama_cpp.llama_batch_free(batch)
    if status != 0:
        raise RuntimeError(f"llama_decode of {batch.n_tokens} tokens returned {status}, expected 0")
    first, second = LABEL_TOKENS
    logits = [llama_cpp.llama_get_logits_ith(context, row) for row in last_rows]
    return np.array([row[first] - row[second] for row in logits], dtype=np.float32)


def _fill_batch(batch: llama_batch, question: SyntheticQuestion) -> list[int]:
    """Puts a question's tokens into an allocated batch; returns the row of each option's last token."""
    every_option = range(len(question.option_ids))
    num_prefix = len(question.prefix_ids)
    for position, token_id in enumerate(question.prefix_ids):
        _append_token(batch, token_id, position, every_option)
    last_rows = []
    for option, token_ids in enumerate(question.option_ids):
        for position, token_id in enumerate(token_ids, start=num_prefix):
            _append_token(batch, token_id, position, (option,))
        last_rows.append(batch.n_tokens - 1)
        batch.logits[last_rows[-1]] = 1
    return last_rows


def _append_token(
    batch: llama_batch, token_id: np.integer, position: int, sequences: range | tuple[int, ...]
) -> None:
    row = batch.n_tokens
    batch.token[row] = int(token_id)
    batch.pos[row] = position
    batch.n_seq_id[row] = len(sequences)
    for index, sequence in enumerate(sequences):
        batch.seq_id[row][index] = sequence
    batch.logits[row] = 0
    batch.n_tokens = row + 1


def _num_tokens(question: SyntheticQuestion) -> int:
    return len(question.prefix_ids) + sum(len(ids) for ids in question.option_ids)


def main() -> int:
    """Answers one request on the command line."""
    parser = peer_parser("strata.scripts.bench.peers.llama_cpp")
    parser.add_argument("--matrix-type", choices=tuple(OUTPUT_TYPE), default="bf16")
    parser.add_argument("--ubatch-tokens", type=int, default=UBATCH_TOKENS)
    given = parser.parse_args()
    return answer_request(
        lambda: measure_llama_cpp(read_job(given), given.matrix_type, ubatch_tokens=given.ubatch_tokens),
        missing=missing_reason(),
        packages=("llama_cpp_python", "gguf", "torch"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
