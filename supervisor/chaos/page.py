"""A chaos session as one page of HTML that needs no other file: figures, time lines, the table of verdicts."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from string import Template
from typing import Any

from supervisor.chaos.words import HEADS, cells, figures
from supervisor.core.chaos.judge import Row, Span
from supervisor.core.chaos.summary import RoundResult

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>supervise chaos, seed $seed: $word</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #1f2933; background: #fff;
       max-width: 1060px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0; } .quiet { color: #52606d; } code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; }
.pass { color: #0b6b3a; font-weight: 600; } .fail { color: #b42318; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; margin: .5rem 0; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #cbd2d9; }
td { border-bottom: 1px solid #e4e7eb; } th, td { padding: .3rem .75rem .3rem 0; white-space: nowrap; }
td.wrap { white-space: normal; min-width: 9rem; }
svg { display: block; width: 100%; height: auto; margin: .25rem 0; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #3e4c59; }
</style>
</head>
<body>
<h1>Chaos, seed $seed: <span class="$tone">$word</span></h1>
<p class="quiet"><code>$command</code></p>
<p class="quiet">$versions</p>
<ul>$figures</ul>
<p class="quiet">The time lines have a bar an attempt, with its number and how it ended:
<b style="color:#f6c453">■</b> comes up <b style="color:#2563eb">■</b> trains
<b style="color:#b42318">■</b> failed, being cleared away <b>▲</b> a fault strikes</p>
$rounds
</body>
</html>
""")
_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 1000.0, 150.0, 20.0, 10.0, 22.0


def page(results: Sequence[RoundResult], totals: dict[str, Any], seed: int, command: str) -> str:
    """The whole document."""
    ok = bool(results) and all(result.ok for result in results)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    versions = (
        f"supervise {importlib.metadata.version('supervise')}, torch {importlib.metadata.version('torch')}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}; {made}"
    )
    return _PAGE.substitute(
        seed=seed,
        word="every fault passed" if ok else "something failed",
        tone="pass" if ok else "fail",
        command=escape(command),
        versions=escape(versions),
        figures="".join(f"<li>{escape(line)}</li>" for line in figures(totals).splitlines()),
        rounds="\n".join(_round(result) for result in results),
    )


def _round(result: RoundResult) -> str:
    word = '<span class="pass">pass</span>' if result.ok else '<span class="fail">FAIL</span>'
    said = [f"{escape(result.comparison.words)}; {len(result.leftovers)} leftovers; exit code {result.exit_code}"]
    said += [f'<span class="fail">{escape(problem)}</span>' for problem in result.problems()]
    return "\n".join(
        [
            f"<section><h2>Round {result.round.number}, resumes from {result.round.tier.value}: {word}</h2>",
            f'<p class="quiet">{escape(result.run)}</p>',
            *(f"<p>{text}</p>" for text in said),
            _time_line(result),
            _table(result),
            "</section>",
        ]
    )


def _table(result: RoundResult) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in HEADS[1:])
    rows = "".join(f"<tr>{_cells(result, row)}</tr>" for row in result.rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(result: RoundResult, row: Row) -> str:
    *most, verdict = cells(result, row)[1:]
    tone = "pass" if row.ok else "fail"
    body = "".join(f"<td>{'–' if cell is None else escape(str(cell))}</td>" for cell in most)
    return f'{body}<td class="wrap {tone}">{escape(str(verdict))}</td>'


def _time_line(result: RoundResult) -> str:
    """One bar for each attempt, one below the other, over one axis of seconds. Each fault has a mark."""
    length = max([span.gone for span in result.spans] or [1.0]) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / length
    height = _TOP + _ROW * len(result.spans) + 42
    title = escape(f"Time line of round {result.round.number}: {len(result.spans)} attempts in {length:.1f} s")
    parts = [f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{title}"><title>{title}</title>']
    floor = _TOP + _ROW * len(result.spans)
    for mark in _ticks(length):
        x = _LEFT + mark * scale
        parts.append(f'<path d="M {x:.1f} {_TOP - 4} V {floor:.1f}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 16:.1f}" text-anchor="middle">{mark:g}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{floor + 34:.1f}" text-anchor="middle">seconds</text>'
    )
    for index, span in enumerate(result.spans):
        parts.append(_bar(span, _TOP + _ROW * index, scale))
    places = {span.attempt: _TOP + _ROW * index for index, span in enumerate(result.spans)}
    parts += [
        _mark(row, places[row.attempt], scale) for row in result.rows if row.at is not None and row.attempt in places
    ]
    return "\n".join([*parts, "</svg>"])


def _bar(span: Span, y: float, scale: float) -> str:
    trained = span.over if span.trained is None else min(span.trained, span.over)
    stretches = [
        (span.begin, trained, "#f6c453", "comes up"),
        (trained, span.over, "#2563eb", "trains"),
        (span.over, span.gone, "#b42318", "being cleared away"),
    ]
    drawn = [
        f'<rect x="{_LEFT + begin * scale:.1f}" y="{y:.1f}" width="{max((end - begin) * scale, 0.8):.1f}" height="14" '
        f'fill="{colour}"><title>{escape(f"attempt {span.attempt} {what}, {end - begin:.2f} s")}</title></rect>'
        for begin, end, colour, what in stretches
        if end > begin
    ]
    label = escape(f"{span.attempt}  {span.cause}")
    return f'<text x="{_LEFT - 10:.0f}" y="{y + 11:.1f}" text-anchor="end">{label}</text>' + "".join(drawn)


def _mark(row: Row, y: float, scale: float) -> str:
    x = _LEFT + (row.at or 0.0) * scale
    colour = "#1f2933" if row.ok else "#b42318"
    shape = f'd="M {x:.1f} {y + 1:.1f} l 5 13 l -10 0 z" fill="{colour}" stroke="#fff"'
    return f"<path {shape}><title>{escape(row.spec)}</title></path>"


def _ticks(length: float) -> list[float]:
    """Round numbers of seconds from 0 on, at most ten."""
    unit = next(u for u in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1e9) if length / u <= 10)
    return [round(unit * number, 1) for number in range(int(length / unit) + 1)]
