"""The ground that every room stands on; it imports none of them.

- `errors`: what a failed job says, and a service that does not start.
- `settings` and `variables`: how variables are read and checked, and the table of the worker's own.
- `masking`, `standard_streams` and `logs`: secrets kept out of all that leaves the process, output that waits for no
  reader, and the log. `early_exit`: signals before there is a loop.
- `tasks`, `addresses`, `web_server`, `parent_death`, `descriptors`: small tools for asyncio, URLs, HTTP, child
  processes and file descriptors.
"""
