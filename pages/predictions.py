"""What a network predicts, which examples it gets wrong, and of which it is unsure."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["predictions"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
