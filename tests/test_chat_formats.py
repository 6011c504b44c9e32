"""Chat formats by name, against llama.cpp's renderings and the texts that Alpaca's and Falcon's makers published."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ops.errors import ModelError, OptionError
from tinyllama import Model
from tinyllama.chat import ChatSession
from tinyllama.chat_formats import FORMATS
from tinyllama.chat_template import render
from tinyllama.cli.main import main
from tinyllama.sampling import Sampling

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "chat_formats.json").read_text("utf-8"))
TINY = DATA / "tiny" / "llama-mha.gguf"  # a file without a template
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
HELLO = [{"role": "user", "content": "Hello"}]

# Taori et al. 2023, PROMPT_DICT of train.py in github.com/tatsu-lab/stanford_alpaca, with its own example of the data
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def conversation(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def named(name: str, messages: list[dict[str, str]], **settings: bool) -> str:
    return render(FORMATS[name].template, messages, **settings)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda c: f"{c['format']}-{c['conversation']}-{c['add_generation_prompt']}"
)
def test_renders_as_llama_cpp_does(case):
    messages = [{"role": role, "content": content} for role, content in GOLDEN["conversations"][case["conversation"]]]
    got = named(case["format"], messages, add_generation_prompt=case["add_generation_prompt"])
    assert got == case["expected"]


def test_every_format_has_a_source():
    assert set(FORMATS) == {case["format"] for case in GOLDEN["cases"]} | {"alpaca", "falcon", "falcon-180b"}


@pytest.mark.parametrize("instruction", ["Rank these numbers.", "Two\nlines ", " {braces} {{ 7 * 7 }} <b>&</b>"])
def test_alpaca_is_the_text_it_was_trained_on(instruction):
    messages = [{"role": "user", "content": instruction}]
    assert named("alpaca", messages) == ALPACA_NO_INPUT.replace("{instruction}", instruction)
    messages[0]["input"] = ""  # of many examples of the data
    assert named("alpaca", messages) == ALPACA_NO_INPUT.replace("{instruction}", instruction)
    messages[0]["input"] = "2, 10, 8\n\n3 "
    expected = ALPACA_INPUT.replace("{instruction}", instruction).replace("{input}", "2, 10, 8\n\n3 ")
    assert named("alpaca", messages) == expected
    # in training the response follows at once: f"{prompt}{output}"
    trained = named("alpaca", [*messages, {"role": "assistant", "content": "10"}], add_generation_prompt=False)
    assert trained == expected + "10\n"


def test_alpaca_goes_on_and_takes_a_system_message():
    """Stanford's data has one turn; what comes after repeats its marks. The first line is that of the first turn."""
    start = ALPACA_NO_INPUT.replace("{instruction}", "Say a")
    assert named("alpaca", conversation("Say a", "a", "Say b")) == f"{start}a\n\n### Instruction:\nSay b\n\n### Response:"
    later = [*conversation("Say a", "a"), {"role": "user", "content": "Add", "input": "1, 2"}]
    expected = f"{start}a\n\n### Instruction:\nAdd\n\n### Input:\n1, 2\n\n### Response:"
    assert named("alpaca", later) == expected
    assert named("alpaca", conversation("Hi", system="Be kind.")) == "Be kind.\n\n### Instruction:\nHi\n\n### Response:"


