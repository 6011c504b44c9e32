"""`tinyllama plan`: the figures of 2023, the arithmetic, and what runs really take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from writers import ggml, huggingface, meta
from writers.tiny import TinyLlama

from backends.base import Options
from backends.opencl import OpenCL
from ops.errors import BackendError, OptionError, TinyLlamaError
from tinyllama import Model
from tinyllama.cli.main import main
from tinyllama.formats import open_model_file
from tinyllama.planning import plan
from tinyllama.shapes import SHAPES, requantized, shape_file

MIB, GIB = 2**20, 2**30
TINY = Path(__file__).parent / "data" / "tiny"
VOCABULARY = TINY.parent / "vocab" / "ggml-vocab-llama-spm.gguf"
STORY = 0.03  # figures of 2023 were rounded, and told by people


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main(["plan", *args, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_13b_of_may_2023(capsys):
    """The log of the day: total VRAM used: 7562 MB; kv self size = 400.00 MB; offloading 40 layers."""
    told = planned(capsys, "llama-13b", "q4_0", "-c", "512", "-ngl", "40", "--file-format", "ggjt2")
    by_hand = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824) * 20 // 32
    assert told["device"]["matrices"] == by_hand == told["weights"]["layer_matrices"]
    assert by_hand / MIB == pytest.approx(7562, rel=STORY)
    assert told["device"]["weights"] / MIB == pytest.approx(7562, rel=STORY)
    assert told["kv_cache"]["f16"] == 400 * MIB
    assert told["kv_cache"]["f32"] == 800 * MIB
    assert told["n_gpu_layers"] == 40


def test_65b_in_4_bits_is_41_gb(capsys):
    told = planned(capsys, "llama-65b", "Q4_0", "--file-format", "ggjt2")
    assert told["weights"]["all"] / 1e9 == pytest.approx(41, rel=STORY)
    today = planned(capsys, "llama-65b", "Q4_0")
    # 18 bytes where there were 20, but for the output matrix, which llama.cpp keeps in Q6_K today
    assert today["weights"]["layer_matrices"] == told["weights"]["layer_matrices"] * 18 // 20


def test_30b_on_a_card_of_12_gb(capsys):
    """Arithmetic allows more than the 28 layers that people saw: nothing else was counted on the card."""
    told = planned(capsys, "llama-30b", "q4_0", "-c", "512", "--file-format", "ggjt2", "--device-memory", "12G")
    layer = (4 * 6656 * 6656 + 3 * 6656 * 17920) * 20 / 32
    assert 28 < told["n_gpu_layers"] == told["device"]["largest_n_gpu_layers"] <= 12 * GIB // layer
    assert told["device"]["fits"]
    too_many = planned(capsys, "llama-30b", "-ngl", "40", "--file-format", "ggjt2", "--device-memory", "12G", "-c", "512")
    assert not too_many["device"]["fits"]


def test_falcon_40b_fits_one_a100(capsys):
    told = planned(capsys, "falcon-40b", "q4_0", "--device-memory", "40G")
    assert told["n_gpu_layers"] == 61
    assert told["device"]["total"] < 40 * GIB


# Parameters in billions: Touvron et al. 2023 (2302.13971, table 2; 2307.09288); the model cards of Falcon
@pytest.mark.parametrize(
    ("shape", "billions"),
    [("llama-7b", 6.7), ("llama-13b", 13.0), ("llama-30b", 32.5), ("llama-65b", 65.2), ("llama2-70b", 69.0),
     ("tinyllama-1.1b", 1.1), ("falcon-7b", 7.2), ("falcon-40b", 41.8), ("falcon-180b", 179.5)],
)  # fmt: skip
@pytest.mark.parametrize("type", ["Q4_0", "q4_k_m", "Q8_0", "f16"])
def test_every_shape_in_every_type(shape, billions, type):
    file = shape_file(shape, type)
    assert file.n_params / 1e9 == pytest.approx(billions, rel=0.01)  # they are told with two or three digits
    counted = plan(file, n_ctx=256, n_gpu_layers=3)
    assert counted.n_offloaded == 3


def test_llama2_70b_shares_key_heads(capsys):
    """8 of 64 heads: 4096 places x 80 layers x 8 x 128 x 2 x 2 bytes"""
    assert planned(capsys, "llama2-70b", "-c", "4096")["kv_cache"]["f16"] == 4096 * 80 * 8 * 128 * 2 * 2


def test_the_largest_number_of_layers_is_the_largest():
    file = shape_file("llama-7b", "Q4_0")
    memory = 3 * GIB
    most = plan(file, n_ctx=512, device_memory=memory)
    more = plan(file, n_ctx=512, device_memory=memory, n_gpu_layers=most.fitting + 1)
    assert most.fits
    assert most.n_offloaded == most.fitting
    assert not more.fits


def test_the_report_shows_its_arithmetic(capsys):
    assert main(["plan", "llama-13b", "q4_0", "-c", "512", "-ngl", "40", "--file-format", "ggjt2"]) == 0
    told = capsys.readouterr().out
    for part in ("40 x 13824 x 5120", "20 bytes / 32", "7562.5 MiB", "400.0 MiB in f16", "In today's blocks", "2023: 40 of 40"):
        assert part in told
    assert main(["plan", "llama-30b", "--device-memory", "12G", "-c", "512", "--file-format", "ggjt2"]) == 0
    assert "28 of 60" in capsys.readouterr().out


@pytest.mark.parametrize("type", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", ["llama-q", "llama-llama3", "falcon-40b", "qwen2"])
def test_a_model_in_another_type(name, type):
    file = open_model_file(TINY / f"{name}.gguf")
    other = requantized(file, type)
    assert other.n_params == file.n_params
    assert plan(other, n_ctx=64).file.nbytes == other.nbytes
    assert all(other.tensors[name] is t for name, t in file.tensors.items() if len(t.shape) == 1)  # frequencies are read


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["llama-14b"], "no model 'llama-14b'"),
        (["llama-7b", "q9"], "no type 'Q9'"),
        (["llama-7b", "q4_k_m", "--file-format", "ggjt2"], "ggjt2 files have no Q4_K_M"),
        (["falcon-7b", "--file-format", "ggjt2"], "LLaMA only"),
        (["llama-7b", "--backend", "numpy"], "no device whose memory"),
        ([str(VOCABULARY)], "has no tensor token_embd.weight"),
        ([str(VOCABULARY), "q4_0"], "has no tensor token_embd.weight"),
        ([str(TINY / "llama-q.gguf"), "--file-format", "gguf"], "say which one it is to have in gguf blocks, such as q4_0"),
    ],
)
def test_what_cannot_be_planned(capsys, args, sentence):
    assert main(["plan", *args]) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.strip().splitlines()) == 1


def test_unknown_names_raise():
    for bad in (lambda: shape_file("no-such", "Q4_0"), lambda: shape_file("llama-7b", "Q4_0", "ggjt9")):
        with pytest.raises(OptionError):
            bad()
    assert issubclass(OptionError, TinyLlamaError)
    assert set(SHAPES) >= {
        "llama-7b",
        "llama-13b",
        "llama-30b",
        "llama-65b",
        "llama2-70b",
        "falcon-7b",
        "falcon-40b",
        "falcon-180b",
    }


def opencl(*, precise: bool = False) -> OpenCL:
    try:
        return OpenCL(Options(precise=precise))
    except BackendError as error:
        pytest.skip(f"needs OpenCL: {error}")


@pytest.mark.parametrize("n", [1, 11, 31])
def test_a_device_takes_what_was_planned(smollm2, n):
    """By the runtime's own count of its buffers; 5% is what docs/planning.md promises.

    Planned is for a card, which multiplies floats: so is what runs here.
    """
    device = opencl(precise=True)
    counted = plan(open_model_file(smollm2), n_ctx=512, n_gpu_layers=n)
    context = Model.load(smollm2, backend=device, n_gpu_layers=n, n_ctx=512).context()
    context.warm_up()
    context.eval(list(range(1000, 1500)))
    assert device.memory_used() == pytest.approx(counted.on_device.total, rel=0.05)


RUN = """
import sys
from tinyllama import Model
from tinyllama.memory import peak_resident
ngl, weights_memory = int(sys.argv[3]), int(sys.argv[4])
device = {"backend": "opencl", "n_gpu_layers": ngl} if ngl else {"backend": "numpy"}
budget = weights_memory if weights_memory >= 0 else None
model = Model.load(sys.argv[1], n_ctx=int(sys.argv[2]), weights_memory=budget, **device)
context = model.context()
context.warm_up()
prompt = (model.tokenize("the quick brown fox jumps over the lazy dog ") * context.n_ctx)[: context.n_ctx - 8]
list(model.generate(prompt, n_predict=8, temp=0, context=context, ignore_eos=True))
print(peak_resident())
"""


@pytest.fixture(scope="module")
def files(smollm2, tmp_path_factory) -> dict[str, Path]:
    """Models of 57 million weights in files of every kind: mapped, made from what is mapped, read into memory."""
    folder = tmp_path_factory.mktemp("plan")
    tiny = TinyLlama(n_embd=768, n_head=12, n_head_kv=12, n_ff=2048, n_layer=8, n_ctx=512)
    paths = {name: folder / name for name in ("ggjt1", "ggjt2", "ggml", "hf", "meta")}
    for name, kind in (("ggjt1", ggml.GGJT1), ("ggjt2", ggml.GGJT2), ("ggml", ggml.GGML)):
        ggml.write_ggml(paths[name], tiny, kind, "Q4_0")
    for name in ("hf", "meta"):
        paths[name].mkdir()
    huggingface.write_llama(paths["hf"], tiny, dtype="F16", n_shards=2)
    meta.write_meta(paths["meta"], tiny, 1, "F16")
    return {"smollm2": smollm2, **paths}


@pytest.mark.skipif(sys.platform != "linux", reason="the most that was resident is told exactly on Linux only")
@pytest.mark.parametrize(
    ("model", "n_ctx", "ngl", "weights_memory"),
    [
        ("smollm2", 256, 0, -1), ("smollm2", 2048, 0, -1), ("smollm2", 512, 0, 0), ("smollm2", 512, 0, 300 * MIB),
        ("ggjt1", 512, 0, -1), ("ggjt2", 512, 0, -1), ("ggml", 512, 0, -1), ("hf", 512, 0, -1), ("meta", 512, 0, -1),
        ("smollm2", 512, 15, -1), ("smollm2", 512, 31, -1), ("ggjt1", 512, 9, -1), ("ggml", 512, 9, -1), ("meta", 512, 4, -1),
        ("ggml", 512, 0, 0), ("ggml", 512, 0, 60 * MIB),
    ],
)  # fmt: skip
def test_what_is_resident_was_planned(files, model, n_ctx, ngl, weights_memory):
    """In processes of their own, since one that has run tests is larger; 5% is what docs/planning.md promises.

    On OpenCL the kernels are compiled by a first run, which takes more: PoCL keeps them for the next.
    """
    if ngl:
        opencl()
    path, settings = str(files[model]), []
    if ngl:
        settings += ["--backend", "opencl", "-ngl", str(ngl)]
    if weights_memory >= 0:
        settings += ["--weights-memory", str(weights_memory)]
    cli = [sys.executable, "-m", "tinyllama", "plan", path, "-c", str(n_ctx), "--json", *settings]
    counted = json.loads(subprocess.run(cli, capture_output=True, check=True, timeout=120).stdout)["host"]["total"]
    for _ in range(2 if ngl else 1):
        run = [sys.executable, "-c", RUN, path, str(n_ctx), str(ngl), str(weights_memory)]
        measured = int(subprocess.run(run, capture_output=True, check=True, timeout=300).stdout)
    driver = 12 * MIB if ngl else 0  # PoCL's own code and its kernels' are not of one size on all CPUs
    assert counted == pytest.approx(measured, rel=0.05, abs=driver)
