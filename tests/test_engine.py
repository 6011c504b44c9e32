"""The engine around the graph: contexts, placement over several backends, and what is refused."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest

from backends import Options
from backends.numpy import Numpy
from ops.errors import ContextFullError, FormatError, ModelError, OptionError, TokenError
from tinyllama import Context, Model

TINY = Path(__file__).parent / "data" / "tiny"
TOKENS = [5, 70, 81, 12, 33, 9, 14, 2, 60]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy")


def test_two_contexts_of_one_model_do_not_meet(model):
    alone = model.context().eval(TOKENS)
    a, b = model.context(), model.context()
    for token in TOKENS:
        last = a.eval([token])
        b.eval([token + 1])
    # one token at a time and all at once are other BLAS calls, which add in another order: some 64 roundings of 2^-24
    np.testing.assert_allclose(last, alone, atol=1e-5 * np.abs(alone).max())
    assert (a.n_past, b.n_past) == (len(TOKENS), len(TOKENS))


def test_contexts_in_threads(model):
    expected = [model.context().eval([t, *TOKENS]) for t in range(4)]
    got = [None] * 4

    def work(t):
        context = model.context()
        for _ in range(5):
            context.rewind(0)
            got[t] = context.eval([t, *TOKENS])

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_cache_grows_as_it_is_used_and_keeps_what_it_holds():
    model = Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy", n_ctx=600)
    context = model.context()
    small = context.kv_bytes
    assert small < model.kv_bytes(600)
    tokens = np.random.default_rng(0).integers(0, model.config.n_vocab, 600).tolist()
    grown = np.concatenate([context.eval(tokens[i : i + 50], "all") for i in range(0, len(tokens), 50)])
    at_once = model.context().eval(tokens, "all")
    # other shapes of the same products: roundings of float32 over hundreds of summands
    np.testing.assert_allclose(grown, at_once, atol=1e-4 * np.abs(at_once).max())
    assert small < context.kv_bytes <= model.kv_bytes(600)


def test_logits_belong_to_the_caller(model):
    context = model.context()
    first = context.eval(TOKENS[:3])
    kept = first.copy()
    context.eval(TOKENS[3:])
    np.testing.assert_array_equal(first, kept)
    assert (first.dtype, first.shape, first.flags.owndata) == (np.float32, (model.config.n_vocab,), True)
    every = model.context().eval(TOKENS, "all")
    assert (every.dtype, every.shape, every.flags.owndata) == (np.float32, (len(TOKENS), model.config.n_vocab), True)


def test_rewind_and_go_on(model):
    context = model.context()
    truth = context.eval(TOKENS)
    context.eval([1, 2, 3])
    context.rewind(4)
    assert context.n_past == 4
    np.testing.assert_allclose(context.eval(TOKENS[4:]), truth, atol=1e-5 * np.abs(truth).max())  # as above
    for n in (-1, len(TOKENS) + 1):
        with pytest.raises(OptionError, match="the place to rewind to"):
            context.rewind(n)


@pytest.mark.parametrize(("layers", "parts"), [("0-1", 2), ("1", 2), ("output", 2), ("0", 3)])
def test_layers_may_live_on_different_backends(model, layers, parts):
    """Activations cross at the border, each layer's cache lives with it, and nothing else changes."""
    numpy = Numpy(Options(n_threads=4))
    split = Model.load(model.file.path, backend=numpy, layers=f"reference:{layers},numpy:input", n_ctx=600)
    tokens = TOKENS * 60  # long enough for numpy to cut the step into blocks
    truth = model.context(n_ctx=600).eval(tokens, "all")
    context = split.context()
    first_part = context.eval(tokens[:400], "all")
    # the second backend computes by formula: exp and sums in another order, in float32
    np.testing.assert_allclose(first_part, truth[:400], atol=1e-5 * np.abs(truth).max())
    np.testing.assert_allclose(context.eval(tokens[400:]), truth[-1], atol=1e-5 * np.abs(truth).max())
    assert len(split.placement.runs(split.graph)) == parts


