"""The command line of the reference application: ``python -m sr_zoo COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from filterattr.errors import FilterAttrError
from sr_zoo.card import make_card
from sr_zoo.data import hold_out, load_photographs
from sr_zoo.degradations import STRENGTH_UNITS, blind_inputs, clean_inputs, evaluation_inputs
from sr_zoo.demo import bundled_photographs, draw_pictures, find_and_mask, table
from sr_zoo.images import ImageError
from sr_zoo.models import matched_arguments
from sr_zoo.pretrained import (
    ARCHITECTURES,
    WeightsError,
    build,
    describe_network,
    find_weights,
    load_network,
    save_network,
)
from sr_zoo.training import PRECISIONS, Recipe, Trainer, TrainingError

_RATES = {"base": 2e-4, "target": 5e-5}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``python -m sr_zoo``; ``None`` takes them from the command line.

    Returns:
        The exit status: 0 when all went well, 2 when something the user gave cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m sr_zoo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_card(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except FilterAttrError as error:  # the errors of sr_zoo are its children
        sys.stderr.write(f"python -m sr_zoo: {error}\n")
        return 2
    return 0


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="find the 1 %% of the kernels that remove blur, and those that remove noise, and mask them",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base", default="srresnet_x2_f32b8_base", help="weights: a shipped name or a file")
    parser.add_argument("--target", default="srresnet_x2_f32b8_target", help="weights: a shipped name or a file")
    parser.add_argument("--search", type=Path, help="folder of photographs to find the kernels on")
    parser.add_argument("--test", type=Path, help="folder of other photographs to mask them on")
    parser.add_argument("--crops", type=int, default=12, help="128x128 crops for searching, and for testing")
    parser.add_argument("--draws", type=int, default=30, help="random sets of every null")
    parser.add_argument("--fraction", type=float, default=0.01, help="share of all kernels in a set")
    parser.add_argument("--steps", type=int, default=16, help="nodes of the integral")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the pictures")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    if (options.search is None) != (options.test is None):
        raise ImageError("--search and --test belong together: name both folders, or none of them.")
    base, target = load_network(options.base), load_network(options.target)
    if options.search is None:
        search, test = bundled_photographs()
    else:
        search, test = load_photographs(options.search), load_photographs(options.test)
    result = find_and_mask(
        base,
        target,
        search,
        test,
        fraction=options.fraction,
        crops=options.crops,
        draws=options.draws,
        n_steps=options.steps,
        seed=options.seed,
    )
    files = draw_pictures(base, target, result, test[0], options.out, options.seed)
    sys.stdout.write(f"\n{table(result)}\n\n" + "".join(f"wrote {file}\n" for file in files))


def _add_card(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "card",
        help="measure trained weights and write their card: PSNR and SSIM for clean, blurred, noisy and both inputs",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("weights", help="weights: a shipped name or a file")
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, help="folders of photographs to evaluate on, such as set5"
    )
    parser.add_argument("--data", required=True, help="what the weights were trained on, with its licence")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--out", type=Path, help="file to write the card to; it is only printed if not given")
    parser.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> None:
    path = find_weights(options.weights)
    folders = {folder.name: load_photographs(folder) for folder in options.images}
    card = make_card(path, folders, data=options.data, seed=options.seed)
    sys.stdout.write(card)
    if options.out is not None:
        options.out.write_text(card)
        sys.stdout.write(f"\nwrote {options.out}\n")


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network: first 'base' on clean pairs, then 'target' from it on blurred and noisy ones",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("stage", choices=("base", "target"), help="which of the two end points")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an old run there goes on")
    parser.add_argument(
        "--from", dest="start", help="weights to start from, or 'scratch' for random ones; required for target"
    )
    parser.add_argument(
        "--network",
        choices=tuple(ARCHITECTURES),
        default="srresnet",
        help="two_branch costs what the srresnet of the same features and blocks does",
    )
    parser.add_argument("--features", type=int, default=64, help="feature channels (srresnet, two_branch)")
    parser.add_argument("--blocks", type=int, default=16, help="residual blocks (srresnet, two_branch)")
    parser.add_argument(
        "--degradations",
        nargs="+",
        choices=tuple(STRENGTH_UNITS),
        default=["blur", "noise"],
        help="what target learns to undo, each with probability one half",
    )
    parser.add_argument("--upscale", type=int, choices=(2, 3, 4), default=2)
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--learning-rate", type=float, help="2e-4 for base and 5e-5 for target if not given")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--patch-size", type=int, default=64, help="reference patch in pixels")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument(
        "--prediction-weight", type=float, default=0.1, help="weight of the prediction loss (two_branch)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate-every", type=int, default=2000, help="also the interval of checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    if options.stage == "target" and options.start is None:
        raise TrainingError(
            "target is fine-tuned from base: give its weights with --from BASE.safetensors, or --from scratch."
        )
    if options.stage == "base":
        degradation = clean_inputs(options.upscale)
    else:
        degradation = blind_inputs(options.upscale, degradations=options.degradations)
    recipe = Recipe(
        degradation.config(),
        iterations=options.iterations,
        learning_rate=_RATES[options.stage] if options.learning_rate is None else options.learning_rate,
        batch_size=options.batch_size,
        patch_size=options.patch_size,
        margin=16 * options.upscale if options.upscale != 2 else 16,
        precision=options.precision,
        seed=options.seed,
        prediction_weight=options.prediction_weight,
    )
    if options.start in (None, "scratch"):
        architecture, settings = options.network, _settings(options)
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
        inputs=evaluation_inputs(options.upscale, degradations=options.degradations),
        validate_every=options.validate_every,
        device=options.device,
    )
    state = trainer.run()
    provenance = {
        "stage": options.stage,
        "degradations": options.degradations,
        "recipe": vars(recipe),
        "photographs": len(photographs),
        "cosine_to_first_weights": trainer.cosine(),
        "command": "python -m sr_zoo " + shlex.join(sys.argv[1:]),
        "torch": torch.__version__,
    }
    path = options.out / f"{options.stage}.safetensors"
    save_network(path, architecture, settings, state, provenance)
    sys.stdout.write(f"wrote {path}\n")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the network's constructor."""
    settings: dict[str, Any] = {"upscale": options.upscale}
    if options.network == "srresnet":
        settings |= {"num_feat": options.features, "num_block": options.blocks}
    elif options.network == "two_branch":
        try:
            settings |= matched_arguments(options.features, options.blocks)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        settings["predicts"] = list(options.degradations)
    return settings
