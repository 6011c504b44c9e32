"""Layers on a device: wherever they are put the logits stay the same, and memory is counted before it is taken."""

from __future__ import annotations

import gc
import re
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend import MIB, NoRope, Pretend

from backends import Backend, Options
from backends.numpy import Numpy
from ops.errors import BackendError, OptionError, TinyLlamaError
from tinyllama import Model, load_summary
from tinyllama.cli.main import main
from tinyllama.offload import parse_map

N_LAYER, N_EMBD, N_VOCAB, N_CTX = 6, 32, 96, 40
TOKENS = [5, 70, 81, 12, 33, 9, 14, 2, 60, 41, 7]

# Other orders of the same float32 sums over six layers, some hundreds of roundings of 2^-24 each
F32 = 2e-5
# Keys and values are rounded to 11 bits, 2^-12 of each at most, and the errors of six layers add up
F16 = 5e-3


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Six layers with random weights, output tied to the embedding; written by the gguf package."""
    path = tmp_path_factory.mktemp("model") / "six.gguf"
    n, kv, ff = N_EMBD, N_EMBD // 2, 64
    shapes = {"token_embd.weight": (N_VOCAB, n), "output_norm.weight": (n,)}
    for i in range(N_LAYER):
        for name, shape in {
            "attn_norm": (n,), "ffn_norm": (n,), "attn_q": (n, n), "attn_k": (kv, n), "attn_v": (kv, n),
            "attn_output": (n, n), "ffn_gate": (ff, n), "ffn_up": (ff, n), "ffn_down": (n, ff),
        }.items():  # fmt: skip
            shapes[f"blk.{i}.{name}.weight"] = shape
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": N_LAYER, "context_length": N_CTX, "embedding_length": n, "feed_forward_length": ff,
        "attention.head_count": 4, "attention.head_count_kv": 2,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    rng = np.random.default_rng(3)
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(name, rng.uniform(0.5, 1.5, shape).astype(np.float32))
        else:
            quantised = gguf.quants.quantize(rng.standard_normal(shape, np.float32) / 4, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def opencl() -> Backend:
    """With activations in float32, since what is tested here is where layers are, and their results are numpy's then."""
    from backends.opencl import OpenCL

    try:
        return OpenCL(Options(precise=True))
    except BackendError as error:
        pytest.skip(f"no OpenCL device: {error}")


@pytest.fixture(scope="module", params=["pretend", "opencl"])
def device(request) -> Backend:
    return Pretend() if request.param == "pretend" else request.getfixturevalue("opencl")


@pytest.fixture(scope="module")
def truth(path):
    return walk(Model.load(path, backend="numpy"))


def walk(model: Model) -> list[np.ndarray]:
    """Logits of a prefill, of steps of one token, and of what follows after a rewind into the prompt."""
    context = model.context(n_batch=7)
    logits = [*context.eval(TOKENS, "all")]
    logits += [context.eval([token]) for token in (3, 90, 44)]
    context.rewind(4)
    logits += [*context.eval([17, 23, 8], "all")]
    return [*logits, context.eval([1])]


def assert_close(got, expected, tolerance):
    for step, (a, b) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0, err_msg=f"step {step}")


# --- the same logits wherever layers are --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(N_LAYER + 3), -1, "all", "auto", None])
def test_every_n_gives_the_logits_of_numpy(path, device, truth, n):
    model = Model.load(path, backend=device, n_gpu_layers=n, type_k="f32", type_v="f32")
    assert_close(walk(model), truth, F32)
    on_device = N_LAYER + 1 if n in (-1, "all", "auto", None) else min(n, N_LAYER + 1)
    assert model.placement.count(device) == on_device
    assert model.placement.layers[::-1].count(device) == min(on_device, N_LAYER)
    assert all(backend is device for backend in model.placement.layers[N_LAYER - on_device :] if on_device <= N_LAYER)
    everything = on_device == N_LAYER + 1
    assert (model.placement.input is device, model.placement.output is device) == (everything, everything)


