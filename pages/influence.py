"""Influence of training examples: which of them helped or hurt a prediction."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["influence"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
