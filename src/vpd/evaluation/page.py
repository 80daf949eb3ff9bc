"""What the HTML pages share: templates of one style, and pictures that lie in the page itself."""

import base64
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined


class Picture(NamedTuple):
    """A figure of a page.

    Attributes:
        stem: its file name without the ending.
        title: what it shows.
        caption: what a good one looks like.
        png: base64.
        width: on the page, in its points.
    """

    stem: str
    title: str
    caption: str
    png: str
    width: int


def picture(stem: str, png: bytes, title: str, caption: str) -> Picture:
    """A figure as it lies in a page."""
    width = int.from_bytes(png[16:20], "big") // 2  # of the PNG header; figures have two pixels per point of a page
    return Picture(stem, title, caption, base64.b64encode(png).decode("ascii"), width)


def render_page(template: str, source: Callable[[str], str] | None = None, **values: object) -> str:
    """An HTML page; every value is escaped, a missing one is an error.

    Args:
        template: by its name.
        source: the text of a template by its name; those of this package by default.
        values: of the template.
    """
    environment = Environment(
        loader=FunctionLoader(source or page_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values, page_source=page_source)


def page_source(name: str) -> str:
    """A template, style sheet or script that pages share."""
    return resources.files("vpd.evaluation").joinpath("web", name).read_text(encoding="utf-8")
