"""Sphinx configuration: `make docs` builds the pages, and a warning is an error.

Nothing is fetched, neither by the build nor by a reader: MathJax comes from the package
sphinx-mathjax-offline and is served from the site itself.
"""

import re
import sys
import textwrap
import types
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import literal_emphasis
from sphinx.util import logging

from implicit_solvers import rms

sys.path.insert(0, str(Path(__file__).parent))
import thumbnails

# the list of wrong calls is the tests'; some package that is installed may be called tests, too
sys.modules["tests"] = types.ModuleType("tests")
sys.modules["tests"].__path__ = [str(Path(__file__).parents[1] / "tests")]
from tests import refused  # noqa: E402

project = "implicit-solvers"
author = "The implicit-solvers authors"
copyright = "the implicit-solvers authors"
version = release = installed_version("implicit-solvers")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "matplotlib.sphinxext.plot_directive",
]
exclude_patterns = ["_build", "gallery"]

# -- Markdown ------------------------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# -- Docstrings ----------------------------------------------------------------------------------

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_ivar = True

# A reference to one of our names must resolve. Other packages are not linked (no inventory is
# fetched), so their names need not, nor the words of a type ("optional", "array_like").
nitpicky = True
nitpick_ignore_regex = [
    (r"py:class", r"(?!implicit_solvers\.).*"),
    # types of arguments that are no public names: what to pass is said in words
    (
        r"py:class",
        r"implicit_solvers\..*\.(Auto|DirectSolver|LineSearch|LinearSolver|Preconditioner|Structure|T)",
    ),
    (
        r"py:.*",
        r"(torch|numpy|scipy|sklearn|matplotlib|cvxpy|collections|contextlib|dataclasses|functools"
        r"|pathlib|typing|warnings)\..*",
    ),
]

# -- Figures -------------------------------------------------------------------------------------

# Every script of the gallery, and every figure of the theory page, is run by the build.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "copyfile_regex": "",
    "image_scrapers": ("thumbnails.scraper",),
    "thumbnail_size": thumbnails.SIZE,
    "matplotlib_animations": False,
    "backreferences_dir": None,
    "write_computation_times": False,
    "ignore_repr_types": r"torch\._C\.Generator",
}
plot_include_source = False
plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("png", 150)]

# -- Pages ---------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"implicit-solvers {release}"
html_favicon = "static/icon.svg"
html_logo = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_search_scorer = str(Path(__file__).parent / "scorer.js")
copybutton_exclude = ".linenos, .gp, .go"


def public_name(app, env, node, contnode):
    """Link a name by the module that defines it to the public name that is documented.

    An annotation is written `implicit_solvers.linear.operators.LinearOperator`; the pages document
    `implicit_solvers.LinearOperator`.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") == "py" and isinstance(contnode, literal_emphasis):
        # the type of a parameter, in short, whether or not it can be linked
        contnode[:] = [nodes.Text(contnode.astext().rpartition(".")[2])]
    if node.get("refdomain") != "py" or not target.startswith("implicit_solvers."):
        return None
    domain = env.get_domain("py")
    name = f"implicit_solvers.{target.rpartition('.')[2]}"
    if name == target or name not in domain.objects:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)


def brief_signature(app, what, name, obj, options, signature, returns):
    """Write a default that is a function by its name."""
    if signature:
        signature = re.sub(r"<function (\w+)>", r"\1", signature)
    return signature, returns


def no_default_as_method(app, what, name, obj, skip, options):
    """Leave out the function that is the default of a solver's field ``norm``: it is no method."""
    return True if what == "class" and obj is rms and name == "norm" else None


def refusal(row, names):
    """Write a wrong call and the error that it raises, as a Python prompt shows them."""
    try:
        exec(row.call, names)
    except Exception as error:
        # what a compiler adds, where and in which code, is of no interest here
        text = f"{type(error).__name__}: {error}".partition("\n\n")[0]
        text = re.sub(" at 0x[0-9a-f]+", "", text)
    else:
        logging.getLogger(__name__).warning("not refused: %s", row.call)
        return ""
    call = row.call.strip().replace("\n", "\n... ")
    message = "\n".join(textwrap.fill(line, 96) for line in text.splitlines())
    return f"```pycon\n>>> {call}\n{message}\n```\n\n"


def refusals(app, docname, source):
    """Put the calls of tests/refusals, and what is really raised, in the place for them."""
    place = "<!-- refusals -->"
    if place not in source[0]:
        return
    page = ""
    for name in refused.AREAS:
        area = refused.area(name)
        page += f"## {area.__doc__.strip().removesuffix('.')}\n\n"
        try:
            refused.names_for(area.SETUP)
        except ImportError as missing:
            page += f"(Left out where this page was built: {missing}.)\n\n"
            continue
        page += f"```python\n{area.SETUP.strip()}\n```\n\n"
        # a message that many functions give is shown for the first
        first = {row.words: row for row in reversed(area.ROWS)}
        with warnings.catch_warnings(action="ignore"):
            for row in area.ROWS:
                if first[row.words] is row:
                    page += refusal(row, refused.names_for(area.SETUP))
        refused.left()
    source[0] = source[0].replace(place, page)


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", thumbnails.put, priority=900)
    app.connect("source-read", refusals)
    app.connect("autodoc-process-signature", brief_signature)
    app.connect("autodoc-skip-member", no_default_as_method)
    app.connect("missing-reference", public_name)
