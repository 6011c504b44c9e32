"""tinyllama as a model of EleutherAI's lm-evaluation-harness, under the name `tinyllama`.

    python -m tinyllama.evaluation run --model tinyllama --model_args model=smollm2,n_ctx=2048 --tasks arc_easy

Importing this module registers it, which is all that `python -m tinyllama.evaluation` does beside the harness's own command.
Needs the extra `eval`: pip install "tinyllama[eval]".
"""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm

from ops.errors import ModelError, OptionError

from ..chat_template import KEY, render
from ..checks import whole_number
from ..model import Model
from ..sampling import Sampling
from .scoring import Scorer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Pair = tuple[Any, list[int], list[int]]  # (texts, tokens of the context, tokens of the continuation)

MARK = "\ue000"  # of Unicode's private use: no template writes it

# of a request that generates: transformers' name, which tasks use -> ours, and transformers' default
SETTINGS = {
    "temperature": ("temp", 1.0),
    "top_k": ("top_k", 50),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "typical_p": ("typical_p", 1.0),
    "repetition_penalty": ("repeat_penalty", 1.0),
}


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
        """model and settings: those of `Model.load`, such as backend=opencl, n_gpu_layers=10, n_ctx=2048, precise=True.

        max_length: tokens of a context, None for the model's n_ctx. max_gen_toks: of an answer, where a task does not say.
        batch_size, max_batch_size and device are the harness's flags and change nothing: all requests are sorted together, and
        `main_gpu` names a device.

        OptionError: no such setting, or one out of range; else what `Model.load` raises.
        """
        super().__init__()
        known = [name for name in inspect.signature(Model.load).parameters if name not in ("name_or_path", "device")]
        if unknown := sorted(settings.keys() - set(known)):
            there_are = ", ".join(["model", "max_length", "max_gen_toks", *known])
            raise OptionError(f"no such setting: {', '.join(unknown)}; there are {there_are}")
        self.model = Model.load(model, **settings)
        self.max_length = self.model.n_ctx if max_length is None else whole_number("max_length", max_length, 1)
        self.max_gen_toks = whole_number("max_gen_toks", max_gen_toks, 1)
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
        """A conversation up to where its reply begins; or else to the end of the last message's text, which is to go on.

        A template that refuses a conversation with a system message gets it without.
        ModelError: the model's file has no template, or it fails, or drops the text of the last message.
        """
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except ModelError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            text = self._rendered(others, add_generation_prompt)
            warnings.warn(f"{error}; it got the conversation without the system message", stacklevel=2)
            return text

    def _rendered(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        template, tokenizer = self.chat_template(), self.model.tokenizer
        if not template.strip():
            raise ModelError("the model's file has no chat template: evaluate it without --apply_chat_template")
        last = messages[-1]["content"]
        if not add_generation_prompt:
            messages = [*messages[:-1], {**messages[-1], "content": f"{last}{MARK} "}]
        whole = render(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._piece(tokenizer.bos),
            eos_token=self._piece(tokenizer.eos),
        )
        return whole if add_generation_prompt else _unfinished(whole, last)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's own."""
        return str(self.model.metadata.get(KEY, ""))

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        """Of each continuation: log p given its context, and whether it is what greedy decoding would have said.

        OptionError: one has no tokens, or more than max_length, or its context has none.
        """
        cut = [self._fitting(*request) for request in requests]
        scorer, answers = Scorer(self._context), {}
        order = sorted(range(len(requests)), key=lambda i: cut[i])
        for i in tqdm(order, "log-likelihoods", disable=disable_tqdm or None):
            texts, _, continuation = requests[i]
            answers[i] = scorer.score(cut[i], len(continuation))
            if texts:  # not a window of a longer text
                self.cache_hook.add_partial("loglikelihood", texts, answers[i])
        return [answers[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows as long as the context, each token scored once; 0 of an empty text."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        scores = iter(self._loglikelihood_tokens([("", *w) for text in windows for w in text], disable_tqdm))
        return [sum(next(scores)[0] for _ in text) for text in windows]

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        rolling = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return map(utils.make_disjoint_window, rolling)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations of texts, each up to one of its stop texts, the end of the text, or the most tokens allowed.

        OptionError: so many tokens are allowed that max_length has no room for a prompt; or a setting is out of range.
        """
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        answers = {}
        for i in tqdm(sorted(range(len(prompts)), key=lambda i: prompts[i]), "generating", disable=disable_tqdm or None):
            asked: dict[str, Any] = dict(normalize_gen_kwargs(requests[i].args[1], self.max_gen_toks))
            n_predict = asked["max_gen_toks"]
            if n_predict >= self.max_length:
                raise OptionError(
                    f"max_gen_toks = {n_predict} leaves no room for a prompt in max_length = {self.max_length}: "
                    "set it lower, or n_ctx higher"
                )
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

    def _fitting(self, texts: Any, context: list[int], continuation: list[int]) -> list[int]:
        """Context and continuation, without what is too long at the beginning: the last token is not read, only predicted."""
        if not context or not 0 < len(continuation) <= self.max_length:
            raise OptionError(
                f"cannot score {len(continuation)} tokens after {len(context)} ({str(texts)[-60:]}): it takes one at least of "
                f"each, and no more than max_length = {self.max_length} in a continuation"
            )
        return (context + continuation)[-(self.max_length + 1) :]

    def _piece(self, id: int | None) -> str:
        return "" if id is None else self.model.tokenizer.piece(id).decode("utf-8", "replace")


def _unfinished(whole: str, last: str) -> str:
    """A conversation up to the end of its last message's text, after which MARK and a space were put."""
    text, mark, rest = whole.rpartition(MARK)
    if not mark or last.strip() not in text:
        raise ModelError(f"{last[:60]!r} cannot be continued: the chat template does not give the last message as it is")
    return text if rest.startswith(" ") else text.rstrip()  # a template that strips messages would have stripped this one


def _sampling(asked: dict[str, Any]) -> Sampling:
    """The harness's settings as ours: greedy unless it asks to sample, and then what it leaves unsaid is transformers' default.

    The seed is drawn from Python's generator, which the harness's --seed sets: a run can be repeated.
    """
    for name in sorted(asked.keys() - SETTINGS - {"do_sample", "until", "max_gen_toks"}):
        warnings.warn(f"a task's setting {name} = {asked[name]!r} is not known here and changes nothing", stacklevel=2)
    settings = {ours: asked.get(name, default) for name, (ours, default) in SETTINGS.items()}
    if not asked["do_sample"]:
        settings["temp"] = 0
    return Sampling(**settings, repeat_last_n=-1, seed=random.getrandbits(32))