def test_a_numpy_part_without_attention_takes_long_steps(model):
    """All layers on another backend: what is left is the embedding, and the output."""
    numpy = Numpy(Options(n_threads=4))
    split = Model.load(model.file.path, backend=numpy, layers="reference:0-1,numpy:input,numpy:output")
    tokens = TOKENS * 60
    truth = model.context(n_ctx=600).eval(tokens)
    np.testing.assert_allclose(split.context(n_ctx=600).eval(tokens), truth, atol=1e-5 * np.abs(truth).max())  # as above


def test_a_cache_that_cannot_grow_leaves_the_context_as_it_was(model, monkeypatch):
    context = model.context(n_ctx=600)
    context.eval(TOKENS)
    enlarge, calls = model.backend.enlarge, []

    def fail_at_the_second(buffer, rows):
        calls.append(rows)
        if len(calls) == 2:
            raise MemoryError
        return enlarge(buffer, rows)

    monkeypatch.setattr(model.backend, "enlarge", fail_at_the_second)
    with pytest.raises(MemoryError):
        context.eval([1] * 400)
    monkeypatch.undo()
    truth = model.context(n_ctx=600).eval(TOKENS + [1] * 400)
    np.testing.assert_allclose(context.eval([1] * 400), truth, atol=1e-4 * np.abs(truth).max())  # as for the cache that grows


def test_a_model_lets_go_of_its_file_and_weights():
    """At once, not when the garbage collector comes by: a second model may need the memory."""
    model = Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy")
    model.context().eval(TOKENS)
    weight, backend = weakref.ref(model.tensors["token_embd.weight"]), weakref.ref(model.backend)
    gc.disable()
    try:
        del model
        assert (weight(), backend()) == (None, None)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        ([], TokenError, "nothing to evaluate"),
        ([3, 100000], TokenError, "token id 100000 is not in the vocabulary"),
        ([-1], TokenError, "token id -1 is not in the vocabulary"),
        ([0.5], TokenError, "expected a list of token ids"),
        ([[1, 2]], TokenError, "expected a list of token ids"),
        ([[1], [2, 3]], TokenError, "expected a list of token ids"),
        ("abc", TokenError, "expected a list of token ids"),
        ([1] * 100_000, ContextFullError, "do not fit"),
    ],
)
def test_what_eval_refuses_leaves_the_context_as_it_was(model, tokens, error, says):
    context = model.context()
    context.eval(TOKENS)
    with pytest.raises(error, match=says):
        context.eval(tokens)
    assert context.tokens == TOKENS


