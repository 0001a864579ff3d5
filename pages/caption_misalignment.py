"""Misaligned words of captions: which of them do not fit their image, by the attention of CLIP."""

from analyzers import catalogue
from ui import result_page, runs, shell

analyzer = catalogue()["caption_misalignment"]
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    result_page.draw(job, result, analyzer)
