"""Conversations as llama.cpp writes them, in its built-in chat formats.

    pip install llama-cpp-python==0.3.36
    python tests/golden/make_chat_formats.py

rewrites tests/data/chat_formats.json. No model is needed: llama_chat_apply_template takes the name of a format.
"""

from __future__ import annotations

import json
from pathlib import Path

import llama_cpp

TARGET = Path(__file__).parent.parent / "data" / "chat_formats.json"
NAMES = ["chatml", "llama2", "llama2-sys", "llama2-sys-bos", "llama3", "vicuna", "vicuna-orca", "zephyr"]
CONVERSATIONS = {
    "of llama.cpp's test": [  # tests/test-chat-template.cpp
        ("system", "You are a helpful assistant"),
        ("user", "Hello"),
        ("assistant", "Hi there"),
        ("user", "Who are you"),
        ("assistant", "   I am an assistant   "),
        ("user", "Another question"),
    ],
    "one question": [("user", "Why is the sky blue?")],
    "system and question": [("system", "Answer in one line.\nBe kind."), ("user", "Why is the sky blue?")],
    "white space and signs": [
        ("user", "  two spaces, and a tab\t\n\n"),
        ("assistant", "\nA line before.\n"),
        ("user", "{{ braces }} {% raw %} <b>&amp;</b> 'quotes' \"and\" \\n \u00e9\u4e16\U0001f30d"),
    ],
    "empty messages": [("system", ""), ("user", ""), ("assistant", ""), ("user", "x")],
    "ends with a reply": [("user", "Hello"), ("assistant", "Hi")],
    "roles in no order": [("user", "a"), ("user", "b"), ("system", "c"), ("assistant", "d"), ("assistant", "e"), ("user", "f")],
}


def by_llama_cpp(name: str, conversation: list[tuple[str, str]], begins_reply: bool) -> str:
    messages = (llama_cpp.llama_chat_message * len(conversation))(
        *[llama_cpp.llama_chat_message(role.encode(), content.encode()) for role, content in conversation]
    )
    buffer = bytes(10_000)
    n = llama_cpp.llama_chat_apply_template(name.encode(), messages, len(conversation), begins_reply, buffer, len(buffer))
    if not 0 <= n <= len(buffer):
        raise RuntimeError(f"llama.cpp could not write {name}: {n}")
    return buffer[:n].decode()


def main() -> None:
    cases = [
        {
            "format": name,
            "conversation": told,
            "add_generation_prompt": begins_reply,
            "expected": by_llama_cpp(name, conversation, begins_reply),
        }
        for name in NAMES
        for told, conversation in CONVERSATIONS.items()
        for begins_reply in (True, False)
    ]
    data = {
        "source": f"tests/golden/make_chat_formats.py, llama-cpp-python {llama_cpp.__version__}",
        "licence": "the first conversation is llama.cpp's (MIT), the others were written for this project",
        "conversations": CONVERSATIONS,
        "cases": cases,
    }
    TARGET.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
