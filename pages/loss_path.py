"""Loss path: what the loss does on the straight line between two checkpoints."""

from analyzers import catalogue
from ui import runs, series_result, shell

analyzer = catalogue()["loss_path"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    series_result.draw(job, result, analyzer)
