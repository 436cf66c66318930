"""Token ids that the model does not have: they would kill SGLang."""

from __future__ import annotations

import pytest

from local_runpod import JobState
from scripts.worker_process import Platform, Worker
from tests.answers import error_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "job_input",
    [
        {"openai_route": "/v1/completions", "openai_input": {"model": "glm-4.7-flash", "prompt": [99999]}},
        {"input_ids": [99999], "sampling_params": {"max_new_tokens": 1}},
        {"input_ids": [-1], "sampling_params": {"max_new_tokens": 1}},
    ],
)
async def test_unknown_token_id_is_refused_and_the_engine_lives(
    platform: Platform, worker: Worker, job_input: object
) -> None:
    pid = worker.engine_pid()
    error = error_of(await platform.answer(job_input))
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert "valid ids are from 0 to " in error["message"]
    known = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 1}}
    assert (await platform.answer(known)).state is JobState.COMPLETED
    assert worker.engine_pid() == pid
