"""One request, wherever it comes from: what it may ask for, how it is sent to the engine, and what comes back.

- `request`: turns a job's input into an `UpstreamRequest`, or a refusal that says what is accepted.
- `routes`: which of the engine's paths are open to clients.
- `deliver`: sends it, and sends it again if its engine dies; turns errors on the way into errors for the client.
- `response` and `sse`: what the engine answers, whole or as a stream of events.
- `usage`: what an answer says of its tokens. `tracing`: the trace context that a job brings along.
- `errors`: this package's own errors, and what the engine's errors mean.
"""
