"""Mode connectivity: whether two solutions lie in one basin, as they are, after a permutation, or along a curve."""

from analyzers import catalogue
from ui import runs, series_result, shell

analyzer = catalogue()["mode_connectivity"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    series_result.draw(job, result, analyzer)
