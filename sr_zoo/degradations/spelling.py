"""How degradations are spelled where only text can be given: on a command line, and in the description of weights."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sr_zoo.degradations.base import Degradation, DegradationError, from_config
from sr_zoo.degradations.protocol import PARTS, clean_inputs, evaluation_inputs

SPELLING = "blur, noise, jpeg, such as blur:3, noise:0.05 or jpeg:10, or NAME=FILE.json"
_FIELDS = {"blur": "sigma", "noise": "sigma", "jpeg": "quality"}
_RESERVED = ("clean", "both", "all")
_NAME = re.compile(r"[A-Za-z][\w-]*")


def degradations_from(spellings: Iterable[str]) -> dict[str, Degradation]:
    """Read how degradations are spelled.

    ``blur``, ``noise`` and ``jpeg`` are those of the protocol; a number behind a colon is another standard deviation
    in pixels, another standard deviation on [0, 1], another quality. A file ``NAME.json``, or a description that
    begins with a brace, is what `Degradation.config` gives, and may be any degradation. ``NAME=`` in front gives it
    another name.

    Args:
        spellings: Such as ``["blur", "jpeg:10", "heavy=noise:0.2", "rain.json"]``.

    Returns:
        Name to degradation: blur, noise and jpeg first if they are there, the others as they were given.

    Raises:
        DegradationError: Something cannot be read, a name is reserved or given twice; all findings are in one message.

    Example:
        >>> degradations_from(["jpeg:10", "heavy=noise:0.2"])
        {'jpeg': JPEG(quality=10, subsampling='4:2:0'), 'heavy': GaussianNoise(sigma=0.2, gray=False)}
        >>> degradations_from(['grain={"type": "PoissonNoise", "scale": 2.0}'])
        {'grain': PoissonNoise(scale=2.0, gray=False)}
    """
    found: dict[str, Degradation] = {}
    findings = []
    for spelling in spellings:
        try:
            name, degradation = _read(spelling)
        except DegradationError as error:
            findings.append(str(error).rstrip("."))
            continue
        if name in _RESERVED or not _NAME.fullmatch(name):
            findings.append(
                f"the name of {spelling!r} must be letters, digits, _ and -, and none of {', '.join(_RESERVED)}; got "
                f"{name!r}: put another one in front, NAME={spelling.partition('=')[2] or spelling}"
            )
        elif name in found:
            findings.append(f"every degradation must have a name of its own; {name!r} is given twice: use NAME=...")
        found[name] = degradation
    if findings:
        raise DegradationError("; ".join(findings) + ".")
    return {name: found[name] for name in (*(name for name in PARTS if name in found), *found)}


def input_from(spellings: Sequence[str], scale: int) -> tuple[str, Degradation]:
    """Make one input of a network: all degradations together, with the downsampling among them.

    Args:
        spellings: As for `degradations_from`, or ``["clean"]``.
        scale: Factor of the downsampling.

    Returns:
        Its name, and the degradation from a photograph to the input.

    Raises:
        DegradationError: As for `degradations_from`, or several are given and one of them shrinks the image.

    Example:
        >>> import torch
        >>> name, degradation = input_from(["blur", "noise"], scale=2)
        >>> name, tuple(degradation(torch.rand(1, 3, 48, 48), torch.Generator().manual_seed(0)).shape)
        ('blur+noise', (1, 3, 24, 24))
    """
    if list(spellings) == ["clean"]:
        return "clean", clean_inputs(scale)
    parts = degradations_from(spellings)
    name, degradation = list(evaluation_inputs(scale, degradations=parts).items())[-1]
    if len(parts) > 1 and name in parts:
        raise DegradationError(
            f"of several degradations none may shrink the image, as they follow one another; got {', '.join(parts)}."
        )
    return name if name in parts else "+".join(parts), degradation


def spellings_of(degradations: Mapping[str, Degradation]) -> list[str]:
    """Spell degradations, so that `degradations_from` finds the same ones without any file.

    Args:
        degradations: Name to degradation.

    Returns:
        One text for each.

    Example:
        >>> from sr_zoo.degradations import JPEG, PoissonNoise
        >>> spellings_of({"jpeg": JPEG(quality=10), "grain": PoissonNoise(2.0)})
        ['jpeg:10', 'grain={"type": "PoissonNoise", "scale": 2.0, "gray": false}']
    """
    return [_spelled(name, degradation) for name, degradation in degradations.items()]


def _spelled(name: str, degradation: Degradation) -> str:
    if name in PARTS:
        field = _FIELDS[name]
        value = getattr(degradation, field, None)
        if degradation == PARTS[name]:
            return name
        if value is not None and degradation == dataclasses.replace(PARTS[name], **{field: value}):
            return f"{name}:{value}"
    return f"{name}={json.dumps(degradation.config())}"


def _read(spelling: str) -> tuple[str, Degradation]:
    """Name and degradation of one spelling."""
    name, named, spelled = spelling.partition("=")
    if not named or name.lstrip().startswith("{"):
        name, spelled = "", spelling
    if spelled.lstrip().startswith("{"):
        return name, _described(spelled, spelling)
    if spelled.endswith(".json"):
        try:
            text = Path(spelled).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DegradationError(f"{spelled!r} must be a file that can be read; {error}.") from error
        return name or Path(spelled).stem, _described(text, spelled)
    kind, _, value = spelled.partition(":")
    if kind not in PARTS:
        raise DegradationError(f"a degradation is spelled {SPELLING}; got {spelling!r}.")
    if not value:
        return name or kind, PARTS[kind]
    field = _FIELDS[kind]
    try:
        number: float = int(value) if field == "quality" else float(value)
    except ValueError as error:
        raise DegradationError(f"{field} of {kind} must be a number; got {spelling!r}.") from error
    return name or kind, dataclasses.replace(PARTS[kind], **{field: number})


def _described(text: str, source: str) -> Degradation:
    """Read a description in JSON."""
    try:
        description = json.loads(text)
    except json.JSONDecodeError as error:
        raise DegradationError(f"{source!r} must be the description of a degradation in JSON; {error}.") from error
    try:
        return from_config(description)
    except DegradationError as error:
        raise DegradationError(f"{source!r}: {error}") from error
