"""One page of HTML from a template, with its styles, scripts and data inside it.

What a log, a script or a folder's name holds is text: jinja2 escapes all of it, and data for the scripts is JSON in
which no `<` is left. If something slipped through all the same, the page's policy (CSP) would run no script but
ours, known by their digests, and load nothing from anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from supervisor.reading.plain import plain

_HERE = Path(__file__).parent


def document(template: str, **values: Any) -> str:
    """The page. Every text in `values` is escaped, and freed of control characters. With `live` among them, it asks its
    server for news."""
    style, curves = _inside("templates/style.css"), _inside("templates/curves.js")
    uplot, follow = _inside("uplot/uPlot.iife.min.js"), _inside("templates/live.js")
    scripts = " ".join(_digest(text) for text in ((uplot, curves, follow) if values["live"] else (uplot, curves)))
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {scripts}; base-uri 'none'; form-action 'none'"
    )
    policy += "; connect-src 'self'" if values["live"] else ""
    page = _environment().get_template(template)
    return page.render(policy=policy, style=style, uplot=uplot, script=curves, follow=follow, **values)


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every text goes through it, before it is escaped.
        finalize=lambda value: "\n".join(map(plain, value.split("\n"))) if type(value) is str else value,
    )
    made.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":"), "allow_nan": False}
    return made


@functools.cache
def _inside(name: str) -> str:
    """A file of ours, to be put inside the page as it is."""
    text = (_HERE / name).read_text()
    assert "</script" not in text.lower() and "</style" not in text.lower(), name
    return text


def _digest(text: str) -> str:
    """As the policy names it. The browser takes the digest of all that is between the tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
