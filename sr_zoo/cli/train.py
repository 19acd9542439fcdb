"""``train``: one network, one stage, resumable."""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from filterattr.cli import OutputError, check_folder, device_of
from filterattr.memory import available_bytes
from sr_zoo.cli.keys import keys_of
from sr_zoo.cost import cost
from sr_zoo.data import hold_out, load_photographs
from sr_zoo.degradations import (
    STRENGTH_UNITS,
    Degradation,
    blind_inputs,
    clean_inputs,
    degradations_from,
    evaluation_inputs,
    spellings_of,
)
from sr_zoo.folder_lock import sole_run
from sr_zoo.models import TwoBranch
from sr_zoo.pretrained import ARCHITECTURES, OpenedWeights, WeightsError, build, open_weights, save_network
from sr_zoo.training import (
    Recipe,
    Trainer,
    TrainingError,
    TrainingInterrupted,
    fast_precision,
    joined_processes,
    read_log,
    stored_precision,
)

_RATES = {"base": 2e-4, "target": 5e-5}
_COPIES = 5  # the weights, their average, two moments of Adam, and the weights it started from


def run(options: argparse.Namespace) -> None:
    """Train to the end, or resume a run that was killed."""
    if options.stage == "target" and options.start is None:
        raise TrainingError(
            "target is fine-tuned from base: give its weights with --from BASE.safetensors, or --from scratch."
        )
    _check_out(options)
    degradations = degradations_from(options.degradations)
    architecture, settings, network = _network(options, degradations)
    scale = int(network.upscale)  # type: ignore[arg-type]
    recipe = _recipe(options, scale, degradations)
    with joined_processes(device_of(options)) as (processes, device):
        photographs, validation = hold_out(load_photographs(options.images, progress=processes.is_first))
        trainer = Trainer(
            network,
            photographs,
            validation,
            recipe,
            options.out,
            inputs=evaluation_inputs(scale, degradations=degradations),
            validate_every=options.validate_every,
            device=device,
            tensorboard=options.tensorboard and not options.dry_run,
            processes=processes,
        )
        if options.dry_run:
            lines = _forecast(trainer, len(photographs))
            sys.stdout.write(lines if processes.is_first else "")
            return
        with sole_run(options.out) if processes.is_first else nullcontext():
            try:
                state = trainer.run(options.stop_after)
            except TrainingInterrupted as stop:
                if not processes.is_first:
                    sys.exit(130)
                sys.stderr.write(f"{str(stop).replace('the same call', 'the same command')}\n")
                raise
    if not processes.is_first:
        return
    if trainer.iteration < recipe.iterations:
        sys.stdout.write(f"stopped after {trainer.iteration} of {recipe.iterations} iterations\n")
        return
    provenance = {
        "stage": options.stage,
        "degradations": spellings_of(degradations),
        "recipe": vars(recipe),
        "photographs": len(photographs),
        "cosine_to_first_weights": trainer.cosine(),
        "first_losses": {str(e["iteration"]): e["loss"] for e in read_log(options.out) if e["iteration"] <= 200},
        "command": "python -m sr_zoo " + shlex.join(sys.argv[1:]),
        "torch": torch.__version__,
    }
    path = options.out / f"{options.stage}.safetensors"
    save_network(path, architecture, settings, state, provenance)
    sys.stdout.write(f"wrote {path}\n")


def _check_out(options: argparse.Namespace) -> None:
    """Refuse a folder that cannot be, and one whose weights a training from the start would replace."""
    check_folder("--out", options.out)
    weights = options.out / f"{options.stage}.safetensors"
    if weights.exists() and not (options.out / "checkpoint.safetensors").exists():
        raise OutputError(
            f"--out names '{options.out}', which holds {weights.name} and no checkpoint to go on from: name another "
            "folder."
        )


