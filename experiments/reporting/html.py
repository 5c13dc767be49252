"""A report as one self-contained HTML page: figures embedded, no script, no links; for screens and print."""

import base64
import pathlib
import re
from collections.abc import Mapping

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml

# The policy makes a browser refuse all external content.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""
_STYLE = """
:root { --ink: #1a1a1a; --soft: #555; --ground: #fff; --band: #f4f4f4; --line: #ccc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #aaa; --ground: #161616; --band: #222; --line: #444; }
}
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 80ch; overflow-wrap: anywhere; }
code { background: var(--band); padding: .1em .3em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { border-bottom-width: 2px; }
tbody tr:nth-child(even) { background: var(--band); }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: max(100%, 36rem); height: auto; background: #fff; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
@media print {
  :root { --ink: #000; --soft: #333; --ground: #fff; --band: #f4f4f4; --line: #999; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: 7pt; }
  th, td { padding: .1rem .3rem; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  figure img { max-width: 100%; }
}
"""
_TAGS = {
    "table_open": '<div class="scroll" tabindex="0"><table>\n',
    "table_close": "</table></div>\n",
    "th_open": '<th scope="col">',
}
_UNBROKEN = re.compile(r"(?<=\d) (?=[±%])|(?<=±) (?=\d)")  # the spaces in 39.0 ± 0.2 %


def render(text: str, title: str, figures: Mapping[str, pathlib.Path] | None = None) -> str:
    """Render a report as a page; raw HTML and links in it stay text, and only its own figures become images.

    The text is Markdown: headings, paragraphs, lists, tables, and a figure in a paragraph of its own. `figures` are the
    PNG, with an SVG beside it, of each figure that the text names.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    markdown.add_render_rule("image", _image)
    for name, tag in _TAGS.items():
        markdown.add_render_rule(name, lambda *_, tag=tag: tag)
    tokens = markdown.parse(_UNBROKEN.sub("\N{NO-BREAK SPACE}", text))
    for i, token in enumerate(tokens):
        if [child.type for child in token.children or ()] == ["image"]:
            tokens[i - 1].hidden = tokens[i + 1].hidden = True  # no paragraph around a figure
    body = markdown.renderer.render(tokens, markdown.options, {"figures": figures or {}})
    return _PAGE.format(title=escapeHtml(title), style=_STYLE, body=body)


def _image(renderer, tokens, i, options, env):
    """Render a figure of the report as an embedded image, any other image as its caption."""
    caption = escapeHtml(renderer.renderInlineAsText(tokens[i].children, options, env))
    path = env["figures"].get(tokens[i].attrs["src"])
    if path is None:
        return caption
    data = base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()
    picture = f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
    return f'<figure><div class="scroll" tabindex="0">{picture}</div><figcaption>{caption}</figcaption></figure>\n'
