"""`python -m local_runpod`: serve the local RunPod and print what a worker needs to join it."""

from __future__ import annotations

import argparse

import httpx
import uvicorn

from local_runpod.app import create_app
from local_runpod.worker_environment import worker_environment


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m local_runpod", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(arguments.host, arguments.host)
    base_url = str(httpx.URL(scheme="http", host=reachable, port=arguments.port))
    print("# A worker joins with:")
    for name, value in worker_environment(base_url).items():
        print(f"export {name}='{value}'")
    print(f"# Clients call {base_url}/v2/local/runsync; the API is described at {base_url}/docs", flush=True)
    uvicorn.run(create_app(), host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