def _network(
    options: argparse.Namespace, degradations: Mapping[str, Degradation]
) -> tuple[str, dict[str, Any], nn.Module]:
    """Name, constructor's arguments and first weights of the network."""
    if options.start not in (None, "scratch"):
        opened = open_weights(options.start, key=keys_of(options, [options.start])[0])
        if opened.architecture not in ARCHITECTURES:
            raise WeightsError(
                f"{', '.join(ARCHITECTURES)} can be trained; '{options.start}' is {opened.architecture}."
            )
        _refuse_contradictions(options, opened)
        return opened.architecture, opened.arguments, opened.network.train()
    settings: dict[str, Any] = {"upscale": options.upscale or 2}
    name, features, blocks = options.network or "srresnet", options.features or 64, options.blocks or 16
    if name == "srresnet":
        settings |= {"num_feat": features, "num_block": blocks}
    kind = ARCHITECTURES[name]
    if issubclass(kind, TwoBranch):
        try:
            settings |= kind.matched_arguments(features, blocks)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        foreign = [name for name in degradations if name not in STRENGTH_UNITS]
        if foreign:
            raise WeightsError(
                f"{name} estimates how strong {', '.join(STRENGTH_UNITS)} are, and nothing else; got "
                f"{', '.join(foreign)}. Leave it out, or train another --network."
            )
        settings["predicts"] = list(degradations)
    _check_memory(name, settings, device_of(options))
    torch.manual_seed(options.seed)
    return name, settings, build(name, settings)


def _refuse_contradictions(options: argparse.Namespace, opened: OpenedWeights) -> None:
    """Refuse options that ask for another network than that of the weights to start from."""
    held = {"network": opened.architecture, "upscale": getattr(opened.network, "upscale", None)}
    if opened.architecture == "srresnet":
        held |= {"features": opened.arguments.get("num_feat"), "blocks": opened.arguments.get("num_block")}
    wrong = [
        f"--{name} {given} (it has {value})"
        for name, value in held.items()
        if value is not None and (given := getattr(options, name)) not in (None, value)
    ]
    if wrong:
        raise WeightsError(
            f"'{options.start}' brings its own network, and {', '.join(wrong)} asks for another: leave that out, or "
            "start --from scratch."
        )


def _check_memory(architecture: str, settings: Mapping[str, Any], device: torch.device) -> None:
    """Refuse a network that is known not to fit, before it takes the memory of everybody else."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(architecture, settings).parameters())
    needed, free = _COPIES * 4 * count, available_bytes(device)
    if free is not None and needed > free:
        raise WeightsError(
            f"a training of {count:,} parameters needs {needed / 1e9:.1f} GB for weights and optimizer, of which "
            f"{free / 1e9:.1f} GB are free: use fewer --features or --blocks."
        )


def _recipe(options: argparse.Namespace, scale: int, degradations: Mapping[str, Degradation]) -> Recipe:
    """Everything else that decides the outcome."""
    blind = options.stage == "target"
    degradation: Degradation = clean_inputs(scale)
    if blind:
        degradation = blind_inputs(scale, degradations=degradations, one_at_a_time=options.one_at_a_time)
    return Recipe(
        degradation.config(),
        iterations=options.iterations,
        learning_rate=_RATES[options.stage] if options.learning_rate is None else options.learning_rate,
        batch_size=options.batch_size,
        patch_size=options.patch_size or 64 // scale * scale,
        margin=16 * scale if scale != 2 else 16,
        precision=options.precision or stored_precision(options.out) or fast_precision(device_of(options)),
        seed=options.seed,
        prediction_weight=options.prediction_weight,
    )


def _forecast(trainer: Trainer, photographs: int) -> str:
    """What the training will cost, as text."""
    recipe, scale = trainer.recipe, trainer.scale
    counted = cost(trainer.network, recipe.patch_size // scale, recipe.patch_size // scale)
    step, validation = trainer.rehearse()
    validations = math.ceil(recipe.iterations / trainer.validate_every)
    whole = datetime.timedelta(seconds=round(recipe.iterations * step + validations * validation))
    checkpoint, weights = _COPIES * 4 * counted.parameters / 1e6, 4 * counted.parameters / 1e6
    return (
        f"network      {type(trainer.network).__name__} x{scale}: {counted.parameters:,} parameters, "
        f"{counted.multiply_adds / 1e6:,.0f} million multiply-adds a patch\n"
        f"photographs  {photographs} to train on, {len(trainer.validation)} to validate on\n"
        f"iteration    {step:.3f} s, {recipe.batch_size / step:.0f} patches a second ({recipe.batch_size} of "
        f"{recipe.patch_size}x{recipe.patch_size}, {recipe.precision}, {trainer.device}, {trainer.processes.count} "
        f"process{'es' if trainer.processes.count > 1 else ''})\n"
        f"validation   {validation:.1f} s, {validations} times\n"
        f"in total     {whole} for {recipe.iterations:,} iterations\n"
        f"disk         {checkpoint:.1f} MB for the checkpoint, twice that while it is written, {weights:.1f} MB for "
        "the weights\n"
    )
