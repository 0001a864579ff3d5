"""Mode connectivity: whether two solutions lie in one basin, as they are, after a permutation, or along a curve."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["mode_connectivity"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
