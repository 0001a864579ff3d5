"""Skill localisation: which weights carry what fine-tuning has taught."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["grafting"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
