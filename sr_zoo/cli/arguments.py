"""What can be typed after each command. No torch here: names that other modules define are held by a test."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from filterattr.cli import LARGEST_SEED, Commands, Parser, number, whole_number

BASE, TARGET = "srresnet_x2_f32b8_base", "srresnet_x2_f32b8_target"
DEGRADATIONS = ["blur", "noise"]
SPELLING = "blur, noise, jpeg, such as blur:3, noise:0.05 or jpeg:10, or NAME=FILE.json"
ARCHITECTURES = ("srresnet", "srcnn_style", "two_branch", "dasr", "rrdbnet")
TRAINED = ("srresnet", "srcnn_style", "two_branch", "dasr")
PRECISIONS = ("fp32", "bf16")
STAGES = (
    "search",
    "sanity",
    "stability",
    "depth",
    "curves",
    "nulls",
    "specificity",
    "reversion",
    "modulation",
    "rankings",
    "comparison",
    "rivals",
    "oracle",
    "channels",
    "gradient_maps",
    "prediction",
    "places",
    "retraining",
    "adaptive",
    "pictures",
)
_WEIGHTS = "a shipped name, a file of 'train', or a checkpoint in the layout of BasicSR (.pth)"
_ITERATIONS = whole_number(1, 1_000_000_000)


def _command(commands: Commands, name: str, summary: str, description: str, examples: str) -> Parser:
    """A command with its line in the list, its description, and examples at the end."""
    lines = "\n".join(f"  python -m sr_zoo {line}" for line in examples.strip().splitlines())
    return commands.add_parser(name, help=summary, description=description, epilog=f"examples:\n{lines}")


def _add_key(parser: argparse.ArgumentParser, *, of_pair: bool = False) -> None:
    parser.add_argument(
        "--key",
        nargs="+" if of_pair else 1,
        metavar="KEY",
        help="which network of a checkpoint that holds several: the name of an entry, or the beginning of the names of "
        "its weights" + ("; two keys are for base and for target" if of_pair else ""),
    )


def _add_seed(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument("--seed", type=whole_number(0, LARGEST_SEED), default=0, help=f"seed of {of}")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="where to compute, such as cpu or cuda (default: a GPU if there is one)")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")


def _add_pair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=BASE, help="weights that lack the functions: a shipped name or a file")
    parser.add_argument("--target", default=TARGET, help="weights that have them: a shipped name or a file")
    _add_key(parser, of_pair=True)


def demo(commands: Commands) -> None:
    """Add ``demo``.

    Args:
        commands: Those of the program, here and below.
    """
    parser = _command(
        commands,
        "demo",
        "find the 1%% of the kernels that remove blur, and those that remove noise, and mask them",
        "Find the kernels that carry deblurring and denoising on some photographs, mask them on others, and compare "
        "with random kernels. Takes about two minutes with the photographs of scikit-image.",
        """demo
demo --search MY_PHOTOS --test OTHER_PHOTOS
demo --base before.pth --target after.pth --search MY_PHOTOS --test OTHER_PHOTOS""",
    )
    _add_pair(parser)
    parser.add_argument("--search", type=Path, help="folder of photographs to find the kernels on")
    parser.add_argument("--test", type=Path, help="folder of other photographs to mask them on")
    parser.add_argument(
        "--crops", type=whole_number(1, 100_000), default=12, help="crops of 128x128 pixels to search, and to test"
    )
    parser.add_argument(
        "--draws", type=whole_number(2, 100_000), default=30, help="random sets in each null distribution"
    )
    parser.add_argument(
        "--fraction", type=number(0, 1, open_ends=True), default=0.01, help="share of all kernels in a set"
    )
    parser.add_argument("--steps", type=whole_number(1, 1024), default=16, help="nodes of the integral")
    _add_seed(parser, "crops, noise and random sets")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for pictures and table")
    _add_overwrite(parser)


def degrade(commands: Commands) -> None:
    """Add ``degrade``."""
    parser = _command(
        commands,
        "degrade",
        "draw what every degradation does to a photograph, or write one degraded image",
        "Draw every degradation of a photograph on one sheet. With --degradation, write the photograph with these "
        "degradations applied instead.",
        """degrade photograph.png
