"""Gradient statistics: norms, covariance and noise scale over a training run."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["gradient_statistics"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
