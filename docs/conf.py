"""How Sphinx builds this site: ``make docs``. Nothing is fetched from the network, neither now nor by the pages."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE)]
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices, as in kstream/cli/__init__.py

project = "kstream"
author = "The kstream authors"
project_copyright = author
version = release = installed_version("kstream")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_gallery.gen_gallery", "docstrings", "generated"]
exclude_patterns = ["_*", "gallery/*.rst", "**/sg_execution_times.rst"]
templates_path = ["_templates"]
language = "en"

# ---- pages ----

myst_enable_extensions = ["colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4
highlight_language = "none"  # a block that is code says of which language

# ---- docstrings ----

suppress_warnings = ["ref.python"]  # a bare name that several classes have
default_role = "py:obj"  # `name` in a docstring is a link where the name is on this site, and code otherwise
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    name: name
    for name in (
        "Acquisition", "Array", "Batch", "Bytes", "Complex", "Device", "Float", "FloatImages", "Index", "Labels",
        "MakeSum", "Message", "Meta", "Method", "Policy", "Precision", "Progress", "Residual", "Shape", "Sink",
        "Source", "Triple", "Units", "Vector", "Weighting",
    )
}  # fmt: skip
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
nitpick_ignore_regex = [
    ("py:.*", r".*")
]  # a name in code that is not on this site stays code; pages and anchors must exist

# ---- gallery: each script runs when the site is built ----

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"\.py$",
    "example_extensions": {".py"},
    "within_subsection_order": "FileNameSortKey",
    "run_stale_examples": True,  # the code may have changed although the script did not
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib", "plots.style"),
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "plot_gallery": os.environ.get("KSTREAM_GALLERY") != "off",  # tests of the site do without pictures
    "min_reported_time": 1e9,
    "image_srcset": ["2x"],
}

# ---- look ----

html_theme = "pydata_sphinx_theme"
html_title = "kstream"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_sourcelink = False
html_theme_options = {
    "announcement": "For research use only. kstream is not a medical device; nothing that it makes may be used for "
    "diagnosis or treatment.",
    "logo": {"text": "kstream"},
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": []}
