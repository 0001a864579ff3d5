"""Opposing signals: which examples pull against one another between two checkpoints."""

from analyzers import catalogue
from ui import runs, series_result, shell

analyzer = catalogue()["opposing_signals"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    series_result.draw(job, result, analyzer)