degrade photograph.png --degradation blur:3 noise:0.1 --out degraded.png
degrade photograph.png --degradation clean --scale 2 --out small.png""",
    )
    parser.add_argument(
        "photograph",
        type=Path,
        help="an image file; for the sheet of at least 96x96 pixels, of which the middle is shown",
    )
    parser.add_argument(
        "--degradation", nargs="+", metavar="DEGRADATION", help=f"degradations to apply together: clean, {SPELLING}"
    )
    parser.add_argument(
        "--scale",
        type=whole_number(1, 8),
        default=1,
        help="with --degradation: factor to shrink the photograph by, as in the input of a network",
    )
    parser.add_argument(
        "--size", type=whole_number(96, 16_384), default=144, help="width of the part on the sheet, in pixels"
    )
    _add_seed(parser, "all random numbers")
    parser.add_argument(
        "--out", type=Path, help="file to write (default: degradations.png, or NAME_degraded.png of the photograph)"
    )
    _add_overwrite(parser)


def restore(commands: Commands) -> None:
    """Add ``restore``."""
    parser = _command(
        commands,
        "restore",
        "enlarge an image or a folder of images, and remove blur and noise",
        "Enlarge images of any size, tile by tile, and remove their degradations. Gray stays gray, and transparency is "
        "kept.",
        """restore picture.png
restore FOLDER
restore picture.png --weights net_g_latest.pth --out large.png""",
    )
    parser.add_argument("image", type=Path, help="an image file with 8 bits per channel, or a folder of these")
    parser.add_argument("--weights", default=TARGET, help=_WEIGHTS)
    _add_key(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write, or folder for a folder (default: NAME_restored.png next to the image, FOLDER_restored)",
    )
    _add_overwrite(parser)
    parser.add_argument(
        "--tile", type=whole_number(16, 1_000_000), default=256, help="width of the tiles of a larger image, in pixels"
    )
    _add_device(parser)


def attribute(commands: Commands) -> None:
    """Add ``attribute``."""
    parser = _command(
        commands,
        "attribute",
        "score every kernel of two checkpoints on a folder of photographs, for one degradation",
        "Score every kernel by the part of the change of the loss that is due to its change from base to target. A run "
        "that was stopped resumes when the command is given again.",
        """attribute before.pth after.pth --images PHOTOS --degradation blur
attribute before.pth after.pth --images PHOTOS --degradation noise:0.1 --crops 24 --out noise""",
    )
    parser.add_argument("base", help="weights that lack the function: a shipped name, a file, or a .pth checkpoint")
    parser.add_argument("target", help="weights of the same network that have it")
    _add_key(parser, of_pair=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument(
        "--degradation",
        nargs="+",
        default=["blur"],
        metavar="DEGRADATION",
        help=f"degradations to apply to the photographs, all together: clean, {SPELLING}",
    )
    parser.add_argument("--crops", type=whole_number(1, 100_000), default=12, help="number of crops")
    parser.add_argument("--size", type=whole_number(16, 16_384), default=128, help="width of a crop in pixels")
    parser.add_argument("--steps", type=whole_number(1, 1024), default=16, help="nodes of the integral")
    parser.add_argument(
        "--fraction",
        type=number(0, 1, open_ends=True),
        default=0.01,
        help="share of all kernels in the printed selection",
    )
    _add_seed(parser, "crops and noise")
    _add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("attribution"), help="folder for scores and picture")
    _add_overwrite(parser)


def study(commands: Commands) -> None:
    """Add ``study``."""
    parser = _command(
        commands,
        "study",
        "test the kernels of two checkpoints, with null distributions and intervals, and write a report",
        "Measure what the kernels of two checkpoints do, with null distributions and intervals, and write a report. A "
        "study that was stopped resumes when the command is given again.",
        """study --quick
