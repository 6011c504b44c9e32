"""Chat templates against llama.cpp's and transformers' renderings, hostile ones, and the logic of a conversation."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from ops.errors import ContextFullError, ModelError, OptionError, TinyLlamaError
from tinyllama import sandbox
from tinyllama.chat import ChatSession, render
from tinyllama.cli.chat import converse
from tinyllama.sampling import Sampling

GOLDEN = json.loads((Path(__file__).parent / "data" / "chat_templates.json").read_text("utf-8"))
HELLO = [{"role": "user", "content": "Hello"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# --- rendering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_renders_as_llama_cpp_and_transformers_do(case: dict[str, str]) -> None:
    rendered = render(case["template"], GOLDEN["messages"], bos_token=case["bos_token"], eos_token=case["eos_token"])
    assert rendered == case["expected"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),  # lstrip_blocks and trim_blocks
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02345678"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{{ {'b': '<é>', 'a': [1, none, true]} | tojson }}", '{"b": "<é>", "a": [1, null, true]}'),  # not &lt;
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hello!"),
        ("{{ missing is defined }}{{ missing }}", "False"),
        ("{{ tools | length }}{{ strftime_now('%Y') | int > 2000 }}", "2True"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ v ~ loop.last }}{% endfor %}", "a1True"),
        ("{{ messages[-1:][0]['content'] ~ ('a', 'b') | join('-') }}", "Helloa-b"),
        ("{{ '%s' % 'c' }}{{ '{}'.format('d') }}", "cd"),
    ],
)  # fmt: skip
def test_the_language_of_templates(template: str, expected: str) -> None:
    """Expected by the documentation of Jinja and of transformers' chat templates."""
    assert render(template, HELLO, tools=["a", "b"]) == expected


