"""Gradient statistics: norms, covariance and noise scale over a training run."""

from analyzers import catalogue
from ui import runs, series_result, shell

analyzer = catalogue()["gradient_statistics"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    series_result.draw(job, result, analyzer)
