"""The site: it builds without a warning, everything on it can be reached and exists, and its reference is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
import typer
from prometheus_client import CollectorRegistry

from kstream.cli import app
from kstream.cli.serve import _watch_workers
from kstream.config import preset_names, setting_names
from kstream.models.bundle import BundleInfo, shipped
from kstream.models.registry import ARCHITECTURES
from kstream.mrd.messages import ACQUISITION_HEADER, IMAGE_HEADER, MessageId
from kstream.output.runinfo import RunInfo
from kstream.serve.server import MrdServer
from kstream.serve.workers import ModelWorkers, WorkerSettings
from kstream.types import AcquisitionFlag
from tests.cli.test_exit_codes import tree
from tests.docs.pages import DOCS

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
MADE_BY_SPHINX = {"genindex.html", "py-modindex.html", "search.html"}


class Html(HTMLParser):
    """What a page links to, what it loads, the places that can be linked to, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.places: set[str] = set()
        self.texts: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in ("canonical",):
            self.loads.add(given[LOADED[tag]])

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @cached_property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


class Site:
    """A built site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {str(path.relative_to(folder)): Html(path) for path in folder.rglob("*.html")}
        self.pages = {name: page for name, page in self.pages.items() if not name.startswith("_static")}

    def target(self, page: str, link: str) -> tuple[Path, str]:
        """File and place that a link of a page leads to."""
        where, place = urldefrag(unquote(link))
        where = where.partition("?")[0]
        path = (self.folder / page).parent / where if where else self.folder / page
        return Path(os.path.normpath(path)), place


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("auto_gallery", "__pycache__"))
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html", "docs", "html"],
        cwd=folder, env={**os.environ, "KSTREAM_GALLERY": "off"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return Site(folder / "html")


def is_elsewhere(link: str) -> bool:
    return re.match(r"([a-z]+:|//)", link) is not None


def test_links_and_images_lead_somewhere(site: Site) -> None:
    lost = []
    for name, page in site.pages.items():
        for link in page.links | page.loads:
            if is_elsewhere(link) or link == "#":
                continue
            path, place = site.target(name, link)
            other = site.pages.get(str(path.relative_to(site.folder))) if path.is_relative_to(site.folder) else None
            if not path.exists() or (place and other is not None and place not in other.places):
                lost.append(f"{name}: {link}")
    assert not lost


def test_every_page_can_be_reached_from_the_front_page(site: Site) -> None:
    reached, todo = {"index.html"}, ["index.html"]
    while todo:
        name = todo.pop()
        for link in site.pages[name].links:
            if not is_elsewhere(link):
                found = os.path.relpath(site.target(name, link)[0], site.folder)
                if found in site.pages and found not in reached:
                    reached.add(found)
                    todo.append(found)
    assert set(site.pages) - reached - MADE_BY_SPHINX == set()


def test_nothing_is_loaded_from_elsewhere(site: Site) -> None:
    foreign = {link for page in site.pages.values() for link in page.loads if is_elsewhere(link)}
    assert not {link for link in foreign if not link.startswith("data:")}
    for style in site.folder.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text("utf-8")), style


def options(command: object, name: str = "kstream") -> Iterator[tuple[str, set[str]]]:
    inner = getattr(command, "commands", {})
    if not inner or getattr(command, "invoke_without_command", False):
        params = getattr(command, "params", ())
        yield name, {word for p in params if _is_shown(p) for word in (*p.opts, *p.secondary_opts)}
    for word, child in inner.items():
        yield from options(child, f"{name} {word}")


def test_command_reference_has_every_command_and_option(site: Site) -> None:
    text = site.pages["reference/commands.html"].text
    commands = dict(options(typer.main.get_command(app)))
    assert len(commands) > 15
    sections = re.split(r"(?=kstream [a-z ]+ ?# )", text)
    for name, known in commands.items():
        (section,) = [s for s in sections if s.startswith(f"{name} #")]
        assert known <= set(re.findall(r"--?[\w-]+", section)), name


def _is_shown(parameter: Any) -> bool:
    return parameter.param_type_name == "option" and not parameter.hidden


def has_all(text: str, names: set[str]) -> None:
    assert not {name for name in names if not re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)}


def test_settings_reference_has_every_setting_and_preset(site: Site) -> None:
    has_all(site.pages["reference/settings.html"].text, {*setting_names(), *preset_names()})


def test_message_reference_has_every_message_flag_and_field(site: Site) -> None:
    fields = {*(ACQUISITION_HEADER.names or ()), *(IMAGE_HEADER.names or ())}
    flags = {flag.name or "" for flag in AcquisitionFlag}
    has_all(site.pages["reference/messages.html"].text, {*(kind.name for kind in MessageId), *fields, *flags})


def test_bundle_reference_has_every_network_and_bundle(site: Site) -> None:
    has_all(site.pages["reference/model-bundle.html"].text, {*ARCHITECTURES, *shipped()})
    assert BundleInfo.__doc__


def test_metrics_reference_has_every_metric_and_every_field_of_a_run(site: Site) -> None:
    models = ModelWorkers(WorkerSettings(n_processes=1))
    server = MrdServer(("127.0.0.1",), 0, models=models)
    try:
        _watch_workers(server, models)
        registry: CollectorRegistry = server.metrics.registry
        names = {metric.name + "_total" * (metric.type == "counter") for metric in registry.collect()}
    finally:
        server.stop(0)
        models.stop(0)
    ours = {name for name in names if name.startswith("kstream_")}
    assert len(ours) > 15
    has_all(site.pages["reference/metrics.html"].text, {*ours, *RunInfo.model_fields})


def test_page_of_exit_codes_has_every_error(site: Site) -> None:
    own = {error.__name__ for error in tree() if "exit_code" in vars(error)}
    has_all(site.pages["exit-codes.html"].text, own)
