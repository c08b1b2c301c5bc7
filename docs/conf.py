"""Sphinx: `make docs` builds the site into docs/_build/html. Warnings are errors, and nothing is fetched."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import concordct

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("write_reference", HERE / "write_reference.py")
assert _spec is not None
assert _spec.loader is not None
_write = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_write)
_write.write_cli(HERE / "reference" / "cli.md")

project = "concordct"
author = "The concordct developers"
copyright = "The concordct developers, Apache-2.0"
version = release = concordct.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# A study writes its page before anyone hangs it into a table of contents.
suppress_warnings = ["myst.header", "toc.not_included"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
html_theme = "pydata_sphinx_theme"
html_title = "concordct"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
