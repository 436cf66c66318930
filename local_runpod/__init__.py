"""RunPod on this machine: both sides of its queue API in one small app.

Workers take jobs, post outputs and ping (`/job-take`, `/job-stream`, `/job-done`, `/job-stop`, `/ping`, as RunPod's SDK
1.12.0 calls them); clients run, stream, watch and cancel them (`/run`, `/runsync`, `/stream`, `/status`, `/cancel`,
`/purge-queue`, `/health`, `/openai/…`, as on api.runpod.ai).

- `jobs` is the queue and the life of a job; it knows nothing about HTTP.
- `worker_side`, `client_side`, `openai_side` and `realtime_side` are its HTTP routes, `pages` the page to try it and
  Swagger's; `app` is all of them.
- `access` says who may call, `bodies` reads what they send, `refusals` reports errors in the form of the API called.
- `webhooks` posts finished jobs to their clients' addresses.
- `observed` is what a worker tells of itself: metrics, figures, the state of its engine.
- `faults` makes the platform slow, or makes it refuse calls, on demand.

`python -m local_runpod` serves it and prints the variables that connect a worker to it.
"""

from local_runpod.access import Access
from local_runpod.app import create_app
from local_runpod.faults import Faults
from local_runpod.health_side import Health
from local_runpod.jobs import Job, JobQueue, JobState, Limits, RawJson
from local_runpod.observed import Observed
from local_runpod.webhooks import Webhooks
from local_runpod.worker_environment import worker_environment

__all__ = [
    "Access",
    "Faults",
    "Health",
    "Job",
    "JobQueue",
    "JobState",
    "Limits",
    "Observed",
    "RawJson",
    "Webhooks",
    "create_app",
    "worker_environment",
]
