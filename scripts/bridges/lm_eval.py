"""lm-evaluation-harness' model "strata": log-likelihoods of its requests, all of them in one prefix tree.

Flow: requests -> pairs of token ids, cut as the harness' own `hf` model cuts them -> one sweep over the
weights (`Scorer.plan_continuations`) -> (log-likelihood, is greedy). A context that several requests share,
few-shot examples included, is computed once. Needs lm-eval; `lm_eval_command` registers the class.
Source of the rules: lm_eval.models.huggingface.HFLM, versions 0.4.13 and 0.5.0.dev1.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from strata.engine.jobs.job import Session
from strata.engine.scorer import Scorer
from strata.engine.types import InputError
from strata.scripts.bridges.lm_eval_arguments import WHERE, LMArguments

CACHED_ENCODINGS = 256
"""Texts whose tokens are kept: the options of a question share their context."""

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""What the harness caches the answer under, None for a window of a longer text; context; continuation."""

NO_LENGTH = 10**18
"""A tokenizer whose length is beyond says that it knows none (transformers' VERY_LARGE_INTEGER)."""
DEFAULT_LENGTH = 2048

logger = logging.getLogger(__name__)


def resolve_max_length(config: Any, tokenizer: Any) -> int:
    """Tokens that a model takes, by the harness' rule, which moves about between its versions.

    The config of the text model within, the config itself, the tokenizer, or 2,048.
    """
    for found in (getattr(config, "text_config", None), config):
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            if length := getattr(found, name, None):
                return int(length)
    length = getattr(tokenizer, "model_max_length", None) or NO_LENGTH
    return int(length) if length < NO_LENGTH else DEFAULT_LENGTH


class StrataLM(TemplateLM):
    """A decoder of any size, streamed layer by layer. It scores; it does not generate.

    Attributes:
        arguments: what it was opened with.
        scorer: the model, opened.
        tokenizer: of the model.
        tokens_computed: by all requests so far.
    """

    def __init__(self, pretrained: str | Path, **arguments: Any) -> None:
        """Opens a model; reads no weights.

        Args:
            pretrained: checkpoint folder or GGUF file.
            arguments: see `LMArguments`.

        Raises:
            InputError: whatever is wrong with the files or the arguments, in one line.
        """
        super().__init__()
        self.arguments = LMArguments.read({"pretrained": pretrained, **arguments})
        if self.arguments.ignored_batch_size:
            size = self.arguments.ignored_batch_size
            logger.warning("strata plans its micro-batches itself: batch_size=%s has no effect", size)
        session = Session(folder=Path(tempfile.gettempdir()), shows_progress=True)
        self.scorer = Scorer.open([self.arguments.member()], self.arguments.machine(), session=session)
        opened = self.scorer.decoder
        self.tokenizer: Any = opened.tokenizer
        if self.arguments.add_bos_token is not None:
            self.tokenizer.add_bos_token = self.arguments.add_bos_token
        self._max_length = self._choose_max_length(opened.model.checkpoint.config, opened.prompting.window)
        self._encode = lru_cache(CACHED_ENCODINGS)(self._encode_text)
        self.tokens_computed = 0
        for line in session.warnings.lines():
            logger.warning(line)

    def _choose_max_length(self, config: Any, window: int | None) -> int:
        asked = self.arguments.max_length
        if asked is not None and window is not None and asked > window:
            raise InputError(f"{WHERE}: max_length={asked}: the model's window is {window} tokens")
        return asked or int(resolve_max_length(config, self.tokenizer))

    def close(self) -> None:
        """Gives memory and open files back."""
        self.scorer.close()

    @property
    def max_length(self) -> int:
        """Longest input in tokens; longer ones lose tokens at their beginning."""
        return self._max_length

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's EOS."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: the argument of this name, else BOS, else EOS."""
        if self.arguments.prefix_token_id is not None:
            return self.arguments.prefix_token_id
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness' caches: the model's path."""
        return str(self.arguments.model_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokenizes a text; one that begins with BOS does not get it again."""
        return list(self._encode(string, add_special_tokens))

    def _encode_text(self, text: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        if add_special_tokens is None:
            add_special_tokens = self.arguments.add_bos_token
            if text.startswith(self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return tuple(self.tokenizer.encode(text, **given))

    def tok_decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as one text, in the tokenizer's chat template; without system message if it takes none."""
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{self.arguments.model_path}: no chat template; expected no --apply_chat_template"
            )
        try:
            return self._write_chat(chat_history, add_generation_prompt)
        except TemplateError:
            logger.warning("the chat template refuses the messages: the system message is left out")
            spoken = [message for message in chat_history if message["role"] != "system"]
            return self._write_chat(spoken, add_generation_prompt)

    def _write_chat(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        variables = dict(self.arguments.chat_template_args)
        if self.arguments.enable_thinking is not None:
            variables["enable_thinking"] = self.arguments.enable_thinking
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **variables,
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float] | list[tuple[float, bool]]:
        """Log-likelihoods of whole texts, in nats, in windows as the harness cuts them.

        Version 0.4.13 asks for (text,) and expects a number; 0.5.0.dev1 asks for ("", text) and expects what
        `loglikelihood` gives, never greedy.
        """
        windows = [self._windows(request.args[-1]) for request in requests]
        found = iter(self._loglikelihood_tokens([window for of_text in windows for window in of_text]))
        answers: list[Any] = []
        for request, of_text in zip(requests, windows, strict=True):
            total = sum(next(found)[0] for _ in of_text)
            answers.append(total if len(request.args) == 1 else (total, False))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answers[-1])
        return answers

    def _windows(self, text: str) -> list[TokenRequest]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [(None, *make_disjoint_window(window)) for window in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Refused: strata scores.

        Raises:
            InputError: always; it names a task that wants text.
        """
        task = requests[0].task_name if requests else None
        raise InputError(
            f"--tasks {task or '?'}: it generates text (generate_until), which --model strata does not; "
            "expected tasks of loglikelihood, loglikelihood_rolling or multiple_choice"
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        job = self.scorer.plan_continuations([self._fit(context, rest) for _, context, rest in requests])
        self.tokens_computed += job.num_tree_tokens
        found: dict[int, tuple[float, bool]] = {}
        for group in job.groups():
            found |= group
            for number, answer in group.items():
                if (texts := requests[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
        return [found[number] for number in range(len(requests))]

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """A pair without the tokens at its beginning that are too many."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens; expected at most max_length={self.max_length}"
            )
        excess = len(context) + len(continuation) - (self.max_length + 1)
        if excess > 0:
            logger.warning("a request is too long: %d tokens of its beginning are left out", excess)
        return context[max(0, excess) :], continuation
