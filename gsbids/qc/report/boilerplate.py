# SPDX-License-Identifier: Apache-2.0
"""Methods text as files for a paper: Markdown and LaTeX with citation keys, BibTeX, and HTML with numbers."""

import html
import re

from gsbids.qc.report.methods import Reference, number_citations, references

_CITATION = re.compile(r"\[((?:@[\w.-]+(?:\s*;\s*)?)+)\]")
_KEY = re.compile(r"@([\w.-]+)")
_TEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}
NOTE = "This text was written by gsbids. It may be copied into a paper as it is."


def boilerplate_files(paragraphs: tuple[str, ...]) -> dict[str, str]:
    """Return the contents of ``CITATION.md``, ``.tex``, ``.bib`` and ``.html``.

    Parameters
    ----------
    paragraphs : tuple of str
        As from :func:`gsbids.qc.report.methods.methods_paragraphs`.

    Returns
    -------
    dict of str to str
        Contents by file name.
    """
    return {
        "CITATION.md": markdown(paragraphs),
        "CITATION.tex": latex(paragraphs),
        "CITATION.bib": bibtex(paragraphs),
        "CITATION.html": page(paragraphs),
    }


def plain_text(paragraphs: tuple[str, ...]) -> str:
    """Return the methods text as plain text, with numbered citations and the list of references.

    Examples
    --------
    >>> print(plain_text(("Corrected with N4 [@n4].",)).splitlines()[0])
    Corrected with N4 [1].
    """
    pieces, cited = number_citations(paragraphs)
    lines = [
        "".join(part if isinstance(part, str) else f"[{', '.join(map(str, part))}]" for part in paragraph)
        for paragraph in pieces
    ]
    listed = [
        f"{n}. {reference.text}{f' {reference.url}' if reference.url else ''}"
        for n, reference in enumerate(cited, start=1)
    ]
    return "\n\n".join([*lines, "References", "\n".join(listed)]) + "\n"


def markdown(paragraphs: tuple[str, ...]) -> str:
    """Return the methods text in Markdown for pandoc with ``CITATION.bib``: citations stay ``[@key]``."""
    return "\n\n".join(["## Methods", *paragraphs, f"*{NOTE}*", "## References"]) + "\n"


def latex(paragraphs: tuple[str, ...]) -> str:
    r"""Return the methods text in LaTeX, which cites from ``CITATION.bib``.

    Examples
    --------
    >>> print(latex(("20 % were cut [@n4; @ants].",)).splitlines()[1])
    20 \% were cut \cite{n4,ants}.
    """

    def cite(part: str) -> str:
        return rf"\cite{{{','.join(_KEY.findall(part))}}}"

    lines = []
    for paragraph in paragraphs:
        parts = _CITATION.split(paragraph)
        lines.append("".join(cite(part) if i % 2 else _tex(part) for i, part in enumerate(parts)))
    return "\n\n".join([f"% {NOTE}\n" + lines[0], *lines[1:], r"\bibliography{CITATION}"]) + "\n"


def bibtex(paragraphs: tuple[str, ...]) -> str:
    """Return the references that the text cites as BibTeX entries under their keys."""
    known = references()
    keys = dict.fromkeys(
        key
        for paragraph in paragraphs
        for part in _CITATION.findall(paragraph)
        for key in _KEY.findall(part)
        if key in known
    )
    return "\n".join(_entry(key, known[key]) for key in keys)


def page(paragraphs: tuple[str, ...]) -> str:
    """Return the methods text as an HTML page with numbered citations, which loads nothing from elsewhere."""
    pieces, cited = number_citations(paragraphs)
    text = "\n".join(
        "<p>"
        + "".join(
            html.escape(part) if isinstance(part, str) else f"[{', '.join(map(str, part))}]" for part in paragraph
        )
        + "</p>"
        for paragraph in pieces
    )
    listed = "\n".join(f"<li>{html.escape(reference.text)} {html.escape(reference.url)}</li>" for reference in cited)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark"><title>gsbids: methods text</title></head>\n<body>\n'
        f"<h1>Methods</h1>\n{text}\n<p><em>{html.escape(NOTE)}</em></p>\n<h2>References</h2>\n<ol>\n{listed}\n</ol>\n"
        "</body>\n</html>\n"
    )


def _tex(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def _entry(key: str, reference: Reference) -> str:
    """Return the BibTeX entry of a reference, in whose text full stops separate authors, title and the rest."""
    authors, _, rest = reference.text.partition(". ")
    title, _, where = rest.partition(". ")
    names = [re.sub(r"^(.+) ([A-Z]+)$", r"\1, \2", name) for name in authors.split(", ")]
    people = " and ".join("others" if name.startswith("et al") else name for name in names)
    years = re.findall(r"\b(?:19|20)\d\d\b", where)
    fields = {
        "author": people,
        "title": f"{{{title.rstrip('.')}}}",
        "note": where.rstrip("."),
        "year": years[-1] if years else "",
        "doi": reference.address.removeprefix("doi.org/") if reference.address.startswith("doi.org/") else "",
        "url": reference.url if reference.address.startswith("arxiv.org") else "",
    }
    lines = [
        f"  {name} = {{{value if name in ('title', 'doi', 'url') else _tex(value)}}},"
        for name, value in fields.items()
        if value
    ]
    return "\n".join([f"@misc{{{key},", *lines, "}", ""])
