"""tinyllama as a model of EleutherAI's lm-evaluation-harness, under the name `tinyllama`.

    python -m tinyllama.evaluation run --model tinyllama --model_args model=smollm2,n_ctx=2048 --tasks arc_easy

Importing this module registers it, which is all that `python -m tinyllama.evaluation` does beside the harness's own command.
Needs the extra `eval`: pip install "tinyllama[eval]".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm

from ..chat_template import render
from ..model import Model
from ..sampling import Sampling
from .scoring import Scorer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Pair = tuple[Any, list[int], list[int]]  # (texts, tokens of the context, tokens of the continuation)


@register_model("tinyllama")
class TinyLlamaLM(TemplateLM):  # type: ignore[misc]
    """Requests are sorted by their tokens, and read in one context: what two of them begin with alike is computed once."""

    def __init__(
        self,
        model: str = "smollm2",
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        """model and settings: those of `Model.load`, such as backend=opencl, n_gpu_layers=10, n_ctx=2048.

        max_length: tokens of a context, None for the model's n_ctx. batch_size, max_batch_size and device are the harness's
        flags and change nothing: all requests are sorted together, and `main_gpu` names a device.
        """
        super().__init__()
        self.model = Model.load(model, **settings)
        self.max_length = max_length or self.model.n_ctx
        self.max_gen_toks = max_gen_toks
        self.batch_size = batch_size
        self._context = self.model.context(n_ctx=self.max_length)

    @property
    def eot_token_id(self) -> int:
        tokenizer = self.model.tokenizer
        return next(id for id in (tokenizer.eos, tokenizer.eot, tokenizer.bos, 0) if id is not None)

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is predicted from."""
        bos = self.model.tokenizer.bos
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.model.file.path.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids. add_special_tokens: begin with bos; None: if the model does so, and the text does not begin with it."""
        if add_special_tokens is None and string.startswith(self._piece(self.prefix_token_id)):
            add_special_tokens = False
        return self.model.tokenize(string, add_bos=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return render(
            self.chat_template(),
            chat_history,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._piece(self.model.tokenizer.bos),
            eos_token=self._piece(self.model.tokenizer.eos),
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's own."""
        return str(self.model.metadata.get("tokenizer.chat_template", ""))

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        """Of each continuation: log p given its context, and whether it is what greedy decoding would have said."""
        scorer, answers = Scorer(self._context), {}
        cut = [_fitting(context, continuation, self.max_length) for _, context, continuation in requests]
        order = sorted(range(len(requests)), key=lambda i: cut[i])
        for i in tqdm(order, "log-likelihoods", disable=disable_tqdm or None):
            answers[i] = scorer.score(cut[i], len(requests[i][2]))
        return [answers[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows as long as the context, each token scored once."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        scores = iter(self._loglikelihood_tokens([("", *w) for text in windows for w in text], disable_tqdm))
        return [sum(next(scores)[0] for _ in text) for text in windows]

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        rolling = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return map(utils.make_disjoint_window, rolling)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations of texts, each up to one of its stop texts, the end of the text, or the most tokens allowed."""
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        answers = {}
        for i in tqdm(sorted(range(len(prompts)), key=lambda i: prompts[i]), "generating", disable=disable_tqdm or None):
            asked: dict[str, Any] = dict(normalize_gen_kwargs(requests[i].args[1], self.max_gen_toks))
            n_predict = min(asked["max_gen_toks"], self.max_length - 1)
            generation = self.model.generate(
                prompts[i][-(self.max_length - n_predict) :],
                n_predict=n_predict,
                sampling=_sampling(asked),
                stop=handle_stop_sequences(asked["until"], eos=self._piece(self.model.tokenizer.eos) or None),
                context=self._context,
            )
            answers[i] = "".join(generation)
            self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
        return [answers[i] for i in range(len(requests))]

    def _piece(self, id: int | None) -> str:
        return "" if id is None else self.model.tokenizer.piece(id).decode("utf-8", "replace")


def _fitting(context: list[int], continuation: list[int], max_length: int) -> list[int]:
    """Context and continuation, without what is too long at the beginning: the last token is not read, only predicted."""
    return (context + continuation)[-(max_length + 1) :]


def _sampling(asked: dict[str, Any]) -> Sampling:
    """The harness's settings as ours: greedy unless it asks to sample, and then what it leaves unsaid is off."""
    if not asked.get("do_sample") or not asked.get("temperature"):
        return Sampling(temp=0)
    return Sampling(
        temp=asked["temperature"], top_k=asked.get("top_k", 0), top_p=asked.get("top_p", 1.0), min_p=asked.get("min_p", 0.0)
    )
