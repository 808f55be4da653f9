"""Sphinx configuration. Notebooks are text files (.md) whose cells run at every build."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The cells' tensors are small: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Pyro's import of tqdm asks for notebook widgets, which a built page cannot show.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
# Nor can it draw a line again: Rich takes this as a terminal without progress.
os.environ.setdefault("TTY_INTERACTIVE", "0")

project = "ppl_vae"
author = "The ppl_vae developers"
copyright = "2026, The ppl_vae developers"
_version: dict[str, str] = {}
exec((ROOT / "ppl_vae" / "version.py").read_text(encoding="utf-8"), _version)
version = release = _version["__version__"]

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]
templates_path = ["_templates"]

# Pages in MyST; their cells run from nothing at every build, and an error or a warning stops the build.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# The reference comes from the docstrings.
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
add_module_names = False

# Links to other projects need their inventories: set PPL_VAE_DOCS_INTERSPHINX=1 where the network is reachable.
intersphinx_mapping = {}
if os.environ.get("PPL_VAE_DOCS_INTERSPHINX") == "1":
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
        "arviz": ("https://python.arviz.org/en/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

html_theme = "pydata_sphinx_theme"
html_title = "ppl_vae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Pages without pages of their own section beside them have no sidebar.
html_sidebars = {page: [] for page in ("index", "results", "theory", "slips", "contributing", "changelog")}
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 9,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# Docstrings write shapes and norms as people do, [n, *event] and |x|; reStructuredText would read them as markup.
_SHAPE = re.compile(r"(?<![`\w])\[[^\[\]`]*\*[^\[\]`]*\]")


def plain_formulas(app, what, name, obj, options, lines):
    """Quote shapes that hold a star, and escape bars, outside of literals and doctests."""
    for number, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")) or "``" in line:
            continue
        parts = line.split("`")
        parts[::2] = [_SHAPE.sub(r"``\g<0>``", part).replace("|", r"\|") for part in parts[::2]]
        lines[number] = "`".join(parts)


def skip_metadata_requests(app, what, name, obj, skip, options):
    """Leave out what scikit-learn writes into every estimator about routing: its text refers to its own manual."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def setup(app):
    """Read docstrings before numpydoc does."""
    app.connect("autodoc-process-docstring", plain_formulas, priority=400)
    app.connect("autodoc-skip-member", skip_metadata_requests)
