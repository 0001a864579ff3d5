"""Layer rotation: how far each layer has turned from where it began."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["layer_rotation"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
