"""Gradient-weight alignment over a training run, and the examples to check."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["gradient_alignment"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
