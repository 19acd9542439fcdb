"""Names as docstrings write them (``SettingError``, ``nn.Module``, ``Tensor``) find what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.ext.intersphinx import resolve_reference_any_inventory

import filterattr

if TYPE_CHECKING:
    from docutils.nodes import TextElement, reference
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_FULL = {name: f"filterattr.{name}" for name in filterattr.__all__ if not name.startswith("_")}
_FULL |= {f"filterattr.errors.{name}": full for name, full in _FULL.items() if name.endswith(("Error", "Warning"))}
_FULL |= {
    "Tensor": "torch.Tensor",
    "torch._C.Generator": "torch.Generator",
    "Optimizer": "torch.optim.Optimizer",
    "Axes": "matplotlib.axes.Axes",
    "Path": "pathlib.Path",
    "FilePath": "pathlib.Path",
    "PathLike": "os.PathLike",
    "np.ndarray": "numpy.ndarray",
    "pd.DataFrame": "pandas.DataFrame",
}


def setup(app: Sphinx) -> dict[str, Any]:
    # before intersphinx, which would only see the short name
    app.connect("missing-reference", _resolve, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement) -> reference | None:
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    full = f"torch.{target}" if target.startswith("nn.") else _FULL.get(target)
    if full is None:
        return None
    node["reftarget"] = full
    found = env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, node["reftype"], full, node, content)
    return found or resolve_reference_any_inventory(env, honor_disabled_refs=False, node=node, contnode=content)
