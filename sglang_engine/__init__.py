"""One SGLang: its command line, its process, its life.

- `options`, `presets` and `spelling`: what can be set, and names that were probably meant; engine.py plans with them.
- `hub`: models on disk, and downloads watched.
- `launch`: the result of planning, ready to be started.
- `process`: one life of the child process; `output`: what it writes; `supervisor`: its restarts; `failure_causes`: why
  it ended.
- `transport`: the connections to it. `foreground`: SGLang in this process's place, without a worker.
- `guarded` and `guard`: a process whose descendants end with it. `posix`: processes seen from outside, and their end.
"""
