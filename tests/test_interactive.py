"""`tinyllama run -i` and `-ins`: whose turn it is, what the model reads, at a terminal and through pipes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.errors import ContextFullError
from tinyllama import Generation, Model
from tinyllama.cli.main import main
from tinyllama.interaction import Interaction
from tinyllama.sampling import Sampler

TINY = Path(__file__).parent / "data" / "tiny" / "llama-mha.gguf"
ON_NUMPY = ["run", "--backend", "numpy"]
RUN = [sys.executable, "-m", "tinyllama", *ON_NUMPY, "-m", str(TINY)]


@cache
def tiny() -> Model:
    return Model.load(TINY, backend="numpy", n_ctx=512)


# --- stop texts ------------------------------------------------------------------------------------------------------

PIECES = [*"andthe", "an", "nd", "th", "he", "the", "and"]


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12), st.lists(st.text("andthe", min_size=1, max_size=6), max_size=3)
)
def test_stop_texts_end_a_text_wherever_tokens_split_them(pieces, stops):
    """By plain loops: after the first token with which a stop text is there, the text ends before it."""
    waiting = [tiny().metadata["tokenizer.ggml.tokens"].index(piece) for piece in pieces]
    expected, reason, used = "".join(pieces), "length", len(pieces)
    for n in range(1, len(pieces) + 1):
        text = "".join(pieces[:n])
        if found := [text.index(stop) for stop in stops if stop in text]:
            expected, reason, used = text[: min(found)], "stop", n
            break
    with patch.object(Sampler, "sample", lambda sampler, *logits: waiting.pop(0)):
        generation = tiny().generate("x", n_predict=len(pieces), stop=stops)
        assert ("".join(generation), generation.stop_reason, len(generation.tokens)) == (expected, reason, used)


# --- turns -----------------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, stdin: str, turns: list[str], *flags: str) -> tuple[list[str], int]:
    """The texts that the model reads, and the exit code. What it says is given: a byte a token, and $ is its end."""
    read: list[str] = []
    waiting: list[str] = []
    generate = Model.generate

    def watched(model: Model, prompt: list[int], **options: Any) -> Generation:
        read.append(model.detokenize(prompt))
        waiting[:] = turns[len(read) - 1]
        return generate(model, prompt, **options)

    def sample(sampler: Sampler, *logits: object) -> int:
        char = waiting.pop(0)
        return 2 if char == "$" else 3 + ord(char)  # of the tiny vocabulary: </s>, and the first of the 256 bytes

    monkeypatch.setattr(Model, "generate", watched)
    monkeypatch.setattr(Sampler, "sample", sample)
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    code = main([*ON_NUMPY, "-m", str(TINY), "-c", "2000", *flags])
    return read, code


def joined(*parts: str) -> str:
    """Parts as the tiny model's SentencePiece joins them: a space comes before each text that is made into tokens."""
    return " ".join(parts)


def test_a_reverse_prompt_gives_the_turn_and_stays_in_the_text(monkeypatch, capsys):
    read, code = run(
        monkeypatch, "hi\nbye\n", [" hello.\nuser:", "\nend.\nuser:"], "-i", "-p", "a talk.\nuser:", "-r", "user:", "-n", "-1"
    )
    assert code == 0
    assert read[0] == joined("a talk.\nuser:", "hi\n")  # the prompt ends with the reverse prompt: the person begins
    assert read[1] == joined("a talk.\nuser:", "hi\n hello.\nuser:", "bye\n")
    assert capsys.readouterr().out == " hello.\nuser:\nend.\nuser:"  # what the model wrote, and nothing else


def test_prefix_and_suffix(monkeypatch, capsys):
    flags = ["-i", "-p", "user:", "-r", "user:", "--in-prefix", " <", "--in-suffix", r">\nbot:", "-n", "-1"]
    read, _ = run(monkeypatch, "hi\n", [" yes\nuser:"], *flags)
    assert read == [joined("user:", " <hi\n>\nbot:")]
    assert capsys.readouterr().out == " <>\nbot: yes\nuser: <"


def test_the_model_begins_without_a_reverse_prompt_and_an_empty_line_lets_it_go_on(monkeypatch, capsys):
    read, _ = run(monkeypatch, "\nthen\n", ["and a man", " was here", ". the end"], "-i", "-p", "once", "-n", "9")
    assert read == ["once", "onceand a man", joined("onceand a man was here", "then\n")]
    out, err = capsys.readouterr()
    assert out == "and a man was here. the end"
    assert err.count("stopped after -n tokens") == 3


