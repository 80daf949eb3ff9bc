"""What the HTML pages share: templates of one style, and pictures that lie in the page itself."""

import base64
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple


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


def render_page(template: str, /, **values: object) -> str:
    """An HTML page from a template of this package; every value is escaped, a missing one is an error."""
    return render_from(page_source, template, **values)


def render_from(source: Callable[[str], str], template: str, /, **values: object) -> str:
    """As :func:`render_page`, of a template that lies somewhere else.

    Args:
        source: the text of a template by its name.
        template: by its name.
        values: of the template.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # which a first step need not wait for

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values, page_source=page_source)


def page_source(name: str) -> str:
    """A template, style sheet or script that pages share."""
    return resources.files("vpd.evaluation").joinpath("web", name).read_text(encoding="utf-8")
