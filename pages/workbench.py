"""What is on the bench: checkpoints, model, data, loss; and the gate before any analysis."""

from ui import bench as benches
from ui import example, shell, step_checkpoints, step_data, step_gate, step_model
from ui.ready import Ready, ready

shell.heading("Workbench", "Lay a trained network on the bench; then every analysis asks its question of it.")
id = benches.current_id()
bench = benches.read(id)
if not bench.checkpoints:
    example.draw(id)
found = step_checkpoints.draw(id, bench)
step_model.draw(id, bench, found)
step_data.draw(id, bench)
state = ready(bench)
step_gate.draw(id, bench, state if isinstance(state, Ready) else None)
