"""How near to numpy's own limits, and to llama.cpp, the numpy backend comes:  python examples/bench_limits.py -t 2

Decode is held against the bare chain `W @ x` over the model's matrices in their order, prefill against the same chain of
matrix products and against the best rate of sgemm, llama.cpp (if llama-cpp-python is installed) against both. All are
measured in this process, in turns, and the medians are printed: other programs on the machine then disturb all alike.
"""

import argparse
from statistics import median
from time import perf_counter

import numpy as np

from tinyllama import Model
from tinyllama.models import find

N_PROMPT, N_GEN = 512, 32


def seconds(function, *args) -> float:
    began = perf_counter()
    function(*args)
    return perf_counter() - began


class Ours:
    def __init__(self, path, n_threads):
        self.model = Model.load(path, backend="numpy", n_threads=n_threads)
        self.context = self.model.context()

    def prefill(self):
        self.context.rewind(0)
        self.context.eval(range(100, 100 + N_PROMPT))

    def decode(self):
        self.context.rewind(0)
        for token in range(100, 100 + N_GEN):
            self.context.eval([token])


class Bare:
    """The model's matrices in float32, in the order of a step, and nothing else."""

    def __init__(self, model):
        names = [v.name for node in model.graph.nodes if node.op.name == "matmul" for v in node.inputs[1:]]
        self.weights = [model.tensors[name].dequantize() for name in names]
        self.vectors = {n: np.ones(n, np.float32) for n in {w.shape[1] for w in self.weights}}
        self.prompts = {n: np.ones((N_PROMPT, n), np.float32) for n in self.vectors}

    def prefill(self):
        *layers, output = self.weights
        for w in layers:
            _ = self.prompts[w.shape[1]] @ w.T
        _ = output @ self.vectors[output.shape[1]]  # logits of the last token only

    def decode(self):
        for _ in range(N_GEN):
            for w in self.weights:
                _ = w @ self.vectors[w.shape[1]]

    def flops(self) -> int:
        """Of one token's prefill."""
        return sum(2 * w.size for w in self.weights[:-1])


class LlamaCpp:
    def __init__(self, path, n_threads, n_ctx=1024):
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept, for C does not
        llama_cpp.llama_log_set(self.silent, None)
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, N_PROMPT, N_PROMPT
        params.n_threads = params.n_threads_batch = n_threads
        self.context = llama_cpp.llama_init_from_model(model, params)

    def read(self, tokens):
        array = (self.api.llama_token * len(tokens))(*tokens)
        self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens)))
        self.api.llama_get_logits_ith(self.context, -1)

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self):
        self.clear()
        self.read(range(100, 100 + N_PROMPT))

    def decode(self):
        self.clear()
        for token in range(100, 100 + N_GEN):
            self.read([token])


def sgemm_flops() -> float:
    """The best rate of numpy's matrix product, floating-point operations a second."""
    a, b = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / min(seconds(np.matmul, a, b) for _ in range(9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=7)
    args = parser.parse_args()

    path = find(args.model)
    ours = Ours(path, args.threads)
    programs = {"tinyllama": ours, "bare W @ x": Bare(ours.model)}
    try:
        programs["llama.cpp"] = LlamaCpp(path, args.threads)
    except ImportError:
        print("llama-cpp-python is not installed: llama.cpp is left out")

    times = {(name, phase): [] for name in programs for phase in ("prefill", "decode")}
    peaks = []
    for turn in range(args.repetitions + 1):
        for (name, phase), samples in times.items():
            taken = seconds(getattr(programs[name], phase))
            if turn:  # the first turn warms up
                samples.append(taken)
        peaks.append(sgemm_flops())

    speed = {key: (N_PROMPT if key[1] == "prefill" else N_GEN) / median(samples) for key, samples in times.items()}
    allowed = median(peaks) / programs["bare W @ x"].flops()
    print(f"\nmedians of {args.repetitions} turns, {args.threads} threads; tokens/s")
    print(f"{'':<12} {'prefill ' + str(N_PROMPT):>12} {'decode':>8}")
    for name in programs:
        print(f"{name:<12} {speed[name, 'prefill']:>12.1f} {speed[name, 'decode']:>8.1f}")
    print(f"{'sgemm peak':<12} {allowed:>12.1f}          ({median(peaks) / 1e9:.0f} GFLOP/s)\n")
    for other, phase in [
        ("bare W @ x", "decode"),
        ("bare W @ x", "prefill"),
        ("llama.cpp", "prefill"),
        ("llama.cpp", "decode"),
    ]:
        if other in programs:
            print(f"{phase} / {other}: {speed['tinyllama', phase] / speed[other, phase]:.2f}")
    print(f"prefill / sgemm peak: {speed['tinyllama', 'prefill'] / allowed:.2f}")


if __name__ == "__main__":
    main()