@pytest.mark.parametrize("n", [0, 1, N_LAYER, "all"])
@pytest.mark.parametrize("types", [(None, None), ("f16", "f32"), ("f32", "f16"), ("f16", "f16")])
def test_caches_in_half_precision(path, device, truth, n, types):
    model = Model.load(path, backend=device, n_gpu_layers=n, type_k=types[0], type_v=types[1])
    assert_close(walk(model), truth, F16)
    for name, (layer, _) in model.caches().items():
        wanted = types[0] if name.startswith("cache_k") else types[1]
        own = "f16" if model.placement.layers[layer] is device else "f32"
        assert model.cache_dtypes[name] == {"f16": np.float16, "f32": np.float32}[wanted or own]


@pytest.mark.parametrize("fuse", [True, False])
def test_numpy_keeps_halves_as_the_formulas_do(path, fuse, truth):
    """A value that lies between two halves may be rounded to another one after another order of sums: 2^-11, once or twice."""
    models = [Model.load(path, backend=b, type_k="f16", type_v="f16", fuse=fuse) for b in ("numpy", "reference")]
    numpy, formulas = map(walk, models)
    assert_close(numpy, formulas, 5e-4)
    assert_close(numpy, truth, F16)
    assert any(np.abs(a - b).max() > 1e-5 * np.abs(b).max() for a, b in zip(numpy, truth, strict=True))  # halves it was
    assert models[0].kv_bytes(10) * 2 == Model.load(path, backend="numpy").kv_bytes(10)


def test_numpy_cuts_long_steps_with_halves_too(path):
    """Blocks of a prompt on several threads read what the block before wrote."""
    tokens = (TOKENS * 60)[:600]
    models = [
        Model.load(path, backend="numpy", n_threads=t, n_ctx=700, n_batch=600, type_k="f16", type_v="f16") for t in (1, 4)
    ]
    one, four = (model.context().eval(tokens, "all") for model in models)
    assert_close([four], [one], 5e-4)  # as above


@st.composite
def maps(draw) -> str:
    """Any cut of six layers, any backend for each piece, possibly with holes and named ends."""
    names = st.sampled_from(["numpy", "opencl", "pretend:Pretend", "pretend:Pretend@small", "reference"])
    cuts = [0, *sorted(draw(st.sets(st.integers(1, N_LAYER - 1)))), N_LAYER]
    parts = [(draw(names), f"{a}-{b - 1}" if b - a > 1 or draw(st.booleans()) else f"{a}") for a, b in pairwise(cuts)]
    parts = [part for part in parts if draw(st.integers(0, 5))]
    parts += [(draw(names), end) for end in ("input", "output") if draw(st.booleans())]
    parts = draw(st.permutations(parts or [("opencl", "3")]))
    return ",".join(f"{name}:{where}" for name, where in parts)


@settings(max_examples=25)
@given(layers=maps())
def test_any_map_gives_the_logits_of_numpy(path, opencl, truth, layers):
    layers += "" if "opencl" in layers else ",opencl:output" if "output" not in layers else ""
    model = Model.load(path, backend=opencl if "opencl" in layers else "numpy", layers=layers, type_k="f32", type_v="f32")
    assert_close(walk(model), truth, F32)


def test_a_map_is_followed(path):
    model = Model.load(path, layers="pretend:Pretend@1:5,pretend:Pretend:1-2,pretend:Pretend@1:3,numpy:output")
    names = [(b.name, b.options.device) for b in model.placement.layers]
    assert names == [
        ("numpy", None), ("pretend", None), ("pretend", None), ("pretend", "1"), ("numpy", None), ("pretend", "1"),
    ]  # fmt: skip
    assert model.placement.layers[3] is model.placement.layers[5]  # named twice, one backend
    assert model.placement.layers[3].device.name == "small"
    assert model.placement.input is model.placement.layers[0] is model.placement.output
    ends = Model.load(path, layers="pretend:Pretend:0,reference:5").placement
    assert (ends.input.name, ends.output.name) == ("pretend", "reference")


@pytest.mark.parametrize("n", [1, 3, N_LAYER + 1])
def test_greedy_text_is_the_same(path, device, n):
    """Until the best two are nearly equal: then the rounding decides."""
    model, host = (
        Model.load(path, backend=device, n_gpu_layers=n, type_k="f32", type_v="f32"),
        Model.load(path, backend="numpy"),
    )
    a, b = model.context(), host.context()
    x, y = a.eval(TOKENS), b.eval(TOKENS)
    for _ in range(N_CTX - len(TOKENS)):
        second, best = np.sort(y)[-2:]
        if best - second < 0.05:
            break
        assert x.argmax() == y.argmax()
        x, y = a.eval([int(y.argmax())]), b.eval([int(y.argmax())])