def test_a_long_conversation_is_no_attack() -> None:
    messages = [{"role": role, "content": "word " * 200} for _ in range(500) for role in ("user", "assistant")]
    expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert render(CHATML, messages, add_generation_prompt=False) == expected  # a million characters


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "refuses this conversation: Roles must alternate"),
        ("{% if %}", "cannot be used: line 1: Expected an expression"),
        ("a\n{% for m in messages %}", "cannot be used: line 2"),
        ("{{ messages | no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{{ missing.attribute }}", "failed: 'missing' is undefined"),
        ("{{ 1 // 0 }}", "failed: integer division or modulo by zero"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_a_bad_template_is_told_in_one_sentence(template: str, told: str) -> None:
    with pytest.raises(ModelError) as caught:
        render(template, HELLO)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% include 'FILE' %}",
        "{% import 'FILE' as x %}{{ x }}",
        "{% extends 'FILE' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('FILE').read() }}",
        "{{ cycler.__init__.__globals__.os.popen('cat FILE').read() }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ ('{0.__class__}' | string).format_map({}) }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update({'content': 'x'}) }}",
    ],
)
def test_a_template_reaches_nothing_outside(template: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    try:
        rendered = render(template.replace("FILE", secret.as_posix()), HELLO)
    except ModelError:
        return
    assert rendered == ""  # an unsafe attribute reads as undefined, which prints as nothing


def doubling(step: str, start: str = "'aaaa'", use: str = "n.a | length") -> str:
    return f"{{% set n = namespace(a={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ {use} }}}}"


HUGE = {
    "times": "{{ 'a' * 10 ** 10 }}",
    "list times": "{{ [1] * 10 ** 10 }}",
    "range": "{{ range(10 ** 10) | list }}",
    "width": "{{ '{:1000000000}'.format(1) }}",
    "width from outside": "{{ '{:{w}}'.format(1, w=10000000000) }}",
    "percent": "{{ '%2000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (2000000000, 1) }}",
    "many percents": "{{ (('%9999d' * 300000) % ((1,) * 300000)) | length }}",
    "many fields": "{{ ('{0}' * 3000000).format('x' * 1000000) | length }}",
    "time": "{{ strftime_now('%999d' * 1000000) | length }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "center": "{{ 'a' | center(10000000000) }}",
    "indent": "{{ ('a\n' * 100000) | indent(1000000) }}",
    "tojson": "{{ [1, 2] | tojson(indent=10000000000) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "join": "{{ (['a'] * 100000) | join('y' * 1000000) }}",
    "output": "{% for a in range(100000) %}{% for b in range(100000) %}" + "x" * 1000 + "{% endfor %}{% endfor %}",
    "tilde": doubling("{% set n.a = n.a ~ n.a %}"),
    "plus": doubling("{% set n.a = n.a + n.a %}"),
    "bytes": doubling("{% set n.a = n.a + n.a %}", start="'a'.encode()"),
    "block": doubling("{% set n.a %}{{ n.a }}{{ n.a }}{% endset %}"),
    "macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + doubling("{% set n.a = f(n.a) %}"),
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of its memory")
@pytest.mark.parametrize("name", HUGE)
def test_a_template_cannot_fill_the_memory(name: str) -> None:
    """Refused: 10 million characters, Jinja's own limit of ranges, memory that it does not get. And the next one runs."""
    refusals = "larger than 10000000|more memory than it may|Range too big|too deeply|too large|ran for more than|process died"
    with pytest.raises(ModelError, match=refusals):
        render(HUGE[name], HELLO)
    assert render("{{ messages | length }}", HELLO) == "1"


def test_its_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one limit refuses another allows: it is the limit that refuses."""
    if sys.platform != "linux":
        pytest.skip("only Linux holds a process to a limit of its memory")
    large = "{{ ('a' * 400_000_000) | length }}"
    monkeypatch.setattr(sandbox, "_worker", None)
    monkeypatch.setattr(sandbox, "MEMORY_LIMIT", 300 << 20)
    with pytest.raises(ModelError, match="more memory than it may"):
        render(large, HELLO)
    monkeypatch.setattr(sandbox, "_worker", None)
    monkeypatch.setattr(sandbox, "MEMORY_LIMIT", 1 << 30)
    assert render(large, HELLO) == "400000000"


ENDLESS = {
    "ranges": "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "loops": "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "filters": "{% for a in range(100000) %}{{ range(100000) | sum }}{% endfor %}",
    "map": "{{ range(100000) | map('string') | map('upper') | map('lower') | map('trim') | list | length }}" * 100,
    # in one operation, which nothing inside Python could stop
    "power": "{{ 10 ** (10 ** 10) }}",
    "round": "{{ 1 | round(10 ** 9, 'ceil') }}",
    "sum of tuples": "{{ ([(1,)] * 250000) | sum(start=()) }}",
    "nested": doubling("{% set n.a = namespace(a=n.a, b=n.a) %}", use="n.a"),
    "comparison": doubling("{% set n.a, n.b = (n.a, n.a), (n.b, n.b) %}", use="n.a == n.b").replace("(a=", "(b='aaaa', a="),
    "many branches": "".join(f"{{% if a %}}{{% set v{i} = 1 %}}{{% endif %}}" for i in range(11_000)),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_cannot_run_for_ever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    render("", HELLO)  # its process has started
    monkeypatch.setattr(sandbox, "TIME_LIMIT_S", 0.2)
    began = monotonic()
    with pytest.raises(ModelError, match=r"stopped: it ran for more than 0\.2 seconds"):
        render(ENDLESS[name], HELLO)
    assert monotonic() - began < 5  # far more than it may take, on a machine that is busy


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a single process")
def test_ctrl_c_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answer that was under way is not taken for the next one's."""
    render("", HELLO)
    began = monotonic()
    # from outside: a signal that a thread sends its own process comes to this thread, and wakes no other
    subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -INT {os.getpid()}"])
    with pytest.raises(KeyboardInterrupt):
        render(ENDLESS["loops"], HELLO)
    assert monotonic() - began < sandbox.TIME_LIMIT_S
    assert render("{{ messages | length }}", HELLO) == "1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_fork_leaves_its_parent_the_process() -> None:
    script = """
import os, sys
from tinyllama import sandbox
from tinyllama.chat_template import render
render("", [])
before = sandbox._worker
if os.fork() == 0:
    sys.exit(0 if render("{{ 1 + 1 }}", []) == "2" and sandbox._worker is not before else 1)
_, status = os.wait()
print(status, render("{{ 1 + 2 }}", []), sandbox._worker is before)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert said.stdout == "0 3 True\n", said.stderr


def test_it_finds_no_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "_worker", None)
    assert render("{{ messages | length }}", HELLO) == "1"


def test_what_is_given_to_it() -> None:
    with pytest.raises(OptionError, match="text, numbers, lists and dicts only"):
        render("", [{"role": "user", "content": object()}])  # type: ignore[dict-item]


# --- a conversation --------------------------------------------------------------------------------------------------


class FakeModel:
    """A model whose replies are given: what ChatSession asks of it is written down. Tokens are characters."""

    def __init__(self, *replies: list[Any], template: str | None = CHATML) -> None:
        self.metadata = {} if template is None else {"tokenizer.chat_template": template}
        self.replies = list(replies)
        self.prompts: list[str] = []
        self.asked: dict[str, Any] = {}
        self.add_bos: list[bool | None] = []
        self.tokenizer = SimpleNamespace(bos=1, eos=2, piece=lambda id: [b"", b"<s>", b"</s>"][id], encode=self.encode)

    def context(self) -> str:
        return "a new context"

    def encode(self, text: str, *, add_bos: bool | None, parse_special: bool) -> list[int]:
        assert parse_special
        self.add_bos.append(add_bos)
        return [ord(c) for c in text]

    def generate(self, tokens: list[int], **asked: Any) -> FakeGeneration:
        self.prompts.append("".join(map(chr, tokens)))
        self.asked = asked
        pieces = self.replies.pop(0)
        if isinstance(pieces, Exception):
            raise pieces
        return FakeGeneration(pieces)


class FakeGeneration:
    def __init__(self, pieces: list[Any]) -> None:
        self.stop_reason: str | None = None
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                self.stop_reason = "interrupted"
                raise piece
            yield piece
        self.stop_reason = "end"


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_every_turn_gives_the_whole_conversation() -> None:
    model: Any = FakeModel(["Hi", " you"], ["Fine"])
    sampling = Sampling(temp=0)
    session = ChatSession(model, system="Be kind", sampling=sampling, n_predict=9)
    assert list(session.say("Hello")) == ["Hi", " you"]
    assert list(session.say("How?")) == ["Fine"]
    first = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    second = first + "Hi you<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
    assert model.prompts == [first, second]
    assert model.asked == {"n_predict": 9, "stop": [], "sampling": sampling, "context": "a new context"}
    assert session.messages == [{"role": "system", "content": "Be kind"}, *turns("Hello", "Hi you", "How?", "Fine")]
    assert session.stop_reason == "end"


def test_reset_keeps_the_system_message_only() -> None:
    model: Any = FakeModel(["Hi"])
    session = ChatSession(model, system="Be kind", context="given")  # type: ignore[arg-type]
    list(session.say("Hello"))
    session.reset()
    assert session.messages == [{"role": "system", "content": "Be kind"}]
    assert session.context == "given"


def test_what_was_said_before_an_interruption_stays() -> None:
    model: Any = FakeModel(["One", " two", KeyboardInterrupt()], ["Fine"])
    session = ChatSession(model)
    with pytest.raises(KeyboardInterrupt):
        list(session.say("Count"))
    assert session.messages == turns("Count", "One two")
    assert session.stop_reason == "interrupted"
    assert list(session.say("Go on")) == ["Fine"]
    assert session.messages == turns("Count", "One two", "Go on", "Fine")


def test_a_caller_may_stop_listening() -> None:
    model: Any = FakeModel(["One", " two", " three"])
    session = ChatSession(model)
    reply = session.say("Count")
    assert next(reply) == "One"
    reply.close()
    assert session.messages == turns("Count", "One")
    assert session.stop_reason == "interrupted"


@pytest.mark.parametrize("failure", [ContextFullError("full"), [KeyboardInterrupt()], [ContextFullError("full")]])
def test_a_turn_that_fails_before_the_reply_leaves_no_trace(failure: Any) -> None:
    model: Any = FakeModel(["Hi"], failure, ["Fine"])
    session = ChatSession(model)
    list(session.say("Hello"))
    with pytest.raises((ContextFullError, KeyboardInterrupt)):
        list(session.say("Long"))
    assert session.messages == turns("Hello", "Hi")
    assert list(session.say("Short")) == ["Fine"]
    assert session.messages == turns("Hello", "Hi", "Short", "Fine")


def test_an_empty_reply_is_a_reply() -> None:
    model: Any = FakeModel([])
    session = ChatSession(model)
    assert list(session.say("Hello")) == []
    assert session.messages == turns("Hello", "")


def test_a_template_that_refuses_leaves_the_session_usable() -> None:
    template = "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    session = ChatSession(FakeModel(["Hi"], template=template))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="refuses this conversation: no"):
        list(session.say("bad"))
    assert session.messages == []
    assert list(session.say("good")) == ["Hi"]


@pytest.mark.parametrize("template", [None, "", " \n"])
def test_a_model_without_a_template(template: str | None) -> None:
    with pytest.raises(ModelError, match=r"has no chat template.*--chat-template.*alpaca.*tinyllama run"):
        ChatSession(FakeModel(template=template))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "add_bos"), [("{{ bos_token }}x", False), ("x{{ bos_token }}", None), ("{{ eos_token }}x", None)]
)
def test_bos_is_not_doubled(template: str, add_bos: bool | None) -> None:
    model: Any = FakeModel(["Hi"], template=template)
    list(ChatSession(model).say("Hello"))
    assert model.add_bos == [add_bos]
    assert model.prompts == [template.replace("{{ bos_token }}", "<s>").replace("{{ eos_token }}", "</s>")]


# --- the command -----------------------------------------------------------------------------------------------------


def conversation(monkeypatch: pytest.MonkeyPatch, stdin: str, *replies: Any) -> tuple[ChatSession, FakeModel]:
    model: Any = FakeModel(*replies)
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    return ChatSession(model), model


def test_each_line_is_a_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    session, model = conversation(monkeypatch, "Hello\n\n  How are you? \n", ["Hi", " you"], ["Fine"])
    assert converse(session) == 0
    assert capsys.readouterr().out == "Hi you\nFine\n"  # replies and nothing else
    assert len(model.prompts) == 2


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    session, model = conversation(monkeypatch, "/help\nHello\n/reset\n/etc is?\n/quit\nnever\n", ["Hi"], ["A folder"])
    assert converse(session) == 0
    out, err = capsys.readouterr()
    assert out == "Hi\nA folder\n"
    assert "/reset begins a new conversation" in err
    assert "Hello" not in model.prompts[1]
    assert session.messages == turns("/etc is?", "A folder")


def test_ctrl_c_stops_the_reply_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = conversation(monkeypatch, "Count\nGo on\n", ["One", KeyboardInterrupt()], ["Fine"])
    assert converse(session) == 0
    assert capsys.readouterr().out == "One\nFine\n"


def test_a_script_learns_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = conversation(monkeypatch, "Hello\n", ContextFullError("the prompt does not fit"))
    with pytest.raises(TinyLlamaError, match="does not fit"):
        converse(session)


def test_at_a_terminal_an_error_does_not_end_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session, _ = conversation(monkeypatch, "", ContextFullError("the prompt does not fit"), ["Hi"])
    lines = iter(["long", "Hello"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, "/quit"))
    assert converse(session) == 0
    out, err = capsys.readouterr()
    assert out == "Hi\n"
    assert "the prompt does not fit" in err


# --- a real model ----------------------------------------------------------------------------------------------------


def test_the_second_turn_reads_only_what_is_new(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyllama import Model

    model = Model.load(smollm2, backend="numpy", n_ctx=512)
    session = ChatSession(model, system="Answer in one short sentence.", sampling=Sampling(temp=0), n_predict=24)
    read: list[int] = []
    evaluate = session.context.eval_top
    monkeypatch.setattr(session.context, "eval_top", lambda x, *a, **k: read.append(len(x)) or evaluate(x, *a, **k))
    first = "".join(session.say("What is the capital of France?"))
    assert "Paris" in first  # as an atlas says
    assert session.stop_reason == "end"

    read.clear()
    second = "".join(session.say("And of Italy?"))
    new = "<|im_end|>\n<|im_start|>user\nAnd of Italy?<|im_end|>\n<|im_start|>assistant\n"
    assert read[0] == len(model.tokenize(new))  # the first step of the turn; the reply is in the cache already
    assert set(read[1:]) == {1}

    # reading everything anew gives the same reply
    whole = ChatSession(model, system="Answer in one short sentence.", sampling=Sampling(temp=0), n_predict=24)
    whole.messages = session.messages[:-2]
    assert "".join(whole.say("And of Italy?")) == second
