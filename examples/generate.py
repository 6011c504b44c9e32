"""Complete a prompt with a real model:  python examples/generate.py -p "Once upon a time" -n 64"""

import sys

from tinyllama import Model
from tinyllama.cli import arguments, progress, terminal
from tinyllama.summary import load_summary, prompt_summary, timings_summary


def generate(args) -> int:
    model = Model.load(args.model, **arguments.model_options(args))
    print(load_summary(model), file=sys.stderr)
    tokens = model.tokenize(arguments.prompt_from(args))
    if args.verbose_prompt:
        print(prompt_summary(model, tokens), file=sys.stderr)
    progress.warm_up(model)

    generation = model.generate(
        tokens,
        n_predict=args.n_predict,
        sampling=arguments.sampling_from(args),
        ignore_eos=args.ignore_eos,
        context=model.context(n_batch=args.batch_size),
    )
    print(f"seed: {generation.sampler.seed}\n", file=sys.stderr)
    code = 0
    try:
        for piece in generation:  # the prompt is read before the first piece, then a step a token
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        code = terminal.INTERRUPTED
    print(timings_summary(generation), file=sys.stderr)
    return code


if __name__ == "__main__":
    parser = terminal.Parser(description=__doc__)
    arguments.add_prompt_arguments(parser)
    arguments.add_model_arguments(parser)
    arguments.add_sampling_arguments(parser)
    args = parser.parse_args()
    sys.exit(terminal.guarded(lambda: generate(args), parser.prog))
