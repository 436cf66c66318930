"""Where a start went, from SGLang's own lines."""

from __future__ import annotations

import time

import pytest

from common.figures import seconds_by_phase
from sglang_engine.start_phases import PHASES, StartPhases, label_of, process_began_at

LINES = [
    (12.0, "[2026-11-25 04:00:00 TP0] Load weight begin. avail mem=78.51 GB\n"),
    (12.1, "[2026-11-25 04:00:00 TP1] Load weight begin. avail mem=78.51 GB\n"),
    (42.0, "[2026-11-25 04:00:30 TP0] Load weight end. elapsed=30.00 s, type=Glm4MoeLiteForCausalLM\n"),
    (42.2, "[2026-11-25 04:00:30 TP1] Load weight end. elapsed=30.00 s, type=Glm4MoeLiteForCausalLM\n"),
    (45.0, "[2026-11-25 04:00:33 TP0] Capture target decode CUDA graph begin. This can take minutes.\n"),
    (53.0, "[2026-11-25 04:00:41 TP0] Capture target decode CUDA graph end. Time elapsed: 8.0 s.\n"),
    (54.0, "[2026-11-25 04:00:42 TP0] Capture draft extend CUDA graph begin. step=0\n"),
    (56.0, "[2026-11-25 04:00:44 TP0] Capture draft extend CUDA graph end. Time elapsed: 2.0 s.\n"),
]


def phases_of(start: StartPhases) -> dict[str, float]:
    for now, line in LINES:
        start.see(line, now)
    return start.until(60.0)


def test_phases_of_a_start() -> None:
    phases = phases_of(StartPhases(2.0, worker_began_at=1.5))
    assert tuple(phases) == PHASES
    assert phases == pytest.approx(
        {"worker": 0.5, "imports": 10.0, "download": 0.0, "weights": 30.0, "CUDA graphs": 10.0, "warm-up": 4.0}
    )
    assert seconds_by_phase(phases) == "worker 0.5 s, imports 10.0 s, weights 30.0 s, CUDA graphs 10.0 s, warm-up 4.0 s"


def test_download_is_told_from_the_loading_in_which_it_happens() -> None:
    start = StartPhases(2.0)
    start.downloaded(32.0)
    phases = phases_of(start)
    assert (phases["worker"], phases["download"], phases["weights"]) == (0.0, 20.0, 10.0)


def test_engine_that_says_nothing_was_importing() -> None:
    phases = StartPhases(2.0).until(5.0)
    assert {name: seconds for name, seconds in phases.items() if seconds} == {"imports": 3.0}


def test_own_start_is_in_the_past() -> None:
    began = process_began_at()
    assert began is not None
    assert 0 < time.monotonic() - began < 3600


def test_start_says_which_phase_it_is_in() -> None:
    start, seen = StartPhases(2.0), ["imports"]
    assert start.current == "imports"
    for now, line in LINES:
        start.see(line, now)
        seen += [start.current] if start.current != seen[-1] else []
    assert seen == ["imports", "weights", "warm-up", "CUDA graphs", "warm-up", "CUDA graphs", "warm-up"]


def test_model_that_is_not_on_disk_is_downloaded_before_it_is_read() -> None:
    start = StartPhases(2.0)
    start.downloads()
    assert start.current == "imports"
    start.see(LINES[0][1], 12.0)
    assert start.current == "download"
    start.downloaded(500.0)
    assert start.current == "weights"


def test_phases_are_labels_in_the_form_of_sglang_s() -> None:
    assert [label_of(phase) for phase in PHASES] == [
        "worker",
        "imports",
        "download",
        "weights",
        "cuda_graphs",
        "warm_up",
    ]
