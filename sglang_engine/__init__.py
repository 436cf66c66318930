"""One SGLang: its command line, its process, its life.

- `options`, `presets`, `spelling` and `vllm_names`: what can be set, names that were probably meant, and names that
  mean nothing here; engine.py plans with them.
- `hub`: models on disk, and the progress of downloads. `start_time`: how long a start takes, against RunPod's limit.
- `launch`: the result of planning, ready to be started.
- `process`: one life of the child process; `output`: what it writes; `supervisor`: its restarts; `failure_causes`: why
  it ended.
- `capacity`: how many jobs it can take at once, from its `loads` by way of an `estimate`.
- `early_start` and `prelude`: its first process, started before the worker's own imports. `start_phases`: where a
  start went.
- `transport`: the connections to it. `foreground`: SGLang in place of this process, without a worker.
- `guarded` and `guard`: a process whose descendants end with it. `posix`: other processes, and how to see them end.
"""
