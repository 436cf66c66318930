"""One request, whoever brings it: what it may ask, how it is sent to the engine, and what comes back.

- `request`: a job's input becomes an `UpstreamRequest`, or a refusal that says what is accepted.
- `routes`: which of the engine's paths are open to clients.
- `deliver`: sends it, once more when its engine dies; the errors on the way become errors for the client.
- `response` and `sse`: what the engine answers, whole or as a stream of events.
- `errors`: what the engine's errors mean, and those of this room.
"""