def test_falcon_is_the_text_of_its_makers():
    """Falcon-Instruct: User and Assistant, as its makers said on its page (tiiuae/falcon-7b-instruct, discussion 1); the newer
    tokenizer_config.json has a blank line between them. Falcon-180B-Chat: huggingface.co/blog/falcon-180b, "Prompt format"."""
    assert named("falcon", conversation("Hello")) == "User: Hello\nAssistant:"
    talk = conversation("Hello", " Hi", "Who are you?", system="Answer briefly.")
    assert named("falcon", talk) == "Answer briefly.\nUser: Hello\nAssistant: Hi\nUser: Who are you?\nAssistant:"
    talk = conversation(
        "This is the user input",
        "This is what the model generates",
        "This might be a second turn input",
        system="Add an optional system prompt here",
    )
    assert named("falcon-180b", talk) == (
        "System: Add an optional system prompt here\nUser: This is the user input\n"
        "Falcon: This is what the model generates\nUser: This might be a second turn input\nFalcon:"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_what_follows_a_reply_is_a_stop_text(name):
    """A model that goes on with the person's part itself is stopped there: a reply never holds the next turn's mark."""
    after = named(name, conversation("Q", "REPLY", "R")).partition("REPLY")[2]
    assert after.lstrip("\n").startswith(tuple(FORMATS[name].stop))


# --- choosing one ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model.load(TINY, backend="numpy", n_ctx=512)


def test_a_model_without_a_template_names_the_flag_and_the_formats(tiny, capsys):
    with pytest.raises(ModelError) as caught:
        tiny.chat(HELLO)
    told = str(caught.value)
    assert "--chat-template" in told
    assert all(name in told for name in FORMATS)
    assert main(["chat", "--backend", "numpy", "-m", str(TINY)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.strip().splitlines()[-1]) == ("", f"tinyllama chat: {told}")


@pytest.mark.parametrize("wrong", ["alpacca", "", "Alpaca", "no braces", 3, ["alpaca"]])
def test_no_such_format(tiny, wrong):
    with pytest.raises(OptionError, match=r"chat template .*known names are alpaca, chatml"):
        tiny.chat(HELLO, chat_template=wrong)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hello",
        ["Hello"],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": 1, "content": "x"}],
        None,
    ],
)
def test_what_are_no_messages(tiny, messages):
    with pytest.raises(OptionError, match="expected"):
        tiny.chat(messages, chat_template="alpaca")


def test_an_input_needs_a_place(tiny):
    message = {"role": "user", "content": "Sum", "input": "1, 2"}
    with pytest.raises(OptionError, match="no place for an input"):
        tiny.chat([message], chat_template="vicuna")
    tiny.chat([message], chat_template="{{ messages[0].input }}")


@pytest.mark.parametrize("stop", [None, 3, ["a", 3]])
def test_what_are_no_stop_texts(tiny, stop):
    with pytest.raises(OptionError, match="expected a text or a list of texts"):
        tiny.chat(HELLO, chat_template="alpaca", stop=stop)


# --- replies ---------------------------------------------------------------------------------------------------------


def test_chat_is_generate_on_the_formats_text(tiny):
    reply = tiny.chat(HELLO, chat_template="falcon", n_predict=20, temp=0)
    same = tiny.generate("User: Hello\nAssistant:", n_predict=20, temp=0)
    assert ("".join(reply), reply.tokens) == ("".join(same), same.tokens)
    assert reply.prompt == same.prompt


def test_a_template_of_ones_own_and_an_end_of_ones_own(tiny):
    template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    reply = tiny.chat(HELLO, chat_template=template, n_predict=30, temp=0, stop="never said")
    assert tiny.detokenize(reply.prompt) == "user=Hello;"
    text = "".join(reply)
    stopped = tiny.chat(HELLO, chat_template=template, n_predict=30, temp=0, stop=text[4:6])
    assert "".join(stopped) == text[: text.index(text[4:6])]
    assert stopped.stop_reason == "stop"


@pytest.mark.parametrize("mark", ["### Instruction:", "\n\n### Instruction:"])
def test_a_formats_stop_text_ends_a_reply(tiny, mark, monkeypatch):
    """The model is made to write its answer, then the next instruction by itself, a token at a time."""
    wanted = tiny.tokenize("a thing." + mark + "and more", add_bos=False)
    monkeypatch.setattr("tinyllama.sampling.Sampler.sample", lambda self, *logits: wanted.pop(0))
    session = ChatSession(tiny, chat_template="alpaca", n_predict=len(wanted))
    assert "".join(session.say("Name one")).strip(" ") == "a thing."
    assert session.stop_reason == "stop"
    assert wanted  # it was not asked for the rest


def test_a_session_takes_an_input(tiny):
    session = ChatSession(tiny, chat_template="alpaca", n_predict=1, sampling=Sampling(temp=0))
    list(session.say("Sum up", input="A text."))
    read = tiny.detokenize(session.context.tokens)
    assert read.startswith(ALPACA_INPUT.replace("{instruction}", "Sum up").replace("{input}", "A text."))


