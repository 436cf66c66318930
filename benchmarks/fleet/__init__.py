"""Many workers under one queue: `scripts/fleet` runs them, `scripts/plan` simulates them.

- `traffic`: when jobs come, and how long their answers are.
- `scaling`: RunPod's two rules for how many workers there should be, and an endpoint's other settings.
- `outcome`: what became of the jobs and what the workers cost: figures, tables and plots, of a run or a simulation.
- `running`: real workers, between a local RunPod and paced engines.
- `simulation`: the same in SimPy; `engine_model`: how fast an engine is, from what `scripts/bench --url --json` wrote.
- `__main__` and `plan`: the two command lines.
"""
