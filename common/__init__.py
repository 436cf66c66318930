"""What every other package builds on; it imports none of them.

- `errors`: what a failed job reports, and the error of a service that does not start.
- `settings` and `variables`: how variables are read and checked, and the table of the worker's own.
- `masking`, `standard_streams` and `logs`: keeping secrets out of everything that leaves the process, output that never
  waits for a reader, and the log. `early_exit`: signals before there is an event loop.
- `job_record`: what is known of a job, for its line in the log; `meters`: what is counted; `figures`:
  each minute's line; `metrics_page`: `GET /metrics`.
- `helper_process` and `large_json`: work that would hold up the event loop, in a process of its own.
- `tasks`, `addresses`, `web_server`, `parent_death`, `descriptors`, `memory`: small tools for asyncio, URLs, HTTP,
  child processes, file descriptors and the allocator.
"""
