"""The task of an attribution: functions that the user names, or a folder of a language model with a text."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filterattr.attribution import FilterAttributor
from filterattr.cli.commands.weights import weights_of
from filterattr.cli.parsing import device_of
from filterattr.errors import FilterAttrError, SettingError
from filterattr.model.state_dict import StateLike
from filterattr.units.builders import attention_heads


class Task(NamedTuple):
    """What `FilterAttributor` needs.

    Attributes:
        attributor: The attributor of the model.
        base: Weights that lack the function.
        target: Weights that have it.
        loss: Function of a model and a sample.
        samples: The samples, on the device.
        settings: Further arguments of the call.
    """

    attributor: FilterAttributor
    base: StateLike
    target: StateLike
    loss: Callable[..., Tensor]
    samples: list[Any]
    settings: dict[str, Any]


def task_of(options: argparse.Namespace) -> Task:
    """Make the task that the options describe.

    Args:
        options: The options of the command.

    Returns:
        The task.

    Raises:
        SettingError: An option is missing, or what it names cannot be imported or called.
        StorageError: A checkpoint cannot be read.
    """
    names = {"--model": options.model, "--loss": options.loss, "--data": options.data}
    given = [name for name, spelling in names.items() if spelling]
    if given and (len(given) < len(names) or options.text is not None):
        missing = [name for name in names if name not in given]
        reason = f"{' and '.join(missing)} are missing" if missing else "--text comes with folders of language models"
        raise SettingError(f"--model, --loss and --data belong together, without --text; {reason}.")
    if not given and options.text is None:
        raise SettingError(
            "name the model, the loss and the data as --model package.module:name, --loss and --data, or a text file "
            "for folders of a language model as --text."
        )
    device = device_of(options)
    model, base, target, loss, data = _from_functions(options) if given else _from_folders(options)
    samples = [_moved(sample, device) for sample in data]
    if not samples:
        raise SettingError("the data must hold at least one sample; it is empty.")
    unit = attention_heads(model) if options.unit == "heads" else options.unit
    attributor = FilterAttributor(model.to(device).eval(), unit=unit, select=options.select)
    settings = {"n_steps": options.steps, "buffers": options.buffers, "precision": options.precision}
    return Task(attributor, base, target, loss, samples, settings)


def _from_functions(options: argparse.Namespace) -> tuple[nn.Module, StateLike, StateLike, Any, Iterable[Any]]:
    ends = [weights_of(path, options.key) for path in (options.base, options.target)]
    loss = named("--loss", options.loss)
    model = _called("--model", options.model)
    if not isinstance(model, nn.Module):
        raise SettingError(f"--model must name a function that returns a torch.nn.Module; got {type(model).__name__}.")
    data = _called("--data", options.data)
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise SettingError(f"--data must name a function that returns samples; got {type(data).__name__}.")
    return model, ends[0], ends[1], loss, data


def _from_folders(options: argparse.Namespace) -> tuple[nn.Module, StateLike, StateLike, Any, Iterable[Any]]:
    """A causal language model, with its loss on parts of a text."""
    try:
        import transformers  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SettingError("--text needs transformers: pip install transformers.") from error
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    text = _text(options.text)
    for folder in (options.base, options.target):
        if (folder / "adapter_config.json").is_file():
            raise SettingError(
                f"--text needs complete models; '{folder}' holds an adapter. Score it in Python (docs: Score a LoRA "
                "adapter), or save the model with the adapter merged into it (merge_and_unload) and pass that folder."
            )
        if not (folder / "config.json").is_file():
            raise SettingError(f"--text needs folders as save_pretrained writes them; '{folder}' has no config.json.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.base, local_files_only=True)
        opened: Any = transformers.AutoModelForCausalLM
        base, target = (
            opened.from_pretrained(folder, local_files_only=True).float() for folder in (options.base, options.target)
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SettingError(f"transformers could not open '{options.base}' and '{options.target}': {reason}") from error
    tokens = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64)
    count = min(options.samples, len(tokens) // options.length)
    if not count:
        raise SettingError(f"'{options.text}' has {len(tokens)} tokens; --length {options.length} needs more.")
    stride = len(tokens) // count
    pieces = [tokens[None, place * stride : place * stride + options.length] for place in range(count)]
    return target, base, target, _language_loss, pieces


def _language_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(f"--text must be a text in UTF-8; '{path}' is not.") from error


def named(option: str, spelling: str) -> Any:
    """Import a function that the user named.

    Args:
        option: The option.
        spelling: ``package.module:name``.

    Returns:
        The function.

    Raises:
        SettingError: There is no such module or function, or the module cannot be imported.

    Example:
        >>> named("--loss", "math:sqrt")(9.0)
        3.0
    """
    module, _, name = spelling.partition(":")
    if not module or not name:
        raise SettingError(f"{option} must be spelt package.module:name; got '{spelling}'.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = importlib.import_module(module)
    except Exception as error:
        raise SettingError(f"{option} names '{spelling}', which cannot be imported: {_brief(error)}.") from error
    for part in name.split("."):
        if not hasattr(value, part):
            raise SettingError(f"{option} names '{spelling}', and '{module}' has no '{name}'.")
        value = getattr(value, part)
    if not callable(value):
        raise SettingError(f"{option} must name a function; '{spelling}' is {type(value).__name__}.")
    return value


def _called(option: str, spelling: str) -> Any:
    function = named(option, spelling)
    try:
        return function()
    except FilterAttrError:
        raise
    except Exception as error:
        raise SettingError(f"{option} names '{spelling}', which raised {_brief(error)}.") from error


def _brief(error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return f"{type(error).__name__}: {reason[0]}".rstrip(".") if reason else type(error).__name__


def _moved(sample: Any, device: torch.device) -> Any:
    """The sample with its tensors on a device."""
    if isinstance(sample, Tensor):
        return sample.to(device)
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return type(sample)(*(_moved(part, device) for part in sample))
    if isinstance(sample, tuple | list):
        return type(sample)(_moved(part, device) for part in sample)
    if type(sample) is dict:
        return {key: _moved(part, device) for key, part in sample.items()}
    if isinstance(sample, Mapping) and hasattr(sample, "to"):
        return sample.to(device)
    return sample