def test_the_end_of_the_models_text_is_a_line_break_and_the_first_reverse_prompt(monkeypatch, capsys):
    read, _ = run(monkeypatch, "hi\n", ["fine$", "well$"], "-i", "-p", "hello", "-r", "user:", "-r", "you:")
    assert read == ["hello", joined("hellofine", "\nuser:", "hi\n")]
    assert capsys.readouterr().out == "fine\nuser:well\nuser:"


def test_a_line_may_go_on_after_a_backslash(monkeypatch):
    read, _ = run(monkeypatch, "one\\\ntwo\\\nthree\n", ["x"], "-i", "-p", "user:", "-r", "user:", "-n", "1")
    assert read == [joined("user:", "one\ntwo\nthree\n")]


def test_instructions_are_in_alpacas_form(monkeypatch, capsys):
    turns = ["an answer.$", "a second.\n\n### Instruction:", "a third.$"]
    read, code = run(monkeypatch, "do this\nand that\nand more\n", turns, "-ins", "-n", "-1")
    assert code == 0
    first = (  # the first line of Stanford Alpaca's prompt, and the marks of llama.cpp's main of 2023
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        " \n\n### Instruction:\n\ndo this\n\n### Response:\n\n"
    )
    second = first + "an answer. \n\n### Instruction:\n\nand that\n\n### Response:\n\n"
    third = second + "a second.\n\n### Instruction: \n\nand more\n\n### Response:\n\n"  # not asked for twice
    assert read == [first, second, third]
    assert capsys.readouterr().out == "an answer.\na second.\n\n\na third.\n"


def test_the_prompt_of_instructions_may_be_given(monkeypatch):
    read, _ = run(monkeypatch, "do\n", ["x$"], "-ins", "-p", "be brief.", "--in-prefix", "[", "--in-suffix", "]", "-r", "stop")
    assert read == ["be brief. \n\n### Instruction:\n\n[do]\n\n### Response:\n\n"]


def test_a_reverse_prompt_without_turns_ends_the_text(monkeypatch, capsys):
    run(monkeypatch, "never read\n", ["one two three"], "-p", "count", "-r", "never", "-r", r"two\x20")
    assert capsys.readouterr().out == "one "


@pytest.mark.parametrize("flag", ["--in-prefix", "--in-suffix", "--keep"])
def test_flags_of_turns_need_turns(flag, capsys):
    assert main([*ON_NUMPY, "-m", str(TINY), flag, "1"]) == 1
    assert f"{flag} has a meaning with -i or -ins only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "stdin", "told"),
    [
        (["-c", "8", "-p", "a long prompt"], "", "too many to go on by turns in n_ctx = 8"),
        (["-c", "20", "-p", "a", "-n", "1"], "x" * 30 + "\n", "the context has room for 19"),
    ],
)
def test_what_does_not_fit_is_one_sentence(monkeypatch, capsys, flags, stdin, told):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    assert main([*ON_NUMPY, "-m", str(TINY), "-i", *flags]) == 1
    assert told in capsys.readouterr().err.strip().splitlines()[-1]


# --- a full context --------------------------------------------------------------------------------------------------


