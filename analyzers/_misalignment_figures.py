"""Figures of captions: words with their scores, pictures with the worst word, patches, and both nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyzers._base import Arrays
from analyzers._figures import COLOURS, as_plotly, faded, figure, template
from analyzers._series_figures import as_labels, of_what

Values = Mapping[str, Any]
DIVERGING = [[0.0, "#B2182B"], [0.25, "#F4A582"], [0.5, "#F7F7F7"], [0.75, "#92C5DE"], [1.0, "#2166AC"]]
COLUMNS, BINS, LONGEST = 4, 40, 24
MARK = "▼"


def captions_figure(card: Mapping[str, Any], values: Values) -> go.Figure:
    """Draw the listed captions as rows of words, coloured by score; what is below the threshold has a mark."""
    rows = [values["rows"][row] for row in values["listed"]]
    width = max((len(each["words"]) for each in rows), default=1)
    scores, texts, told = [], [], []
    for row in rows:
        spare = width - len(row["words"])
        scores.append([*row["scores"], *[None] * spare])
        texts.append([*map(lambda *pair: _cell(values, *pair), row["words"], row["scores"]), *[""] * spare])
        told.append([*(_hover(row, place) for place in range(len(row["words"]))), *[""] * spare])
    most = max((abs(each) for row in rows for each in row["scores"]), default=0.0) or 1.0
    drawn = figure(
        "Words that speak for and against their image",
        f"{of_what(card)}; {MARK} below {values['threshold']:g}; red lowers the cosine",
        "Word of the caption", "",
    )  # fmt: skip
    drawn.add_heatmap(
        z=scores, text=texts, customdata=told, texttemplate="%{text}", hoverongaps=False, xgap=2, ygap=4,
        x=list(range(1, width + 1)), y=as_labels(each["id"] for each in rows), zmin=-most, zmax=most,
        colorscale=DIVERGING, colorbar={"title": "Score", "tickformat": ".1e"},
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(dtick=1, showgrid=False)
    return drawn.update_layout(height=160 + 54 * max(len(rows), 1))


def gallery_figure(card: Mapping[str, Any], values: Values, pictures: np.ndarray[Any, Any]) -> go.Figure:
    """Draw the listed pictures, each with its caption and its worst word."""
    rows = [values["rows"][row] for row in values["listed"]]
    drawn = _grid("Pictures and their worst words", of_what(card), [_title(values, each) for each in rows])
    for place, picture in enumerate(pictures):
        where = {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}
        told = as_plotly(f"{rows[place]['id']}: {rows[place]['caption']}")
        drawn.add_trace(go.Image(z=picture, name=told, hovertemplate=f"{told}<extra></extra>"), **where)
    return _bare(drawn)


def patches_figure(
    card: Mapping[str, Any], values: Values, pictures: np.ndarray[Any, Any], patches: np.ndarray[Any, Any]
) -> go.Figure:
    """Draw what each patch of the listed pictures adds to the cosine, over the picture; one scale for all."""
    rows = [values["rows"][row] for row in values["listed"]]
    words = [f"{as_plotly(each['id'])}<br>cosine {each['cosine']:.3f}" for each in rows]
    drawn = _grid("Patches that speak for and against the caption", of_what(card), words)
    most = float(np.abs(patches).max()) or 1.0
    height, width = pictures.shape[1:3]
    for place, (picture, each) in enumerate(zip(pictures, patches, strict=True)):
        where = {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}
        drawn.add_trace(go.Image(z=picture, hoverinfo="skip"), **where)
        x, y = (np.arange(count) * (side / count) + side / count / 2 - 0.5
                for count, side in zip(each.shape[::-1], (width, height), strict=True))  # fmt: skip
        drawn.add_trace(
            go.Heatmap(
                z=each, x=x, y=y, zmin=-most, zmax=most, colorscale=DIVERGING, opacity=0.6, showscale=place == 0,
                colorbar={"title": "Adds to<br>the cosine", "tickformat": ".1e"},
                hovertemplate="adds %{z:.3g}<extra></extra>",
            ),
            **where,
        )  # fmt: skip
    return _bare(drawn)


def scores_figure(card: Mapping[str, Any], values: Values, arrays: Arrays) -> go.Figure:
    """Draw how F-CLIPScores are spread, of the pairs and of the same captions on other images."""
    drawn = figure("F-CLIPScore of the pairs, and of their captions on other images", _better(card, values),
                   "F-CLIPScore", "Share")  # fmt: skip
    samples = {"The pairs": (arrays["f_clip"], COLOURS[0])}
    if "null_f_clip" in arrays:
        samples = {"On other images": (arrays["null_f_clip"], "#7B8794"), **samples}
    joined = np.concatenate([each for each, _ in samples.values()])
    low, high = float(joined.min()), float(joined.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
    for name, (sample, colour) in samples.items():
        share = np.histogram(sample, edges)[0] / len(sample)
        drawn.add_bar(
            x=(edges[1:] + edges[:-1]) / 2, y=share, width=edges[1] - edges[0], name=name,
            marker_color=faded(colour, 0.6), marker_line_width=0,
            hovertemplate="about %{x:.3g}<br>share %{y:.2%}<extra></extra>",
        )  # fmt: skip
    drawn.update_yaxes(tickformat=".0%")
    return drawn.update_layout(barmode="overlay")


def swaps_figure(card: Mapping[str, Any], swaps: Mapping[str, float]) -> go.Figure:
    """Draw how often a swapped word is the most negative of its caption, beside chance and the word it replaced."""
    drawn = figure("Is a swapped word the most negative one?", f"{of_what(card)}; {swaps['captions']} captions", "",
                   "Share of captions")  # fmt: skip
    names = ("Swapped word", "The word that stood there", "Chance")
    shares = (swaps["hit_rate"], swaps["unchanged"], swaps["chance"])
    above, below = swaps["high"] - swaps["hit_rate"], swaps["hit_rate"] - swaps["low"]
    drawn.add_bar(
        x=names, y=shares, marker_color=[COLOURS[0], "#7B8794", "#CBD2D9"], text=[f"{each:.1%}" for each in shares],
        error_y={"type": "data", "symmetric": False, "array": [above, 0, 0], "arrayminus": [below, 0, 0]},
        hovertemplate="%{x}<br>%{y:.1%}<extra></extra>", showlegend=False,
    )  # fmt: skip
    return drawn.update_yaxes(range=[0, 1.05], tickformat=".0%")


def _cell(values: Values, word: str, score: float) -> str:
    mark = f" {MARK}" if score < values["threshold"] and any(map(str.isalnum, word)) else ""
    return f"{as_plotly(_short(word))}{mark}<br>{score:+.1e}"


def _hover(row: Mapping[str, Any], place: int) -> str:
    said = f"{as_plotly(row['words'][place])}<br>score {row['scores'][place]:+.3g}"
    if row["typical"] is None:
        return said
    share = row["lower_on_others"][place]
    return f"{said}<br>on other images {row['typical'][place]:+.3g}<br>lower on {share:.0%} of them"


def _title(values: Values, row: Mapping[str, Any]) -> str:
    if row["worst_word"] is None:
        return as_plotly(_short(row["caption"]))
    mark = f"{MARK} " if row["worst_score"] < values["threshold"] else ""
    return f"{as_plotly(_short(row['caption'], 34))}<br>{mark}<b>{as_plotly(_short(row['worst_word']))}</b> " \
        f"{row['worst_score']:+.1e}"  # fmt: skip


def _short(text: str, most: int = LONGEST) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _better(card: Mapping[str, Any], values: Values) -> str:
    found = values["lower_on_others_f_clip_score"]
    if found is None:
        return of_what(card)
    between = f"{found['low']:.0%} to {found['high']:.0%}"
    return f"{of_what(card)}; higher than on {found['mean']:.0%} of other images ({between}; chance 50%)"


def _grid(title: str, subtitle: str, titles: Sequence[str]) -> go.Figure:
    rows = max(1, -(-len(titles) // COLUMNS))
    drawn = make_subplots(rows=rows, cols=COLUMNS, subplot_titles=titles, vertical_spacing=0.3 / rows)
    words = {"text": title, "subtitle": {"text": subtitle, "font": {"size": 12, "color": "#52606D"}}}
    drawn.update_layout(template=template(), title=words, height=140 + 260 * rows, margin={"t": 130})
    return drawn.update_annotations(font_size=12)


def _bare(drawn: go.Figure) -> go.Figure:
    drawn.update_xaxes(visible=False)
    return drawn.update_yaxes(visible=False)
