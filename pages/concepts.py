"""Concepts: what a class of the model makes of a concept that examples show."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["concepts"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
