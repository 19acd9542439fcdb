"""Sphinx settings: `make docs` builds with warnings as errors, executes all pages, and never asks the network."""

import importlib
import os
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import matplotlib as mpl  # noqa: E402 - needs the path
import matplotlib.pyplot as plt  # noqa: E402
from offline_inventories import write_inventories  # noqa: E402 - needs the path
from sphinx_gallery.scrapers import matplotlib_scraper  # noqa: E402

import filterattr  # noqa: E402 - needs the path

project = "filterattr"
author = "the filterattr developers"
copyright = f"2026, {author}"
version = release = filterattr.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
    "mathml",
    "short_names",
    "program_help",
    "docstrings",
    "version_list",
    "absolute_addresses",
    "gallery_head",
    "name_list",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "tutorials/*", "explanation/benchmarks.md"]  # the last is part of another page
templates_path = ["_templates"]
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    # private parts of the library, and types that its own aliases are made of
    ("py:.*", r".*\b_\w+$"),
    ("py:.*", r"filterattr\.(model|loss|files|units|jobs|results|integral|estimators|activations|display\.page)\..*"),
    ("py:.*", r"sr_zoo\..*\.(Composite|EllipticBlur)|sr_zoo\.(study|cli)\..*|filterattr\.(cli|benchmarks)\..*"),
    (
        "py:.*",
        r"(T|Pair|Rule|Message|Side|See|Layers|Tensors|Output|Forward|Method|Intervention|Rank|Array|Distance|DistanceName)",
    ),
    # single letters, numbers and words in single backticks of docstrings that name no object
    ("py:obj", r".*"),
]
# the gallery's settings hold functions, which cannot be pickled
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
html_math_renderer = "mathml"


def documented_elsewhere() -> dict[str, list[str]]:
    """Module to the names it exports that another module of the reference defines; these have their place there."""
    pages = "\n".join(path.read_text() for path in (HERE / "reference").glob("*.md"))
    known = re.findall(r"^ +((?:filterattr|sr_zoo)\.[\w.]+)$", pages, re.MULTILINE)
    files = {name: HERE.parent.joinpath(*name.split(".")) for name in known}
    modules = {
        name: importlib.import_module(name)
        for name, path in files.items()
        if path.is_dir() or path.with_suffix(".py").exists()
    }
    return {
        name: [
            other
            for other in getattr(module, "__all__", ())
            if getattr(getattr(module, other), "__module__", name) in modules.keys() - {name}
        ]
        for name, module in modules.items()
    }


autosummary_context = {"elsewhere": documented_elsewhere()}
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented_params"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "inherited-members": "Mapping,Module"}
autodoc_type_aliases = {
    name: name for name in ("StateLike", "Loss", "UnitLike", "Select", "Progress", "Reduction", "Scale")
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
intersphinx_mapping = write_inventories(HERE / "inventories", HERE / "_build" / "inventories")

# the words of the tutorials come first in the code that makes them: one idea after the other
TUTORIALS = (
    "first_attribution.py",
    "which_filters_remove_blur.py",
    "your_own_network.py",
    "language_model.py",
    "units_loss_and_path.py",
    "reading_the_numbers.py",
    "give_back.py",
    "which_layers_deserve_rank.py",
    "ship_one_per_cent.py",
    "coming_from_captum.py",
)


class InOrder:
    """Sort the pages of a gallery: tutorials as listed above, everything else by name."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> tuple[int, str]:
        return (TUTORIALS.index(name) if name in TUTORIALS else len(TUTORIALS), name)


def reset_matplotlib(_gallery: object, _name: str) -> None:
    """Draw every page's pictures in one look, on white; print warnings without the place of a file on this machine."""
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    mpl.rcdefaults()
    mpl.use("Agg")
    mpl.rcParams.update({"figure.dpi": 110, "savefig.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})


def scrape(block: object, block_vars: dict, gallery_conf: dict) -> str:
    """Save the figures of a block: photographs as WebP, as pages must stay small, everything else as PNG."""
    arrays = [
        image.get_array() for number in plt.get_fignums() for axis in plt.figure(number).axes for image in axis.images
    ]
    small = {"format": "webp", "pil_kwargs": {"quality": 88}} if any(array.ndim == 3 for array in arrays) else {}
    return matplotlib_scraper(block, block_vars, gallery_conf, **small)


sphinx_gallery_conf = {
    "image_scrapers": (scrape,),
    "examples_dirs": ["tutorials", "../examples"],
    "gallery_dirs": ["learn", "gallery"],
    "filename_pattern": "",
    "within_subsection_order": InOrder,
    "abort_on_example_error": True,
    "backreferences_dir": "reference/backreferences",
    "doc_module": ("filterattr", "sr_zoo"),
    "capture_repr": ("_repr_html_",),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 0,
    "remove_config_comments": True,
    "reset_modules": (reset_matplotlib,),
    "copyfile_regex": r"",
    "default_thumb_file": str(HERE / "images" / "layers.png"),
    "thumbnail_size": (320, 224),
}

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "filterattr"
html_context = {"docs_version": os.environ.get("DOCS_VERSION", version)}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["from_disk.js"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005a8c", "color-brand-content": "#005a8c"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"
# where the site will live is for those to say who put it there; without it there are no cards, as they need it
DOCS_URL = os.environ.get("DOCS_URL", "").rstrip("/")
html_baseurl = ogp_site_url = f"{DOCS_URL}/" if DOCS_URL else ""
ogp_site_name = "filterattr"
ogp_enable_meta_description = True
ogp_image = "_static/card.jpg"
ogp_image_alt = "A photograph blurred, restored by a network, and restored without 217 of its kernels: blurred again"
ogp_custom_meta_tags = ['<meta name="twitter:card" content="summary_large_image" />'] if DOCS_URL else []
ogp_social_cards = {"enable": False}
