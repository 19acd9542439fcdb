"""The commands and their options."""

from __future__ import annotations

import importlib
from pathlib import Path

from filterattr.cli.numbers import number, whole_number
from filterattr.cli.parsing import Commands, Parser

_MOST = 10**9
_CHECKPOINT = "a file of torch.save or safetensors, or a folder as Hugging Face libraries write it"
_ATTRIBUTE = """attribute before after --text task.txt
attribute before.pt after.pt --model project.nets:make --loss project.task:loss --data project.task:samples"""
_EXAMPLES = """examples:
  filterattr diff before.pt after.pt
  filterattr attribute before after --text task.txt
  filterattr select attribution.safetensors --fraction 0.01
  filterattr COMMAND --help"""


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Make the parser of the program.

    Returns:
        The parser, and the parser of each command by name.

    Example:
        >>> sorted(make_parser()[1])
        ['apply', 'attribute', 'completion', 'diff', 'estimate', 'export', 'mask', 'report', 'select']
    """
    parser = Parser(
        prog="filterattr",
        description="Find the units that carry what a network learned by fine-tuning: compare two checkpoints, score "
        "their units, and export the weights that matter.",
        epilog=_EXAMPLES,
    )
    package = importlib.import_module("filterattr")  # which stands above its parts
    parser.add_argument("--version", action="version", version=package.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    makers = (
        _add_diff,
        _add_attribute,
        _add_estimate,
        _add_select,
        _add_mask,
        _add_export,
        _add_apply,
        _add_report,
        _add_completion,
    )
    for add in makers:
        add(commands)
    return parser, dict(commands.choices)


def _command(commands: Commands, name: str, description: str, examples: str) -> Parser:
    """A command with its line in the list, and examples at the end."""
    epilog = "examples:\n" + "\n".join(f"  filterattr {line}" for line in examples.splitlines())
    parser = commands.add_parser(name, help=description, description=description, epilog=epilog)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of text")
    parser.set_defaults(module=f"filterattr.cli.commands.{name}")
    return parser


def _add_out(parser: Parser, default: str | None, what: str) -> None:
    parser.add_argument(
        "--out", type=Path, default=None if default is None else Path(default), required=default is None, help=what
    )
    _add_overwrite(parser)


def _add_overwrite(parser: Parser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _add_ends(parser: Parser) -> None:
    parser.add_argument("base", type=Path, help=f"checkpoint from before the fine-tuning: {_CHECKPOINT}")
    parser.add_argument("target", type=Path, help="checkpoint of the same network from after it")
    _add_key(parser)


def _add_key(parser: Parser) -> None:
    parser.add_argument("--key", help="entry of a torch.save file that holds the weights; dots for nested entries")


def _add_diff(commands: Commands) -> None:
    parser = _command(
        commands,
        "diff",
        "Show what differs between two checkpoints, layer by layer.",
        """diff before.pt after.pt
diff before after --depth 3 --html difference.html""",
    )
    parser.add_argument("first", type=Path, help=_CHECKPOINT)
    parser.add_argument("second", type=Path, help="the checkpoint to compare it with")
    _add_key(parser)
    parser.add_argument(
        "--depth", type=whole_number(1, 100), help="group parameters by this many leading parts of their names"
    )
    parser.add_argument("--top", type=whole_number(0, _MOST), default=20, help="rows to print; 0 prints all")
    parser.add_argument("--html", type=Path, help="HTML page to write as well")
    _add_overwrite(parser)


def _add_task(parser: Parser) -> None:
    """Add what is attributed: functions of the user, or a language model with a text."""
    _add_ends(parser)
    parser.add_argument("--model", metavar="MODULE:NAME", help="function without arguments that returns the model")
    parser.add_argument("--loss", metavar="MODULE:NAME", help="function of a model and a sample that returns a number")
    parser.add_argument("--data", metavar="MODULE:NAME", help="function without arguments that returns the samples")
    parser.add_argument("--text", type=Path, help="text file; with folders of a language model, whose loss is used")
    parser.add_argument(
        "--samples", type=whole_number(1, _MOST), default=16, help="largest number of parts of the text"
    )
    parser.add_argument("--length", type=whole_number(2, 2**20), default=128, help="tokens in a part of the text")
    parser.add_argument(
        "--unit",
        help="what gets a score: kernel, filter, input, layer, weight, heads or a pattern (default: kernel; filter for "
        "large linear layers)",
    )
    parser.add_argument(
        "--select",
        nargs="+",
        metavar="GLOB",
        help="parameters to score, such as 'body.*' (default: all of two or more dimensions)",
    )
    parser.add_argument("--steps", type=whole_number(1, 4096), default=16, help="nodes of the integral")
    parser.add_argument(
        "--buffers", choices=("base", "target"), help="whose running statistics of batch normalization to use"
    )
    parser.add_argument("--precision", choices=("bf16",), help="precision of the loss (default: that of the model)")
    parser.add_argument("--device", help="where to compute (default: a GPU if there is one)")


def _add_attribute(commands: Commands) -> None:
    parser = _command(
        commands, "attribute", "Score every unit of two checkpoints; a run that was stopped resumes.", _ATTRIBUTE
    )
    _add_task(parser)
    _add_out(parser, "attribution.safetensors", "file for the attribution")


def _add_estimate(commands: Commands) -> None:
    parser = _command(
        commands,
        "estimate",
        "Estimate the passes, minutes and memory of an attribution from one sample.",
        _ATTRIBUTE.replace("attribute ", "estimate "),
    )
    _add_task(parser)


def _add_select(commands: Commands) -> None:
    parser = _command(
        commands,
        "select",
        "Select the units with the highest scores.",
        """select attribution.safetensors --fraction 0.01
