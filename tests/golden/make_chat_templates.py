"""Chat templates, and what they make of one conversation according to llama.cpp and to transformers.

    pip install transformers jinja2 gguf
    python tests/golden/make_chat_templates.py llama.cpp/tests/test-chat-template.cpp SmolLM2-135M-Instruct.Q4_1.gguf

rewrites tests/data/chat_templates.json. Templates and expected texts come from llama.cpp's own test (MIT licence,
Copyright (c) 2023-2026 The ggml authors). Taken are those that transformers renders to the very text that llama.cpp
expects; the others rely on llama.cpp's repairs, such as merging the system message into the user's. Zephyr's template
(HuggingFaceH4/zephyr-7b-beta, MIT) and that of SmolLM2's GGUF file (Apache-2.0) are rendered by transformers alone.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import gguf
from transformers.utils.chat_template_utils import render_jinja_template

TARGET = Path(__file__).parent.parent / "data" / "chat_templates.json"
CONVERSATION = [  # of llama.cpp's test
    ("system", "You are a helpful assistant"),
    ("user", "Hello"),
    ("assistant", "Hi there"),
    ("user", "Who are you"),
    ("assistant", "   I am an assistant   "),
    ("user", "Another question"),
]
MESSAGES = [{"role": role, "content": content} for role, content in CONVERSATION]
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)


def by_transformers(template: str, bos: str, eos: str) -> str:
    rendered, _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=True, bos_token=bos, eos_token=eos
    )
    return rendered[0]


def of_llama_cpp(source: str) -> list[dict[str, str]]:
    """The cases of test-chat-template.cpp on which transformers agrees."""
    cases = []
    for part in source.split("/* .name= */")[1:]:
        part = part.split("/* .extra_conversation= */")[0]
        name = _literal(part)
        fields = {key: _literal(text) for key, text in re.findall(r"/\* \.(\w+)(?:= | )?\*/([^\n]*)", part)}
        expected = fields.get("expected_output_jinja") or fields["expected_output"]
        bos, eos = fields.get("bos_token", ""), fields.get("eos_token", "")
        try:
            agreed = by_transformers(fields["template_str"], bos, eos) == expected
        except Exception:  # the template refuses the conversation, which llama.cpp changes until it does not
            agreed = False
        if agreed:
            case = {"name": name, "template": fields["template_str"], "bos_token": bos, "eos_token": eos}
            cases.append({**case, "expected": expected})
    return cases


def _literal(text: str) -> str:
    """The first C++ string literal in it; its escapes are also Python's."""
    found = re.search(r'"(?:[^"\\]|\\.)*"', text)
    return str(ast.literal_eval(found[0])) if found else ""


def main(test_file: str, smollm2: str) -> None:
    own = str(gguf.GGUFReader(smollm2).fields["tokenizer.chat_template"].contents())
    cases = of_llama_cpp(Path(test_file).read_text("utf-8"))
    for name, template, bos, eos in (("zephyr", ZEPHYR, "<s>", "</s>"), ("SmolLM2", own, "<|im_start|>", "<|im_end|>")):
        case = {"name": name, "template": template, "bos_token": bos, "eos_token": eos}
        cases.append({**case, "expected": by_transformers(template, bos, eos)})
    licence = "templates and expected texts from llama.cpp (MIT), zephyr-7b-beta (MIT), SmolLM2 (Apache-2.0)"
    data = {"source": "tests/golden/make_chat_templates.py", "licence": licence, "messages": MESSAGES, "cases": cases}
    TARGET.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")
    print(len(cases), "cases:", ", ".join(case["name"] for case in cases))


if __name__ == "__main__":
    main(*sys.argv[1:])