def test_smollm2_answers_in_its_form_by_name(smollm2):
    model = Model.load(smollm2, backend="numpy", n_ctx=512)
    messages = conversation("What is the capital of France?", system="Answer in one short sentence.")
    own = model.chat(messages, n_predict=24, temp=0)
    assert "Paris" in "".join(own)  # as an atlas says
    assert own.stop_reason == "end"
    by_name = model.chat(messages, chat_template="chatml", n_predict=24, temp=0)
    assert by_name.prompt == own.prompt  # its own template is ChatML
    context = model.context()
    first = "".join(model.chat(messages, context=context, n_predict=24, temp=0))
    more = [*messages, {"role": "assistant", "content": first}, {"role": "user", "content": "And of Italy?"}]
    second = model.chat(more, context=context, n_predict=24, temp=0)
    assert "Rome" in "".join(second)
    assert second.timings.prompt_tokens < 30  # what is new only, of some 60


# --- the command -----------------------------------------------------------------------------------------------------


def chat(monkeypatch, stdin: str, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    return main(["chat", "--backend", "numpy", "-m", str(TINY), "-c", "512", "-n", "3", "--temp", "0", *flags])


def prompts(monkeypatch) -> list[str]:
    """The prompts that the command gives the model."""
    seen: list[str] = []
    generate = Model.generate

    def watched(self, prompt, **settings):
        seen.append(self.detokenize(prompt))
        return generate(self, prompt, **settings)

    monkeypatch.setattr(Model, "generate", watched)
    return seen


def test_a_format_by_name(monkeypatch):
    seen = prompts(monkeypatch)
    assert chat(monkeypatch, "Hello\n", "--chat-template", "vicuna", "-sys", "Be kind.") == 0
    assert seen == ["Be kind.\n\nUSER: Hello\nASSISTANT:"]


def test_alpacas_input(monkeypatch):
    seen = prompts(monkeypatch)
    assert chat(monkeypatch, "Sum up\nAgain\n/reset\nAnew\n", "--chat-template", "alpaca", "--input", "A text.") == 0
    expected = ALPACA_INPUT.replace("{input}", "A text.")
    assert seen[0] == expected.replace("{instruction}", "Sum up")
    assert seen[1].startswith(seen[0])
    assert seen[1].endswith("### Instruction:\nAgain\n\n### Response:")
    assert seen[2] == expected.replace("{instruction}", "Anew")


def test_a_jinja_text_and_a_file_of_it(monkeypatch, tmp_path):
    seen = prompts(monkeypatch)
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    path = tmp_path / "template.jinja"
    path.write_text(template, "utf-8")
    assert chat(monkeypatch, "Hello\n", "--chat-template", template) == 0
    assert chat(monkeypatch, "Hello\n", "--chat-template-file", str(path)) == 0
    assert seen == ["[Hello]"] * 2


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--chat-template", "alpacca"], 1, "known names are alpaca"),
        (["--chat-template-file", "no/such/file"], 1, "cannot read no/such/file"),
        (["--chat-template", "alpaca", "--chat-template-file", "x"], 2, "not allowed with"),
        (["--chat-template", "vicuna", "--input", "x"], 1, "no place for an input"),
        (["--chat-template", "{{ raise_exception('no') }}"], 1, "refuses this conversation: no"),
        (["--chat-template", ENDLESS], 1, "it ran for more than 0.2"),
        (["--chat-template", "{{ 'a' * 10 ** 10 }}"], 1, "was stopped: it takes more memory than it may"),
        (["--chat-template", "{% include '/etc/hostname' %}"], 1, "the chat template failed"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)  # fmt: skip
def test_a_bad_template_is_one_sentence(monkeypatch, capsys, flags, code, told):
    """Those of the command line run in the sandbox too."""
    monkeypatch.setattr("tinyllama.sandbox.TIME_LIMIT_S", 0.2)
    try:
        got = chat(monkeypatch, "Hello\n", *flags)
    except SystemExit as stop:
        got = stop.code
    out, err = capsys.readouterr()
    assert (got, out) == (code, "")
    assert told in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_reverse_prompts_end_a_reply(monkeypatch, capsys):
    assert chat(monkeypatch, "Hello\n", "--chat-template", "falcon", "-n", "30") == 0
    text = capsys.readouterr().out.removesuffix("\n")
    assert chat(monkeypatch, "Hello\n", "--chat-template", "falcon", "-n", "30", "-r", "never", "-r", text[5:8]) == 0
    assert capsys.readouterr().out == text[: text.index(text[5:8])] + "\n"
