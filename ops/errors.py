"""Every error a user can cause: one sentence that says what is wrong, where, and what to do about it."""


class TinyLlamaError(Exception):
    """The family. The command line prints the sentence and exits with 1; a library's user catches this one class."""


class ShapeError(TinyLlamaError, ValueError):
    """Operands of an op do not fit together."""


class FormatError(TinyLlamaError):
    """A file is damaged, cut short, or of a kind that is not read here."""


class ModelError(TinyLlamaError):
    """A sound file that holds no model this engine can run: unknown architecture, missing or misshapen tensor."""


class TokenError(TinyLlamaError, ValueError):
    """Text or token ids that the model's vocabulary cannot take."""


class OptionError(TinyLlamaError, ValueError):
    """An argument or a flag outside its range."""


class ContextFullError(TinyLlamaError):
    """More tokens than the context (n_ctx) has places."""


class BackendError(TinyLlamaError):
    """A backend that is unknown, cannot be used here, or failed."""


class FetchError(TinyLlamaError):
    """A model could not be fetched, or what came is not what was asked for."""