study --base before.pth --target after.pth --images PHOTOS --degradations blur noise --dry-run
study --quick --stages search specificity --search PHOTOS --test OTHER_PHOTOS""",
    )
    _add_pair(parser)
    parser.add_argument("--model", choices=ARCHITECTURES, help="network of files that do not name it")
    parser.add_argument(
        "--model-arguments",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of that network, such as num_feat=64 num_block=16 upscale=2",
    )
    parser.add_argument("--search", type=Path, help="folder of photographs to find kernels on")
    parser.add_argument("--test", type=Path, help="folder of other photographs to test on")
    parser.add_argument("--images", type=Path, help="one folder for both: every second photograph is tested on")
    parser.add_argument(
        "--degradations",
        nargs="+",
        default=DEGRADATIONS,
        metavar="DEGRADATION",
        help=f"degradations that target has learned to remove: {SPELLING}",
    )
    parser.add_argument("--out", type=Path, default=Path("study_output"), help="folder of the study")
    _add_overwrite(parser)
    parser.add_argument("--quick", action="store_true", help="use small numbers: minutes instead of hours")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, metavar="STAGE", help=f"run only these: {', '.join(STAGES)}"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what it costs, and stop")
    for name, least, most, help_text in (
        ("crop", 32, 16_384, "width of a crop in pixels"),
        ("search-crops", 4, 10_000, "crops to search"),
        ("test-crops", 4, 10_000, "crops to test"),
        ("steps", 1, 1024, "nodes of the integral"),
        ("null-draws", 2, 100_000, "random sets of each size and kind"),
        ("reversion-draws", 2, 100_000, "random sets of each set whose outputs are compared"),
        ("ranking-crops", 1, 100_000, "search crops that every other ranking takes"),
        ("retrain-seeds", 1, 1_000, "trainings of each set of places"),
        ("retrain-iterations", 1, 10_000_000, "iterations of each training"),
        ("adaptive-iterations", 0, 10_000_000, "iterations to tune the patches"),
        ("seed", 0, LARGEST_SEED, "seed of all random numbers"),
    ):
        parser.add_argument(
            f"--{name}",
            type=whole_number(least, most),
            default=argparse.SUPPRESS,
            help=f"{help_text}, instead of the preset",
        )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=argparse.SUPPRESS,
        help="precision of trainings (default: that of the stored study, or what the processor computes fast)",
    )


def report(commands: Commands) -> None:
    """Add ``report``."""
    parser = _command(
        commands,
        "report",
        "write the report of a study again, from its stored results",
        "Write report.html and summary.md of a study again, from its stored results.",
        "report study_output",
    )
    parser.add_argument("study", type=Path, help="folder of the study")


def card(commands: Commands) -> None:
    """Add ``card``."""
    parser = _command(
        commands,
        "card",
        "measure weights and write a card: PSNR and SSIM for clean, blurred, noisy and both inputs",
        "Measure PSNR and SSIM of weights on clean, blurred, noisy and both inputs, and write a card that "
        "describes them.",
        'card runs/target/target.safetensors --images set5 bsd100 --data "what it was trained on"',
    )
    parser.add_argument("weights", help="weights: a shipped name or a file")
    _add_key(parser)
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, help="folders of photographs to measure on, such as set5"
    )
    parser.add_argument("--data", required=True, help="what the weights were trained on, with its licence")
    _add_seed(parser, "the noise")
    parser.add_argument("--out", type=Path, help="file to write the card to, besides printing it")
    parser.add_argument(
        "--half",
        type=Path,
        help="file to write the weights to in half precision, if this changes no PSNR by more than 0.01 dB; the card "
        "then describes this file",
    )
    _add_overwrite(parser)


def compare(commands: Commands) -> None:
    """Add ``compare``."""
    parser = _command(
        commands,
        "compare",
        "measure networks side by side, over several seeds",
        "Measure PSNR and SSIM of several networks on the same inputs, as means over seeds.",
        'compare --network "one branch" one0.safetensors one1.safetensors --network "two branches" two0.safetensors '
        "--images set5 bsd100",
    )
    parser.add_argument(
        "--network",
        dest="networks",
        nargs="+",
        action="append",
        required=True,
        metavar=("LABEL", "WEIGHTS"),
        help="a label and the weights of one or more seeds; give the option once per network",
    )
    _add_key(parser)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of photographs to measure on")
    _add_seed(parser, "the noise")
    _add_device(parser)
    parser.add_argument("--out", type=Path, help="file for the table (.md); its numbers go next to it (.json)")
    _add_overwrite(parser)


def train(commands: Commands) -> None:
    """Add ``train``."""
    parser = _command(
        commands,
        "train",
        "train a network: 'base' on clean pairs, then 'target' from it on blurred and noisy ones",
        "Train base on clean pairs, then target from base on degraded ones. A run that was stopped resumes when the "
        "command is given again. Several processes (torchrun) share each batch; the result is that of one process.",
        """train base --images PHOTOS --out runs/base
