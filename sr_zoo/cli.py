"""The command line of the reference application: ``python -m sr_zoo COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from filterattr.errors import FilterAttrError
from sr_zoo.data import hold_out, load_photographs
from sr_zoo.degradations import blind_inputs, clean_inputs
from sr_zoo.images import ImageError
from sr_zoo.pretrained import WeightsError, build, describe_network, load_network, save_network
from sr_zoo.training import PRECISIONS, Recipe, Trainer, TrainingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``python -m sr_zoo``; ``None`` takes them from the command line.

    Returns:
        The exit status: 0 when all went well, 2 when something the user gave cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m sr_zoo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (FilterAttrError, ImageError, WeightsError, TrainingError) as error:
        sys.stderr.write(f"python -m sr_zoo: {error}\n")
        return 2
    return 0


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network: first 'base' on clean pairs, then 'target' from it on blurred and noisy ones",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("stage", choices=("base", "target"), help="which of the two end points")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an old run there goes on")
    parser.add_argument("--from", dest="start", help="weights to start from; required for target")
    parser.add_argument("--network", choices=("srresnet", "srcnn_style"), default="srresnet")
    parser.add_argument("--features", type=int, default=64, help="feature channels (srresnet)")
    parser.add_argument("--blocks", type=int, default=16, help="residual blocks (srresnet)")
    parser.add_argument("--upscale", type=int, choices=(2, 3, 4), default=2)
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--learning-rate", type=float, help="2e-4 for base and 5e-5 for target if not given")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--patch-size", type=int, default=64, help="reference patch in pixels")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate-every", type=int, default=2000, help="also the interval of checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    if options.stage == "target" and options.start is None:
        raise TrainingError("target is fine-tuned from base: give its weights with --from BASE.safetensors.")
    degradation = (clean_inputs if options.stage == "base" else blind_inputs)(options.upscale)
    recipe = Recipe(
        degradation.config(),
        iterations=options.iterations,
        learning_rate=options.learning_rate or (2e-4 if options.stage == "base" else 5e-5),
        batch_size=options.batch_size,
        patch_size=options.patch_size,
        margin=16 * options.upscale if options.upscale != 2 else 16,
        precision=options.precision,
        seed=options.seed,
    )
    if options.start is None:
        architecture = options.network
        settings = {"upscale": options.upscale}
        if architecture == "srresnet":
            settings |= {"num_feat": options.features, "num_block": options.blocks}
        torch.manual_seed(options.seed)
        network = build(architecture, settings)
    else:
        description = describe_network(options.start)
        architecture, settings = description["architecture"], description["arguments"]
        network = load_network(options.start).train()
    photographs, validation = hold_out(load_photographs(options.images))
    trainer = Trainer(
        network,
        photographs,
        validation,
        recipe,
        options.out,
        validate_every=options.validate_every,
        device=options.device,
    )
    state = trainer.run()
    provenance = {
        "stage": options.stage,
        "recipe": vars(recipe),
        "photographs": len(photographs),
        "cosine_to_first_weights": trainer.cosine(),
        "command": "python -m sr_zoo " + shlex.join(sys.argv[1:]),
        "torch": torch.__version__,
    }
    path = options.out / f"{options.stage}.safetensors"
    save_network(path, architecture, settings, state, provenance)
    sys.stdout.write(f"wrote {path}\n")
