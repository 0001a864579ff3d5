"""The Hessian spectrum of the checkpoint on the bench."""

from ui import runs, shell, spectrum

analyzer = spectrum.ANALYZER
shell.heading(analyzer.title, analyzer.question)
job = runs.choose(analyzer)
if job and (result := runs.follow(job, analyzer)):
    spectrum.draw(job, result)
