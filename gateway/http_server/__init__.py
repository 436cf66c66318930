"""The worker as an HTTP server: requests straight from clients, with the same checks and promises as jobs.

- `settings`: where it listens, who may call.
- `early`: the first health checks, before the rest of the program is imported.
- `app`: what each path answers; `access`: who may call; `bodies`: what clients send, within limits.
- `refusals`: errors in the form of the API that was called.
- `server`: the server's life, from its first health check to the drain.
"""