def test_smollm2_says_the_same(smollm2, opencl):
    texts = []
    for where in ({"backend": "numpy"}, {"backend": opencl, "n_gpu_layers": 17, "type_k": "f32", "type_v": "f32"}):
        model = Model.load(smollm2, n_ctx=64, **where)
        texts.append("".join(model.generate("The capital of France is", n_predict=8, temp=0)))
    assert texts[0] == texts[1]


def test_only_activations_at_the_border_cross(path):
    """Counted by the device: int64 tokens, positions and out_ids, float32 rows; no cache, and nothing between its layers."""
    ints, row = 8, 4 * N_EMBD
    T = len(TOKENS)
    for n, expected in {
        N_LAYER + 1: ints * (T + T + 1) + 4 * N_VOCAB,  # what a step is given, and the logits
        3: ints * (T + 1) + row * T + row,  # positions and out_ids, x of each token in, x of the last one out
        0: 0,
    }.items():
        device = Pretend()
        context = Model.load(path, backend=device, n_gpu_layers=n).context()
        context.eval(TOKENS)
        device.crossed = 0
        context.eval(TOKENS)
        assert device.crossed == expected


TINY = Path(__file__).parent / "data" / "tiny"
OTHERS = ["falcon-7b", "falcon-40b", "falcon-180b", "llama-1", "llama-2", "llama-3", "mistral"]  # two layers each


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("n", [1, 2, "all"])
def test_every_architecture_gives_the_logits_of_pytorch(name, device, n):
    """A prompt in batches, then token by token."""
    golden = np.load(TINY / f"{name}.npz")
    tokens = golden["prompt_3"].tolist()
    for kv, tolerance in (("f32", F32), ("f16", F16)):
        model = Model.load(TINY / f"{name}.gguf", backend=device, n_gpu_layers=n, type_k=kv, type_v=kv)
        context = model.context(n_batch=32)
        logits = [*context.eval(tokens[:40], "all"), *(context.eval([token]) for token in tokens[40:])]
        assert_close(logits, golden["logits_3"], tolerance)
        assert not model.coverage().on_host


@pytest.mark.parametrize("ends", ["", ",numpy:input,numpy:output"])
@pytest.mark.parametrize("layers", ["opencl:0,numpy:1", "numpy:0,opencl:1", "pretend:Pretend:0,opencl:1"])
@pytest.mark.parametrize("name", ["falcon-7b", "falcon-40b"])
def test_falcon_is_split_anywhere(name, layers, ends, opencl):
    """What crosses the border is the sum of x, attention and feed-forward: one row a token, as LLaMA's."""
    golden = np.load(TINY / f"{name}.npz")
    context = Model.load(TINY / f"{name}.gguf", layers=layers + ends, type_k="f32", type_v="f32", precise=True).context()
    assert_close(context.eval(golden["prompt_3"].tolist(), "all"), golden["logits_3"], F32)


# --- memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, N_LAYER, N_LAYER + 1])
@pytest.mark.parametrize("type_k", ["f16", "f32"])
def test_memory_is_told_beforehand(path, n, type_k):
    device = Pretend()
    model = Model.load(path, backend=device, n_gpu_layers=n, type_k=type_k, n_batch=8)
    needs = model.memory_needed().get(device)
    assert device.used == 0  # nothing is taken by loading
    context = model.context()
    context.eval(TOKENS)
    assert device.most_used == device.used == (needs.total if needs else 0)
    if needs:
        layers = min(n, N_LAYER)
        per_place = N_EMBD // 2 * (2 if type_k == "f16" else 4) + N_EMBD // 2 * 2
        assert needs.kv_cache == N_CTX * per_place * layers
        named = [t for name, t in model.tensors.items() if n > N_LAYER or re.match(rf"blk\.[{N_LAYER - layers}-9]", name)]
        freqs = 4 * 4  # rope's frequencies of a head of 8
        assert needs.weights == sum(t.nbytes for t in named) + freqs  # the tied embedding once
        summary = load_summary(model)
        assert f"offloading   = {n} of 7 layers to pretend (large)" in summary
        assert f"total VRAM used = {told(needs.total)} of " in summary
    del context
    gc.collect()
    assert device.used == (needs.weights if needs else 0)


