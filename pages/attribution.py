"""Attribution: which features of an example drive a score, by many methods, each judged."""

from analyzers import catalogue
from ui import attribution_page, runs, shell

analyzer = catalogue()["attribution"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    attribution_page.draw(job, result, analyzer)
