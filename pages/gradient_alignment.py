"""Gradient-weight alignment over a training run, and the examples to check."""

from analyzers import catalogue
from ui import runs, series_result, shell

analyzer = catalogue()["gradient_alignment"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    series_result.draw(job, result, analyzer)
