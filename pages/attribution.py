"""Attribution: which features of an example drive a score, by many methods, each judged."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["attribution"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
