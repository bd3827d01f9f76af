"""A Jinja environment for templates that strangers wrote: what they may reach, make and take is bounded.

Jinja's own sandbox keeps a template away from Python. This one also bounds, within one rendering, the
characters that are made and the seconds that pass, refuses numbers of thousands of digits, and leaves out
what is random or shows an address in memory: a template writes the same text on every machine, in every run.

Where a bound is checked: at every output, `~`, `+ * ** %`, filter, call, literal of a list, and loop. So
what it does not stop is a single slow step between two checks: comparing, slicing or searching texts of
millions of characters, some milliseconds each. The limits are per thread: any thread may render. Knows
nothing of prompts.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, SecurityError

from strata.engine.prompts.bounds.growth import FILTER_GROWTH, METHOD_GROWTH, field_widths, size_of
from strata.engine.prompts.bounds.guard import EACH, JOINED, MADE, Guard

MAX_CHARACTERS = 1 << 24
"""Characters that one rendering may make, those of values in between included."""
MAX_SECONDS = 5.0
"""Time that one rendering may take."""
MAX_BITS = 4096
"""Bits of the largest integer."""
FREE_ITERATIONS = 64
"""Loops up to this length look at the clock once."""

LEFT_OUT_FILTERS = ("pprint", "random", "urlize")
LEFT_OUT_GLOBALS = ("lipsum",)
UNSAFE_METHODS = frozenset({"encode", "fromkeys", "maketrans", "to_bytes", "translate"})
# What compiled templates pass along with calls in loops and blocks, for Jinja to take out.
_JINJA_ARGUMENTS = ("_loop_vars", "_block_vars")
_DIGITS = re.compile(r"\d+")


_TOO_LONG = f"makes more than {MAX_CHARACTERS:,} characters"


class Budget(threading.local):
    """What is left to the rendering of this thread."""

    characters = MAX_CHARACTERS
    deadline = float("inf")

    def start(self) -> None:
        """Begins a rendering."""
        self.characters = MAX_CHARACTERS
        self.deadline = perf_counter() + MAX_SECONDS

    def spend(self, num_characters: int) -> None:
        """Counts characters, before they are made where their number is known.

        Raises:
            SecurityError: they are too many.
        """
        self.characters -= num_characters
        if self.characters < 0:
            raise SecurityError(_TOO_LONG)

    def check_time(self) -> None:
        """Raises SecurityError when time is over."""
        if perf_counter() > self.deadline:
            raise SecurityError(f"takes more than {MAX_SECONDS:g} seconds")


_budget = Budget()


class _CountingContext(Context):
    """Counts what one rendering writes; an attribute of its own is quicker than the thread's."""

    characters = MAX_CHARACTERS


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders templates within bounds; takes the settings of a Jinja environment."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    context_class = _CountingContext

    def __init__(self, **settings: Any) -> None:
        # Unoptimized: constants would be computed while compiling, beyond the bounds of a rendering.
        super().__init__(**settings, optimized=False, finalize=_show)
        for name in LEFT_OUT_FILTERS:
            del self.filters[name]
        for name in LEFT_OUT_GLOBALS:
            del self.globals[name]
        self.filters = {
            name: bound_filter(function, FILTER_GROWTH.get(name)) for name, function in self.filters.items()
        }
        self.filters |= {EACH: _each, JOINED: _concatenate, MADE: _check_made, "string": _to_text}

    def parse(self, source: str, name: str | None = None, filename: str | None = None) -> nodes.Template:
        """Parses a text; what is nested too deeply is a TemplateSyntaxError."""
        with _told_as_syntax_errors():
            return super().parse(source, name, filename)

    def compile(self, *given: Any, **settings: Any) -> Any:
        """Compiles a text; what is nested too deeply is a TemplateSyntaxError."""
        with _told_as_syntax_errors():
            return super().compile(*given, **settings)

    def _generate(self, source: nodes.Template, *given: Any, **settings: Any) -> str:
        return super()._generate(Guard().visit(source), *given, **settings)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Nothing private, nothing that changes an object, no bytes."""
        return attr not in UNSAFE_METHODS and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuses at once, also where the value would never be shown."""
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format with bounded widths."""
        if super().wrap_str_format(value) is None:
            return None
        text, formatter = value.__self__, _BoundedFormatter(self)
        if value.__name__ == "format":
            return lambda *given, **named: formatter.vformat(text, given, named)
        return lambda mapping: formatter.vformat(text, (), mapping)

    def call(__self, __context: Context, __obj: Any, *given: Any, **named: Any) -> Any:  # noqa: N805
        """Calls what a template calls, macros and methods of texts included."""
        _budget.check_time()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name in METHOD_GROWTH:
            if name == "join":
                given = tuple(list(parts) for parts in given)
            asked = {key: value for key, value in named.items() if key not in _JINJA_ARGUMENTS}
            _budget.spend(max(METHOD_GROWTH[name](owner, *given, **asked), 0))
        result = super().call(__context, __obj, *given, **named)
        _budget.spend(size_of(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes `+ * ** %` where the result is of a bearable size."""
        _budget.spend(_size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)


