"""What the team has pinned."""

from ui import pinned, shell

shell.heading("Pinned", "Figures that were worth keeping, each with a sentence and the run that it is from.")
pinned.draw()
