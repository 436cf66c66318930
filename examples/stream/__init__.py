"""An asynchronous generator: a worker that streams."""
