"""RunPod's SDK beside ours: one that a program has imported itself, and where its validator differs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runpod.serverless.utils import rp_validator

from scripts.worker_process import REPOSITORY
from serverless import validate

TEMPERATURE = {"type": float, "required": False, "default": 1.0, "constraints": lambda value: 0 <= value <= 2}
SEED = {"type": int, "required": False, "default": None}
COUNT = {"type": int, "required": True}


@pytest.mark.parametrize(
    ("schema", "raw_input", "is_same"),
    [
        ({"t": TEMPERATURE}, {"t": 1.5}, True),
        ({"t": TEMPERATURE}, {}, True),
        ({"s": SEED}, {}, True),
        ({"s": SEED}, {"s": None}, True),
        ({"n": COUNT}, {"n": "x", "m": 1}, True),
        ({"n": {"type": int}}, {"n": 1}, True),
        ({"t": TEMPERATURE}, {"t": 5.0}, False),
    ],
)
def test_validator_answers_as_runpod_s_does_but_for_what_that_lets_through(
    schema: dict[str, Any], raw_input: dict[str, Any], is_same: bool
) -> None:
    assert (rp_validator.validate(raw_input, dict(schema)) == validate(raw_input, schema)) is is_same


# Run apart: what is patched stays patched.
EARLY = """
import json, runpod
from runpod.serverless import progress_update as as_imported_before
from serverless import early_sdk
from serverless.progress import received_by

early_sdk.catch_up({
    "RUNPOD_POD_ID": "pod-7",
    "RUNPOD_WEBHOOK_GET_JOB": "https://r/v2/e/job-take/$ID?gpu=y",
    "RUNPOD_WEBHOOK_POST_OUTPUT": "https://r/v2/e/job-done/$RUNPOD_POD_ID/$ID?gpu=y",
    "RUNPOD_WEBHOOK_POST_STREAM": "https://r/v2/e/job-stream/$RUNPOD_POD_ID/$ID?gpu=y",
    "RUNPOD_LOG_LEVEL": "ERROR",
})
seen = []
with received_by(lambda job_id, value: seen.append([job_id, value]) is None):
    for step in range(50):
        as_imported_before({"id": "a"}, step)
    runpod.serverless.progress_update({"id": "a"}, "last")
from runpod.serverless.modules import rp_http, rp_job, worker_state
print(json.dumps({
    "seen": seen,
    "urls": [rp_http.JOB_DONE_URL, rp_http.JOB_STREAM_URL, rp_job._job_get_url(2), rp_job._job_stop_url()],
    "id": worker_state.WORKER_ID,
}))
"""


def test_sdk_that_was_imported_early_catches_up_and_its_reports_stay_in_order(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", EARLY],
        cwd=REPOSITORY,
        env={"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(run.stdout)
    assert told["seen"] == [*(["a", step] for step in range(50)), ["a", "last"]]
    assert told["urls"] == [
        "https://r/v2/e/job-done/pod-7/$ID?gpu=y",
        "https://r/v2/e/job-stream/pod-7/$ID?gpu=y",
        "https://r/v2/e/job-take-batch/pod-7?gpu=y&batch_size=2&job_in_progress=0",
        "https://r/v2/e/job-stop/pod-7?gpu=y",
    ]
    assert told["id"] == "pod-7"


def test_without_the_sdk_there_is_nothing_to_do() -> None:
    look = "import sys; from serverless import early_sdk; early_sdk.catch_up({}); print('runpod' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", look], cwd=REPOSITORY, env={}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
