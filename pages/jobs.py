"""What runs, waits and ran."""

from ui import joblist, shell

shell.heading("Jobs", "One device takes one analysis at a time; reading files and drawing pictures go on beside it.")
joblist.draw()