select attribution.safetensors --count 50 --only 'body.*' --out body.safetensors""",
    )
    parser.add_argument("scores", type=Path, help="file of an attribution or of scores")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--fraction", type=number(0, 1), default=0.01, help="share of all units")
    amount.add_argument("--count", type=whole_number(0, _MOST), help="number of units instead of a share")
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="parameters to select from")
    parser.add_argument(
        "--reduction",
        choices=("sum_of_abs", "abs_of_sum", "sum"),
        default="sum_of_abs",
        help="how the weights of a unit become one number",
    )
    _add_out(parser, "selection.safetensors", "file for the selection")


def _add_mask(commands: Commands) -> None:
    parser = _command(
        commands,
        "mask",
        "Write target with the selected units set back to base, in the layout of target.",
        "mask before.pt after.pt --selection selection.safetensors --out masked.pt",
    )
    _add_ends(parser)
    parser.add_argument("--selection", type=Path, required=True, help="file that 'select' wrote")
    parser.add_argument(
        "--strength",
        type=number(-100, 100),
        default=0.0,
        help="strength of the selected units: 0 is base, 1 is target, 1.5 is beyond",
    )
    _add_out(parser, None, "file to write, or folder if target is a folder")


def _add_export(commands: Commands) -> None:
    parser = _command(
        commands,
        "export",
        "Export a selection or scores to other programs.",
        """export patch selection.safetensors before.pt after.pt
export ranks attribution.safetensors --rank 8
export masks selection.safetensors""",
    )
    forms = parser.add_subparsers(required=True, metavar="FORM", dest="form")
    patch = forms.add_parser("patch", help="the selected weights of target, to apply to base")
    patch.add_argument("selection", type=Path, help="file that 'select' wrote")
    _add_ends(patch)
    _add_out(patch, "patch.safetensors", "file for the patch")
    ranks = forms.add_parser("ranks", help="arguments of peft.LoraConfig with ranks by contribution, as JSON")
    ranks.add_argument("scores", type=Path, help="file of an attribution or of scores")
    ranks.add_argument(
        "--rank", type=whole_number(1, 2**16), default=8, help="rank of all layers in a uniform budget of the same size"
    )
    ranks.add_argument("--scaling", type=number(0, 1e6, open_ends=True), default=1.0, help="alpha divided by rank")
    _add_out(ranks, "lora.json", "file for the arguments")
    masks = forms.add_parser("masks", help="masks for pruning: false prunes a weight")
    masks.add_argument("selection", type=Path, help="file that 'select' wrote")
    masks.add_argument("--keep", action="store_true", help="prune all but the selected units")
    _add_out(masks, "masks.safetensors", "file for the masks")


def _add_apply(commands: Commands) -> None:
    parser = _command(
        commands,
        "apply",
        "Apply a patch to base, in the layout of base.",
        "apply before.pt patch.safetensors --out patched.pt",
    )
    parser.add_argument("base", type=Path, help=f"the checkpoint that the patch was made from: {_CHECKPOINT}")
    parser.add_argument("patch", type=Path, help="file that 'export patch' wrote")
    _add_key(parser)
    _add_out(parser, None, "file to write, or folder if base is a folder")


def _add_report(commands: Commands) -> None:
    parser = _command(
        commands,
        "report",
        "Write attributions and selections as one HTML page.",
        "report attribution.safetensors --selection selection.safetensors",
    )
    parser.add_argument("attributions", type=Path, nargs="+", help="files that 'attribute' wrote")
    parser.add_argument("--selection", type=Path, nargs="+", default=[], help="files that 'select' wrote")
    parser.add_argument("--title", default="Which units carry the function?", help="title of the page")
    parser.add_argument("--question", default="", help="question to print below the title")
    _add_out(parser, "report.html", "file for the page")


def _add_completion(commands: Commands) -> None:
    description = 'Print a script for bash that completes commands and options: eval "$(filterattr completion)"'
    parser = commands.add_parser("completion", help=description.partition(":")[0] + ".", description=description)
    parser.set_defaults(module="filterattr.cli.commands.completion")