RENDERING_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What rendering raises: a limit, or what Jinja and Python refuse."""


def render_bounded(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text of a template of a `BoundedEnvironment`.

    Raises:
        RENDERING_ERRORS: it takes more than it may, or an expression fails.
    """
    _budget.start()
    try:
        return template.render(variables)
    except RecursionError:
        raise SecurityError("calls itself without end, or is nested too deeply") from None
    except MemoryError:
        raise SecurityError("asks for more memory than there is") from None


@contextmanager
def _told_as_syntax_errors() -> Iterator[None]:
    _budget.start()
    try:
        yield
    except (RecursionError, MemoryError, SyntaxError):
        raise jinja2.TemplateSyntaxError("nested too deeply", 1) from None
    except ValueError as error:
        # Python refuses integers of more than 4,300 digits.
        raise jinja2.TemplateSyntaxError(str(error), 1) from None


@jinja2.pass_context
def _show(context: _CountingContext, value: Any) -> Any:
    """What `{{ value }}` writes: every output passes here, so it is short."""
    if type(value) is not str:
        return _to_text(value)
    context.characters -= len(value)
    if context.characters < 0:
        raise SecurityError(_TOO_LONG)
    return value


def _to_text(value: Any) -> str:
    """The text of what is shown or concatenated; functions and the like would show an address in memory."""
    if not isinstance(value, Undefined) and (callable(value) or isinstance(value, Iterator)):
        raise SecurityError(f"shows a {type(value).__name__}; expected a text, a number or a list")
    _budget.spend(size_of(value))
    return str(value)


def _concatenate(values: list[Any]) -> str:
    return "".join([_to_text(value) for value in values])


def _check_made(value: Any) -> Any:
    size_of(value)
    return value


def _each(values: Any, num_characters: int) -> Iterable[Any]:
    _budget.check_time()
    try:
        length = len(values)
    except TypeError:
        return _timed(values, num_characters)
    if length > FREE_ITERATIONS:
        return _timed(values, num_characters)
    _budget.spend(length * num_characters)
    return values


def _timed(values: Iterable[Any], num_characters: int) -> Iterator[Any]:
    for value in values:
        _budget.check_time()
        _budget.spend(num_characters)
        yield value


def bound_filter(function: Callable[..., Any], growth: Callable[..., int] | None) -> Callable[..., Any]:
    """The filter, which looks at the clock and counts what it makes.

    Args:
        function: a filter as Jinja takes them.
        growth: how many characters it makes of its arguments, where that could be many more than it is given.
    """
    first = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def filter_bounded(*given: Any, **named: Any) -> Any:
        _budget.check_time()
        value = given[first]
        if growth is FILTER_GROWTH["join"]:
            value = list(value)
            given = (*given[:first], value, *given[first + 1 :])
        if not isinstance(value, str):
            size_of(value)
        if growth is not None:
            _budget.spend(max(growth(*given[first:], **named), 0))
        result = function(*given, **named)
        _budget.spend(len(result) if isinstance(result, str) else 1)
        return result

    return filter_bounded


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        _budget.spend(sum(int(width) for width in _DIGITS.findall(format_spec)))
        text = super().format_field(value, format_spec)
        _budget.spend(len(text))
        return text


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """Characters or items that an operator makes.

    Raises:
        SecurityError: an integer of too many bits, or too wide a field.
    """
    if operator == "%":
        return len(left) + field_widths(left) + size_of(right) if isinstance(left, str) else 0
    if isinstance(left, int) and isinstance(right, int):
        _refuse_long_integers(operator, left, right)
        return 0
    if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        return len(left) + len(right)
    if operator == "*":
        many, times = (left, right) if isinstance(right, int) else (right, left)
        return len(many) * max(times, 0) if hasattr(many, "__len__") and isinstance(times, int) else 0
    return 0


def _refuse_long_integers(operator: str, left: int, right: int) -> None:
    bits = left.bit_length()
    num_bits = bits * max(right, 0) if operator == "**" else bits + right.bit_length()
    if num_bits > MAX_BITS:
        raise SecurityError(f"computes an integer of more than {MAX_BITS} bits")