@pytest.mark.parametrize("name", ["falcon-7b", "falcon-40b"])
def test_memory_of_weights_that_are_views(name):
    """attn_qkv, which is read as three, counts once."""
    device = Pretend()
    model = Model.load(TINY / f"{name}.gguf", backend=device)
    needs = model.memory_needed()[device]
    freqs = 4 * 4  # rope's frequencies of a head of 8
    assert needs.weights == sum(t.nbytes for t in model.tensors.values()) + freqs
    context = model.context()
    context.eval(TOKENS)
    assert device.most_used == device.used == needs.total


def told(n: int) -> str:
    return f"{n / MIB:.1f} MiB" if n >= MIB else f"{n / 1024:.1f} KiB"


@pytest.mark.parametrize("n", [6, "all"])
def test_opencl_takes_what_was_told(smollm2, opencl, n):
    model = Model.load(smollm2, backend=opencl, n_gpu_layers=n, n_ctx=512, n_batch=64)
    gc.collect()
    before = opencl.memory_used()
    told = model.memory_needed()[opencl].total
    context = model.context()
    context.eval(list(range(100, 130)))
    context.eval([7])
    assert opencl.memory_used() - before == pytest.approx(told, rel=0.02)  # some drivers round a buffer up


@settings(max_examples=40)
@given(cap=st.integers(0, MIB // 5), n_ctx=st.integers(1, 200), n_batch=st.sampled_from([1, 16, 512]))
def test_too_little_memory_names_what_fits(path, cap, n_ctx, n_batch):
    def load(n, device):
        return Model.load(path, backend=device, n_gpu_layers=n, n_ctx=n_ctx, n_batch=n_batch)

    auto = load("auto", device := Pretend(Options(device_memory=cap)))
    fits = auto.placement.count(device)
    auto.context().eval(TOKENS[:n_ctx])  # it just runs
    assert device.most_used <= cap
    load(fits, device := Pretend(Options(device_memory=cap))).context().eval(TOKENS[:n_ctx])
    if fits <= N_LAYER:
        for more in {fits + 1, "all"}:
            device = Pretend(Options(device_memory=cap))
            with pytest.raises(BackendError, match=f"the largest -ngl that fits is {fits},") as caught:
                load(more, device)
            assert "\n" not in str(caught.value)
            assert f"has {told(cap)} free" in str(caught.value)
            assert device.most_used == 0


def test_opencl_with_too_little_memory(smollm2, opencl):
    def load(n):
        return Model.load(smollm2, backend="opencl", n_gpu_layers=n, n_ctx=256, n_batch=64, device_memory=48 * MIB)

    with pytest.raises(BackendError, match="the largest -ngl that fits is") as caught:
        load(None)
    fits = int(re.search(r"fits is (\d+)", str(caught.value))[1])
    for n in (fits, "auto"):
        model = load(n)
        assert model.placement.count(model.backend) == fits > 0
        context = model.context()
        context.warm_up()  # takes no more than a step does
        assert np.isfinite(context.eval(TOKENS)).all()
    with pytest.raises(BackendError, match=f"the largest -ngl that fits is {fits},"):
        load(fits + 1)


def test_a_map_that_does_not_fit(path):
    with pytest.raises(BackendError, match=r"this map of layers needs .* on pretend@small, which has 256\.0 KiB free"):
        Model.load(path, layers="pretend:Pretend@small:0-5", n_ctx=4000)


def test_a_second_context_without_room(path):
    probe = Pretend()
    one = Model.load(path, backend=probe).memory_needed()[probe]
    device = Pretend(Options(device_memory=one.total + (one.kv_cache + one.scratch) // 2))
    model = Model.load(path, backend=device)
    first = model.context()
    logits = first.eval(TOKENS)
    used = device.used
    with pytest.raises(BackendError, match=r"a context needs .* on pretend, which has"):
        model.context()
    assert device.used == device.most_used == used
    first.rewind(0)
    np.testing.assert_array_equal(first.eval(TOKENS), logits)
    model.context(n_ctx=8, n_batch=4).eval(TOKENS[:8])  # a shorter one has room
    with pytest.raises(BackendError, match="a context needs"):
        model.context(n_ctx=4000)
    del first
    gc.collect()
    np.testing.assert_array_equal(model.context().eval(TOKENS), logits)


# --- what goes wrong on the device ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["embedding", "kv_write", "matmul", "softmax"])
def test_a_device_lost_in_mid_step_leaves_the_context_as_it_was(path, op):
    device = Pretend()
    context = Model.load(path, backend=device).context(n_batch=4)
    context.eval(TOKENS[:5])
    device.fails_at = op
    with pytest.raises(BackendError, match="backend 'pretend' failed in a step: DriverError: the device was lost") as caught:
        context.eval(TOKENS[5:])
    assert "\n" not in str(caught.value)
    assert context.tokens == TOKENS[:5]
    device.fails_at = ""
    whole = Model.load(path, backend=Pretend()).context().eval(TOKENS)
    np.testing.assert_allclose(context.eval(TOKENS[5:]), whole, atol=F32 * np.abs(whole).max())


def test_memory_that_runs_out_in_spite_of_the_count(path):
    """Another program took it meanwhile."""
    device = Pretend()
    model = Model.load(path, backend=device)
    hole = device.allocate((device.memory_free() - model.memory_needed()[device].total,), np.uint8)
    lie = model.memory_needed()[device].kv_cache
    device.memory_free = lambda: lie + 64 * MIB
    more = device.allocate((lie,), np.uint8)
    with pytest.raises(BackendError, match=r"failed when .*: DriverOutOfMemory: .* fewer layers") as caught:
        model.context()
    assert "\n" not in str(caught.value)
    del hole, more
    assert np.isfinite(model.context().eval(TOKENS)).all()


def test_no_memory_leaks_over_many_steps_and_contexts(path):
    device = Pretend()
    model = Model.load(path, backend=device, n_gpu_layers=4)
    levels = set()
    for _ in range(5):
        context = model.context()
        for _ in range(10):
            context.rewind(0)
            context.eval(TOKENS)
            levels.add(device.used)
        del context
        gc.collect()
    assert len(levels) == 1


# --- what a user asks for ------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("numpyopencl:,@-0123456789 input\x00é"), max_size=30))
def test_any_text_is_a_map_or_refused_in_a_sentence(text):
    try:
        parts = parse_map(text)
    except OptionError as error:
        sentence = str(error)
    else:
        assert len(parts) == text.count(",") + 1
        return
    assert "\n" not in sentence


@given(st.lists(st.tuples(st.sampled_from(["numpy", "a.b:C"]), st.sampled_from([None, "0", "RTX 30:x"]), st.integers(0, 9),
                          st.integers(0, 9)), min_size=1))  # fmt: skip
def test_maps_are_read_as_they_are_written(parts):
    text = ",".join(f"{b}{f'@{d}' if d else ''}:{first}-{first + n}" for b, d, first, n in parts)
    expected = [(b, d, range(first, first + n + 1)) for b, d, first, n in parts]
    assert [(e.backend, e.device, e.where) for e in parse_map(text)] == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": "numpy:0-9"}, "names layer 9: the model has layers 0 to 5"),
        ({"layers": "numpy:0-3,reference:3"}, "names layer 3 twice"),
        ({"layers": "numpy:input,numpy:input"}, "names input twice"),
        ({"layers": "numpy:3-1"}, "layer 1 comes before 3"),
        ({"layers": "numpy"}, "expected BACKEND:FIRST-LAST"),
        ({"layers": ""}, "expected BACKEND:FIRST-LAST"),
        ({"layers": "numpy:0-3,"}, "expected BACKEND:FIRST-LAST"),
        ({"layers": "numpy@:0"}, "expected BACKEND:FIRST-LAST"),
        ({"layers": "a:B"}, "expected BACKEND:FIRST-LAST"),
        ({"layers": "cuda9:0-1"}, "unknown backend 'cuda9'"),
        ({"layers": "numpy@1:0-1"}, "--device 1 was asked for, but the backend numpy has no devices"),
        ({"layers": "pretend:Pretend@9:0-1"}, "pretend has no device '9'"),
        ({"layers": "numpy:0", "n_gpu_layers": 3}, "give either -ngl"),
        ({"layers": "numpy:0", "device": 1}, "names its devices itself"),
        ({"layers": "numpy:0", "backend": "reference"}, "leaves out reference, which --backend asks for"),
        ({"layers": 5}, "layers = 5"),
        ({"n_gpu_layers": -2}, "n_gpu_layers = -2"),
        ({"n_gpu_layers": "some"}, "n_gpu_layers = 'some'"),
        ({"n_gpu_layers": True}, "n_gpu_layers = True"),
        ({"n_gpu_layers": 2.0}, "n_gpu_layers = 2.0"),
        ({"device_memory": 1 << 30}, "--device-memory 1073741824 was asked for, but the backend numpy has no devices"),
        ({"device": "0"}, "--device 0 was asked for, but the backend numpy has no devices"),
        ({"main_gpu": 0}, "--device 0 was asked for, but the backend numpy has no devices"),
        ({"device": "small", "main_gpu": 0, "backend": "pretend:Pretend"}, "--device small and -mg 0 name two devices"),
        ({"device": " "}, "device = ''"),
        ({"device": -1}, "device = -1"),
        ({"device_memory": -1}, "device_memory = -1"),
        ({"type_k": "q8_0"}, "type_k = 'q8_0': a KV cache is kept in f32 or f16"),
        ({"type_v": 1}, "type_v = 1"),
        ({"backend": "backends.array_api:Strict", "type_v": "f16"}, "backend 'array_api_strict' keeps it in float32"),
        ({"n_batch": 0}, "n_batch = 0"),
        ({"backend": Numpy(), "device_memory": 5}, "give them to the one you made"),
    ],
)
def test_what_is_refused(path, options, says):
    with pytest.raises(TinyLlamaError, match=re.escape(says)) as caught:
        Model.load(path, **{"backend": "numpy", **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"device": "small"}, {"device": 1}, {"main_gpu": 1}, {"device": "1", "main_gpu": 1}])
def test_a_device_is_chosen(path, options):
    assert Model.load(path, backend="pretend:Pretend", n_gpu_layers=1, **options).backend.device.name == "small"


@pytest.mark.parametrize("n", [0, 3, -1, "all", "auto", None])
def test_ngl_has_no_effect_on_numpy(path, n):
    model = Model.load(path, backend="numpy", n_gpu_layers=n)
    assert [b.name for b in model.placement.backends] == ["numpy"]
    assert "offloading   = 0 of 7 layers: numpy" in load_summary(model)


def test_the_summary_tells_where_and_how(path):
    model = Model.load(path, backend="pretend:NoRope", n_gpu_layers=4)
    assert isinstance(model.backend, NoRope)
    summary = load_summary(model)
    for line in (
        "load: placement    = layers 0-1: numpy; layers 2-5: norope; input: numpy, output: numpy",
        "float32 on numpy, float16 on norope; taken at once, grows on numpy",
        "load: offloading   = 4 of 7 layers to norope (pretend on large)",
        "decomposed: attention x4, swiglu x4; on the host, for want of a kernel: rope x8",
    ):
        assert line in summary, summary
    coverage = model.coverage()
    assert coverage.kernel.total() + coverage.on_host.total() == len(model.fused_graph().nodes)


def test_the_command_line(path, capsys):
    def run(*argv):
        code = main(["bench", "-m", str(path), "-p", "4", "-n", "2", "-r", "1", "--backend", "pretend:Pretend", *argv])
        return code, *capsys.readouterr()

    code, out, _ = run("-ngl", "2", "-ctk", "f32", "-o", "json")
    assert code == 0
    for told in ('"n_gpu_layers": 2', '"backends": "numpy,pretend"', '"devices": "pretend"', '"type_v": "f32,f16"'):
        assert told in out
    code, out, _ = run("--device", "1")
    assert (code, "| pretend |" in out, "| ngl |" in out) == (0, True, True)
    code, out, err = run("--device-memory", "20K")
    assert (code, out) == (1, "")
    assert "the largest -ngl that fits is" in err
    code, table, _ = run("--layers", "numpy:0-1,pretend:Pretend:2-3,pretend:NoRope:4-5", "--profile")
    assert code == 0
    assert re.search(r"^rope +norope +host ", table, re.MULTILINE)
    assert re.search(r"^rope +pretend +kernel ", table, re.MULTILINE)
    assert re.search(r"^peaks, measured on numpy: ", table, re.MULTILINE)
    assert "on the host, for want of a kernel: rope x4" in table


def test_one_device_by_two_names_is_one_backend(path, opencl):
    """What is kept there counts once, and what the user allows holds for all of it."""
    placement = Model.load(path, layers="opencl@0:0,opencl:1-5").placement
    assert len(placement.devices) == 1
