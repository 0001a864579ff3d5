"""Opposing signals: which examples pull against one another between two checkpoints."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["opposing_signals"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
