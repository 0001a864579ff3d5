"""Loss path: what the loss does on the straight line between two checkpoints."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["loss_path"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
