"""How good a model is: perplexity on a text, and the tasks of EleutherAI's lm-evaluation-harness."""

from .perplexity import Estimate, perplexity

__all__ = ["Estimate", "perplexity"]
