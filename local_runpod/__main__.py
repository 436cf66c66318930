"""`python -m local_runpod`: serve the local RunPod and print what a worker needs to join it."""

from __future__ import annotations

import argparse

import uvicorn

from addresses import url_of
from local_runpod.app import create_app
from local_runpod.worker_environment import worker_environment


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m local_runpod", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    base_url = url_of(arguments.host, arguments.port)
    print("# A worker joins with:")
    for name, value in worker_environment(base_url).items():
        print(f"export {name}='{value}'")
    print(f"# Clients call {base_url}/v2/local/runsync; the API is described at {base_url}/docs", flush=True)
    uvicorn.run(create_app(), host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