def by_plain_loops(prompt: list[int], n_ctx: int, n_keep: int, n: int) -> list[int]:
    """llama.cpp's main of 2023: when the next token does not fit, the first n_keep stay, and half of what comes after them."""
    context = tiny().context(n_ctx=n_ctx)
    logits, written = context.eval(prompt), []
    while len(written) < n:
        token = int(np.argmax(logits))
        written.append(token)
        if context.n_past + 1 > n_ctx:
            past, n_left = context.tokens, context.n_past - n_keep
            kept = past[:n_keep] + past[len(past) - n_left // 2 :]
            context = tiny().context(n_ctx=n_ctx)
            context.eval(kept)
        logits = context.eval([token])
    return written


@pytest.mark.parametrize(("n_ctx", "keep", "n_keep"), [(16, 0, 1), (16, 2, 3), (16, -1, 5), (21, 3, 4)])
def test_the_context_swap_is_llama_cpps(n_ctx, keep, n_keep):
    """bos always stays, so keep = 2 means three tokens."""
    prompt = [1, 300, 301, 270, 280]
    interaction = Interaction(tiny().context(n_ctx=n_ctx), prompt, n_keep=keep)
    text = "".join(interaction.write(n_predict=50, temp=0, ignore_eos=True))
    expected = by_plain_loops(prompt, n_ctx, n_keep, 50)
    assert text == b"".join(map(tiny().tokenizer.visible_piece, expected)).decode("utf-8", "replace")
    assert interaction.stop_reason == "length"
    assert interaction.tokens[:n_keep] == prompt[:n_keep]
    assert len(interaction.tokens) <= n_ctx + 1


def test_a_turn_that_does_not_fit_pushes_out_what_is_old():
    interaction = Interaction(tiny().context(n_ctx=40), tiny().tokenize("keep me"), n_keep=-1)
    for word in ("first", "second", "third", "fourth", "fifth"):
        interaction.read(word)
        list(interaction.write(n_predict=2, temp=0, ignore_eos=True))
    text = tiny().detokenize(interaction.tokens)
    assert text.startswith("keep me")
    assert "fifth" in text
    assert "first" not in text
    with pytest.raises(ContextFullError, match="the context has room for"):
        interaction.read("x" * 40)
    assert tiny().detokenize(interaction.tokens) == text  # it was not taken


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_written():
    interaction = Interaction(tiny().context(n_ctx=200), tiny().tokenize("hello"))
    pieces: Iterator[str] = interaction.write(temp=0, ignore_eos=True)
    said = next(pieces) + next(pieces)
    pieces.close()
    assert interaction.stop_reason == "interrupted"
    assert tiny().detokenize(interaction.tokens) == "hello" + said
    interaction.read("stop")
    more = "".join(interaction.write(n_predict=3, temp=0, ignore_eos=True))
    assert tiny().detokenize(interaction.tokens) == f"hello{said} stop\n{more}"


POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals, and sends no SIGINT to one process")


class Terminal:
    """A command at a pseudo-terminal, which shows stdout and stderr."""

    def __init__(self, argv: list[str]) -> None:
        import fcntl
        import pty
        import termios

        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,  # so that ^C is a signal
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, seconds: float = 60) -> str:
        """What is shown up to this text, which must come."""
        import select

        end = time.monotonic() + seconds
        while text not in self.shown:
            if not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not come: {self.shown[-500:]!r}")
            try:
                self.shown += os.read(self.master, 65536).decode("utf-8", "replace").replace("\r\n", "\n")
            except OSError:  # Linux's way to say that the program has ended
                raise AssertionError(f"{text!r} did not come before the end: {self.shown[-500:]!r}") from None
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def ends(self) -> int:
        """The exit code, after all was read that is still shown."""
        try:
            while part := os.read(self.master, 65536):
                self.shown += part.decode("utf-8", "replace").replace("\r\n", "\n")
        except OSError:
            pass
        return self.process.wait(60)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@POSIX
def test_instructions_at_a_terminal():
    flags = ["-ins", "-n", "6", "--temp", "0", "--ignore-eos", "-c", "2000"]
    with Terminal([*RUN, *flags]) as terminal:
        before = terminal.until("\n> ")
        assert "Ctrl-C while the model writes" in before
        assert "appropriately completes the request." in before  # the prompt is shown
        terminal.type("do this\n")
        assert "(stopped after -n tokens" in terminal.until("\n> ")
        terminal.type("\n")
        assert "(stopped after -n tokens" in terminal.until("\n> ")
        terminal.type("\x04")
        assert terminal.ends() == 0
        assert "Traceback" not in terminal.shown


@POSIX
def test_ctrl_c_at_a_terminal_gives_the_turn_then_ends():
    flags = ["-i", "-n", "-1", "--temp", "0", "--ignore-eos", "-c", "5000", "-p", "hello"]
    with Terminal([*RUN, *flags]) as terminal:
        terminal.until("Ctrl-D, or Ctrl-C while you write, ends.")
        terminal.until("hello")
        time.sleep(0.5)  # the text has begun
        terminal.type("\x03")
        terminal.until("^C")
        time.sleep(0.5)
        assert terminal.process.poll() is None  # the turn is the person's
        terminal.type("go on\n")
        terminal.until("go on")
        time.sleep(0.5)
        terminal.type("\x03")
        terminal.until("^C")
        time.sleep(0.5)
        terminal.type("\x03")
        assert terminal.ends() == 130
        assert "Traceback" not in terminal.shown


@POSIX
def test_ctrl_c_through_pipes_gives_the_turn():
    argv = [*RUN, "-i", "-n", "-1", "--temp", "0", "--ignore-eos", "-c", "5000", "-p", "hello"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(20)  # the text has begun
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        _, err = process.communicate(b"", timeout=60)  # the end of stdin
    assert process.returncode == 0, err  # not 130: it was the model's turn that ended
    assert b"Traceback" not in err


# --- the real model --------------------------------------------------------------------------------------------------


def test_smollm2_follows_an_instruction(smollm2, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is the capital of France?\n"))
    assert main([*ON_NUMPY, "-m", str(smollm2), "-ins", "-n", "24", "--temp", "0", "-c", "512"]) == 0
    assert "Paris" in capsys.readouterr().out  # as an atlas says
