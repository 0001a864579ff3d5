"""All that has been measured of the training run on the bench, on one time axis."""

from ui import bench as benches
from ui import run_page, shell

shell.heading("Training run", shell.WHOLE_RUN)
id = benches.current_id()
run_page.draw(id, benches.read(id))
