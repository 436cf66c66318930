"""The ground that every room stands on; it imports none of them.

- `errors`: what a failed job says, and a service that does not start.
- `settings` and `variables`: how variables are read and checked, and the table of the worker's own.
- `masking` and `logs`: secrets kept out of texts, and the log.
- `tasks`, `addresses`, `web_server`, `parent_death`: small tools for asyncio, URLs, HTTP and child processes.
"""
