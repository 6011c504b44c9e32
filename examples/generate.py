"""Complete a prompt with a real model:  python examples/generate.py -p "Once upon a time" -n 64"""

import sys

from tinyllama import Model, cli, load_summary, prompt_summary, timings_summary


def generate(args) -> int:
    model = Model.load(args.model, **cli.model_options(args))
    print(load_summary(model), file=sys.stderr)
    tokens = model.tokenize(cli.prompt_from(args))
    if args.verbose_prompt:
        print(prompt_summary(model, tokens), file=sys.stderr)
    context = model.context(n_batch=args.batch_size)
    generation = model.generate(
        tokens,
        n_predict=args.n_predict,
        sampling=cli.sampling_from(args),
        ignore_eos=args.ignore_eos,
        context=context,
        progress=cli.prompt_bar(len(tokens)),
    )
    cli.warm_up(context)  # brings the weights into the form that they are computed in
    print(f"seed: {generation.sampler.seed}\n", file=sys.stderr)
    code = 0
    try:
        for piece in generation:  # the prompt is read before the first piece, then a step a token
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        code = cli.INTERRUPTED
    print(timings_summary(generation), file=sys.stderr)
    return code


if __name__ == "__main__":
    parser = cli.Parser(description=__doc__)
    cli.add_prompt_arguments(parser)
    cli.add_model_arguments(parser)
    cli.add_sampling_arguments(parser)
    args = parser.parse_args()
    sys.exit(cli.guarded(lambda: generate(args), parser.prog))
