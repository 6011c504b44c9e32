"""Chat templates by name, for files that hold none: the forms of conversation that models of 2023 were trained on.

Names and texts are llama.cpp's (src/llama-chat.cpp), where it has them; tests compare. Alpaca's are Stanford's
(train.py of tatsu-lab/stanford_alpaca), Falcon's those of Falcon-Instruct and Falcon-180B-Chat. Each is a Jinja program,
as models carry them in their files. What begins the text, such as <s>, is the tokenizer's business and stands in none.

In Jinja as it is set up here, a line that holds only a {% ... %} leaves nothing behind; {%- also takes the line break
before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ChatFormat:
    """template: Jinja; stop: texts that end a reply, for models that have no token for it, or spell it."""

    template: str
    stop: tuple[str, ...] = ()

    def stops(self, more: str | Sequence[str]) -> list[str]:
        """With those of the user."""
        return [*self.stop, *(more if isinstance(more, (list, tuple)) else [more])]


# Alpaca's first line depends on whether the conversation begins with an input; a system message takes its place.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
WITHOUT_INPUT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
INSTRUCTION, RESPONSE = "### Instruction:", "### Response:"

ALPACA = """\
{% set first = messages | selectattr('role', 'equalto', 'user') | first %}
{% if messages[0].role == 'system' %}
{{ messages[0].content }}
{% elif first.input %}
WITH_INPUT
{% else %}
WITHOUT_INPUT
{% endif %}
{% for message in messages %}
{% if message.role == 'user' %}

### Instruction:
{{ message.content }}
{% if message.input %}

### Input:
{{ message.input }}
{% endif %}
{% elif message.role == 'assistant' %}

### Response:{{ message.content }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}

### Response:
{%- endif %}
""".replace("WITH_INPUT", WITH_INPUT).replace("WITHOUT_INPUT", WITHOUT_INPUT)

FALCON = """\
{% for message in messages %}
{% if message.role == 'system' %}
{{ message.content }}
{% elif message.role == 'user' %}
User: {{ message.content | trim }}
{% elif message.role == 'assistant' %}
Assistant: {{ message.content | trim }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
Assistant:
{%- endif %}
"""

FALCON_180B = FALCON.replace("Assistant:", "Falcon:").replace("{{ message.content }}", "System: {{ message.content }}")

CHATML = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

ZEPHYR = """\
{% for message in messages %}
<|{{ message.role }}|>
{{ message.content }}<|endoftext|>
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""

LLAMA_3 = """\
{% for message in messages %}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>
{%- endfor %}
{% if add_generation_prompt %}
<|start_header_id|>assistant<|end_header_id|>

{% endif %}
"""

VICUNA = """\
{% for message in messages %}
{% if message.role == 'system' %}
{{ message.content }}

{% elif message.role == 'user' %}
USER: {{ message.content }}
{% elif message.role == 'assistant' %}
ASSISTANT: {{ message.content }}</s>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
ASSISTANT:
{%- endif %}
"""

VICUNA_ORCA = VICUNA.replace("{{ message.content }}\n\n", "SYSTEM: {{ message.content }}\n")

# One [INST] holds all up to the assistant's next reply. What the system says is followed by a line break only; llama2-sys
# marks it as Meta's own code does.
LLAMA_2 = """\
{% set turn = namespace(open=true) %}
{{ '[INST] ' }}
{%- for message in messages %}
    {%- if not turn.open %}
        {{- '[INST] ' }}
        {%- set turn.open = true %}
    {%- endif %}
    {%- if message.role == 'system' %}
        {{- message.content ~ '\n' }}
    {%- elif message.role == 'user' %}
        {{- message.content ~ ' [/INST]' }}
    {%- else %}
        {{- message.content ~ '</s>' }}
        {%- set turn.open = false %}
    {%- endif %}
{%- endfor %}
"""

LLAMA_2_SYS = LLAMA_2.replace("message.content ~ '\n'", "'<<SYS>>\n' ~ message.content ~ '\n<</SYS>>\n\n'")
LLAMA_2_SYS_BOS = LLAMA_2_SYS.replace("    {{- '[INST] '", "    {{- '<s>[INST] '")

FORMATS = {
    "alpaca": ChatFormat(ALPACA, ("\n\n" + INSTRUCTION, INSTRUCTION)),
    "chatml": ChatFormat(CHATML, ("<|im_end|>",)),
    "falcon": ChatFormat(FALCON, ("\nUser:", "User:")),
    "falcon-180b": ChatFormat(FALCON_180B, ("\nUser:", "User:")),
    "llama2": ChatFormat(LLAMA_2, ("</s>", "[INST]")),
    "llama2-sys": ChatFormat(LLAMA_2_SYS, ("</s>", "[INST]")),
    "llama2-sys-bos": ChatFormat(LLAMA_2_SYS_BOS, ("</s>", "[INST]")),
    "llama3": ChatFormat(LLAMA_3, ("<|eot_id|>",)),
    "vicuna": ChatFormat(VICUNA, ("</s>", "\nUSER:", "USER:")),
    "vicuna-orca": ChatFormat(VICUNA_ORCA, ("</s>", "\nUSER:", "USER:")),
    "zephyr": ChatFormat(ZEPHYR, ("<|endoftext|>", "</s>", "<|user|>")),
}