def test_an_interrupt_while_the_cache_grows_loses_nothing(monkeypatch):
    """Between a larger cache and the plan that is to use it."""
    model, tokens = Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy", n_ctx=600), (TOKENS * 40)[:300]
    wanted = model.context().eval(tokens)
    context = model.context()
    context.eval(tokens[:10])

    def interrupt(name, buffer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(context._executor, "rebind", interrupt)
        with pytest.raises(KeyboardInterrupt):
            context.eval(tokens[10:])
    # two steps instead of one are other BLAS calls, which add in another order: some 64 roundings of 2^-24
    np.testing.assert_allclose(context.eval(tokens[10:]), wanted, atol=1e-5 * np.abs(wanted).max())


def test_an_interrupt_in_the_middle_of_a_prompt_leaves_the_context_as_it_was(model):
    context = model.context(n_batch=2)
    context.eval(TOKENS[:3])

    def interrupt(event):
        if event.node.output.name == "result_output" and context.n_past > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        context.eval(TOKENS[3:], observe=interrupt)
    assert context.tokens == TOKENS[:3]


def test_arguments_out_of_range(model):
    with pytest.raises(OptionError, match="logits = 'some'"):
        model.context().eval(TOKENS, "some")
    with pytest.raises(OptionError, match="n_ctx = 0"):
        Context(model, n_ctx=0)
    with pytest.raises(OptionError, match="n_batch = 0"):
        model.context(n_batch=0)
    with pytest.raises(OptionError, match="n_ctx = -5"):
        Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy", n_ctx=-5)
    with pytest.raises(OptionError, match="n_threads = 0"):
        Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy", n_threads=0)
    for name in ("mmap", "fuse", "precise", "repack"):
        with pytest.raises(OptionError, match=f"{name} = 'no': it must be True or False"):
            Model.load(TINY / "llama-gqa-tied.gguf", backend="numpy", **{name: "no"})


def write(path: Path, arch: str = "llama", *, metadata=None, change=None, leave_out=()) -> Path:
    """A model of one layer, written by the gguf package; `change` maps a tensor's name to another shape."""
    n, ff, vocab = 8, 16, 10
    shapes = {"token_embd.weight": (vocab, n), "output_norm.weight": (n,)}
    for name, shape in {
        "attn_norm": (n,), "ffn_norm": (n,), "attn_q": (n, n), "attn_k": (n, n), "attn_v": (n, n), "attn_output": (n, n),
        "ffn_gate": (ff, n), "ffn_up": (ff, n), "ffn_down": (n, ff),
    }.items():  # fmt: skip
        shapes[f"blk.0.{name}.weight"] = shape
    values = {
        "block_count": 1, "context_length": 32, "embedding_length": n, "feed_forward_length": ff,
        "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    } | (metadata or {})  # fmt: skip
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        if value is not None:
            add = {float: writer.add_float32, str: writer.add_string, list: writer.add_array}.get(
                type(value), writer.add_uint32
            )
            add(f"{arch}.{key}", value)
    rng = np.random.default_rng(0)
    for name, shape in (shapes | (change or {})).items():
        if name not in leave_out:
            writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_written_model_is_sound(tmp_path):
    assert Model.load(write(tmp_path / "m.gguf"), backend="numpy").context().eval([1, 2]).shape == (10,)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"arch": "mamba"}, "architecture 'mamba' is not supported; supported are falcon, llama, qwen2"),
        ({"leave_out": ["blk.0.ffn_up.weight"]}, "lacks the tensor blk.0.ffn_up.weight"),
        ({"leave_out": ["token_embd.weight"]}, "no tensor token_embd.weight"),
        ({"change": {"blk.0.attn_k.weight": (4, 8)}}, r"blk.0.attn_k.weight has shape \[4, 8\], expected \[8, 8\]"),
        ({"change": {"output_norm.weight": (8, 1)}}, r"output_norm.weight has shape \[8, 1\], expected \[8\]"),
        ({"metadata": {"block_count": 4_000_000_000}}, "block_count is 4000000000, but the file has 11 tensors"),
        ({"metadata": {"block_count": None}}, "no llama.block_count"),
        ({"metadata": {"attention.head_count": 0}}, "head_count is 0"),
        ({"metadata": {"attention.head_count_kv": 4}}, "no multiple of head_count_kv"),
        ({"metadata": {"attention.head_count": "two"}}, "head_count is 'two'"),
        ({"metadata": {"attention.layer_norm_rms_epsilon": float("nan")}}, "epsilon is nan"),
        ({"metadata": {"rope.dimension_count": 3}}, "rope.dimension_count = 3 must be even"),
        ({"metadata": {"rope.dimension_count": 6}}, "rope.dimension_count = 6 must be even and at most the head's 4"),
        ({"metadata": {"rope.scaling.type": "yarn"}}, "rope.scaling.type is 'yarn', which is not supported"),
        ({"metadata": {"expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"attention.sliding_window": "wide"}}, "sliding_window is 'wide', expected one number"),
        ({"metadata": {"feed_forward_length": [16, 8]}}, "expected one number"),
    ],
)
def test_a_file_that_holds_no_model_we_can_run(tmp_path, wrong, says):
    path = write(tmp_path / "m.gguf", **wrong)
    with pytest.raises(ModelError, match=says) as caught:
        Model.load(path, backend="numpy")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let a mapped file be cut short")
def test_a_file_that_shrank_is_seen_before_the_next_step(tmp_path):
    path = write(tmp_path / "m.gguf")
    context = Model.load(path, backend="numpy").context()
    context.eval([1])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    for touch in (lambda: context.eval([2]), lambda: context.warm_up(), lambda: context.model.context()):
        with pytest.raises(FormatError, match=r"m\.gguf"):
            touch()
    assert context.tokens == [1]


def test_read_and_mapped_give_the_same(tmp_path):
    path = write(tmp_path / "m.gguf")
    mapped, read = Model.load(path, backend="numpy"), Model.load(path, backend="numpy", mmap=False)
    assert (mapped.file.mapped, read.file.mapped) == (True, False)
    np.testing.assert_array_equal(mapped.context().eval([1, 2, 3]), read.context().eval([1, 2, 3]))
