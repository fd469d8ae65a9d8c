"""Configuration of the site. `python docs/pages.py _docs` lays out its pages and builds it with this."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import holocron_nb  # noqa: E402

project = "holocron_nb"
author = "The holocron_nb authors"
copyright = "2026 onwards, The holocron_nb authors"
version = release = holocron_nb.__version__

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
]

# notebooks: shown as they are stored, read by nbdev_reader
nb_execution_mode = "off"
nb_custom_formats = {".ipynb": ["nbdev_reader.read", {}, False]}
nb_code_prompt_show, nb_code_prompt_hide = "Show", "Hide"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "html_image"]
myst_heading_anchors = 3

# API pages: Google style, in the order of the source
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
default_role = "code"

html_theme = "pydata_sphinx_theme"
html_title = "holocron_nb"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_center": [],
    "navbar_align": "left",
    "navigation_depth": 5,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "search_bar_text": "Search papers, code, text",
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _whole_tree(app, pagename, templatename, context, doctree):
    """The sidebar shows all rooms on every page; the theme by itself shows the current one only."""
    generate = context["generate_toctree_html"]
    context["suppress_sidebar_toctree"] = lambda **kwargs: False
    context["generate_toctree_html"] = lambda kind, **kwargs: generate(kind, **{**kwargs, "startdepth": 0})


def setup(app):
    app.connect("html-page-context", _whole_tree, priority=900)