train target --images PHOTOS --from runs/base/base.safetensors --out runs/target
train target --images PHOTOS --from base.pth --degradations blur jpeg:10 --out runs/jpeg --dry-run""",
    )
    parser.add_argument("stage", choices=("base", "target"), help="which of the two networks to train")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--from", dest="start", help="weights to start from, or 'scratch' for random ones; required for target"
    )
    _add_key(parser)
    parser.add_argument(
        "--network",
        choices=TRAINED,
        help="architecture; two_branch and dasr cost as much as the srresnet of the same features and blocks (default: "
        "srresnet)",
    )
    parser.add_argument(
        "--features", type=whole_number(1, 1024), help="feature channels, except of srcnn_style (default: 64)"
    )
    parser.add_argument(
        "--blocks", type=whole_number(1, 1000), help="residual blocks, except of srcnn_style (default: 16)"
    )
    parser.add_argument(
        "--degradations",
        nargs="+",
        default=DEGRADATIONS,
        metavar="DEGRADATION",
        help=f"degradations that target learns to remove, each with probability one half: {SPELLING}",
    )
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="give every patch one of the degradations or none, equally likely"
    )
    parser.add_argument(
        "--upscale", type=int, choices=(2, 3, 4), help="factor to enlarge by (default: that of --from, or 2)"
    )
    parser.add_argument(
        "--iterations", type=_ITERATIONS, default=20_000, help="optimizer steps, along which the learning rate falls"
    )
    parser.add_argument(
        "--learning-rate",
        type=number(0, 1, open_ends=True),
        help="learning rate (default: 2e-4 for base, 5e-5 for target)",
    )
    parser.add_argument(
        "--batch-size", type=whole_number(1, 65_536), default=16, help="patches per step, over all processes"
    )
    parser.add_argument(
        "--patch-size",
        type=whole_number(16, 16_384),
        help="width of a reference patch in pixels (default: 64, or 63 for a factor of 3)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="bf16 is mixed precision (default: that of the stored run, or what the device computes fast)",
    )
    parser.add_argument(
        "--prediction-weight",
        type=number(0, 1e6),
        default=0.1,
        help="weight of the prediction loss (two_branch) or of the contrast (dasr)",
    )
    _add_seed(parser, "first weights, patches and degradations")
    parser.add_argument(
        "--validate-every", type=_ITERATIONS, default=2000, help="iterations between validations, and checkpoints"
    )
    parser.add_argument("--stop-after", type=_ITERATIONS, help="stop after this many iterations in total")
    parser.add_argument("--tensorboard", action="store_true", help="also write a log for TensorBoard")
    parser.add_argument("--dry-run", action="store_true", help="print what the training costs, and stop")
    _add_device(parser)


COMMANDS: tuple[Callable[[Commands], None], ...] = (
    demo,
    attribute,
    study,
    report,
    restore,
    degrade,
    train,
    card,
    compare,
)
