"""What people look at.

matplotlib is loaded when the first picture is drawn.
"""

from filterattr.display.curves import (
    plot_confusion,
    plot_curves,
    plot_modulation,
    plot_rankings,
    plot_specificity,
    plot_stability,
)
from filterattr.display.page.pictures import Dial, Picture, Strip
from filterattr.display.plot import COLOURS, join_layers, plot_layers, plot_path, plot_shares, short_name, short_names
from filterattr.display.report import report
from filterattr.jobs.progress import Progress, counted

__all__ = [
    "COLOURS",
    "Dial",
    "Picture",
    "Progress",
    "Strip",
    "counted",
    "join_layers",
    "plot_confusion",
    "plot_curves",
    "plot_layers",
    "plot_modulation",
    "plot_path",
    "plot_rankings",
    "plot_shares",
    "plot_specificity",
    "plot_stability",
    "report",
    "short_name",
    "short_names",
]
