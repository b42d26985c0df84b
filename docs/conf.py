"""Sphinx configuration: `make docs` builds the pages, and a warning is an error.

Nothing is fetched, neither by the build nor by a reader: MathJax comes from the package
sphinx-mathjax-offline and is served from the site itself.
"""

import re
from importlib.metadata import version as installed_version

from docutils import nodes
from sphinx.addnodes import literal_emphasis

from implicit_solvers import rms

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
    (r"py:class", r"implicit_solvers\..*\.(Auto|DirectSolver|Iterative(Linear)?Solver|Structure|T)"),
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
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
    "backreferences_dir": None,
    "write_computation_times": False,
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


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", brief_signature)
    app.connect("autodoc-skip-member", no_default_as_method)
    app.connect("missing-reference", public_name)
