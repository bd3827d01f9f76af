"""The texts of the built-in templates.

The Alpaca frames end in "### Response:" and a newline, after which the label is written bare. That is how the
Llama-2 fine-tunes of this format were trained, and a word at the start of a line is one whole token for
Llama-2 ("yes", "no", "A": the newline is a token of its own), whereas a space would glue itself to the
label ("_yes") and leave the boundary between prompt and label inside a token.
"""

from __future__ import annotations

STATEMENT = """\
{% if context %}Context: {{ context }}

{% endif %}Question: {{ prompt }}
Answer: {{ option }}"""

ALPACA_OPENING = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
"""

LISTED = """\
{% if context %}Context: {{ context }}

{% endif %}Question: {{ prompt }}
Options:
{% for letter, text in options %}- {{ text }}
{% endfor %}"""

STATEMENT_LISTED = LISTED + "Answer: {{ option }}"

YES_NO = (
    ALPACA_OPENING
    + """\
Answer yes if the proposed answer to the question is correct, and no if it is not.

### Input:
{% if context %}Context: {{ context }}

{% endif %}Question: {{ prompt }}
Proposed answer: {{ option }}

### Response:
"""
)

YES_NO_LISTED = (
    ALPACA_OPENING
    + """\
Answer yes if the proposed answer is the correct one of the options, and no if it is not.

### Input:
"""
    + LISTED
    + """\
Proposed answer: {{ option }}

### Response:
"""
)

LETTERS = (
    ALPACA_OPENING
    + """\
Answer the question with the letter of the correct option.

### Input:
{% if context %}Context: {{ context }}

{% endif %}Question: {{ prompt }}
{% for letter, text in options %}{{ letter }}. {{ text }}
{% endfor %}
### Response:
"""
)


CHAT_YES_NO = """\
Answer Yes if the proposed answer to the question is correct, and No if it is not.

{% if context %}Context: {{ context }}

{% endif %}Question: {{ prompt }}
Proposed answer: {{ option }}
"""

CHAT_YES_NO_LISTED = (
    """\
Answer Yes if the proposed answer is the correct one of the options, and No if it is not.

"""
    + LISTED
    + """\
Proposed answer: {{ option }}
"""
)

CHAT_LETTERS = """\
Answer the question with the letter of the correct option, and nothing else.

{% if context %}Context: {{ context }}

{% endif %}Question: {{ prompt }}
{% for letter, text in options %}{{ letter }}. {{ text }}
{% endfor %}"""
