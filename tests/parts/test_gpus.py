"""The machine's GPUs as a scripted nvidia-smi tells of them, and what `engine.py --print` makes of that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.worker_process import REPOSITORY
from sglang_engine import gpus

H100 = "GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 9.0"
L40S = "GPU-bbbb, NVIDIA L40S, 46068, 8.9"
WITH_SLICES = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-2222)
"""
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


def machine_with(
    folder: Path, cards: str, listing: str = "", *, code: int = 0, seconds: float = 0, **environ: str
) -> dict[str, str]:
    """An environment whose nvidia-smi answers so."""
    program = folder / "nvidia-smi"
    (folder / "cards").write_text(cards)
    (folder / "listing").write_text(listing)
    program.write_text(
        f'#!/bin/sh\nsleep {seconds}\nif [ "$1" = -L ]; then cat "{folder}/listing"; else cat "{folder}/cards"; fi\n'
        f"exit {code}\n"
    )
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"} | environ


def names(machine: gpus.Machine) -> list[str]:
    return [str(card) for card in machine.cards]


def test_cards_are_read_with_their_memory_in_gb(tmp_path: Path) -> None:
    machine = gpus.look(machine_with(tmp_path, f"{H100}\n{L40S}\n", "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)\n"))
    assert names(machine) == [
        "NVIDIA H100 80GB HBM3 (85.52 GB, compute capability 9.0)",
        "NVIDIA L40S (48.31 GB, compute capability 8.9)",
    ]


@pytest.mark.parametrize(
    ("visible", "found"), [("1", ["L40S"]), ("GPU-b", ["L40S"]), ("1,0", ["L40S", "H100"]), ("0,7,1", ["H100"])]
)
def test_cuda_visible_devices_counts(tmp_path: Path, visible: str, found: list[str]) -> None:
    machine = gpus.look(machine_with(tmp_path, f"{H100}\n{L40S}\n", CUDA_VISIBLE_DEVICES=visible))
    assert [next(name for name in ("H100", "L40S") if name in card.product) for card in machine.cards] == found


@pytest.mark.parametrize(("visible", "profile"), [(None, "3g.40gb"), ("MIG-2222", "1g.10gb+me"), ("0", "3g.40gb")])
def test_of_slices_there_is_one_with_the_memory_of_its_profile(
    tmp_path: Path, visible: str | None, profile: str
) -> None:
    environ = machine_with(tmp_path, H100.replace("81559", "[Insufficient Permissions]"), WITH_SLICES)
    [card] = gpus.look(environ | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})).cards
    assert (card.slice_name, card.memory_gb) == (profile, 40 if profile == "3g.40gb" else 10)


def test_warnings_among_the_cards_are_left_out(tmp_path: Path) -> None:
    said = f"{H100}\nWARNING: infoROM is corrupted at gpu 0000:01:00.0\n"
    assert len(gpus.look(machine_with(tmp_path, said, code=14)).cards) == 1


@pytest.mark.parametrize("memory", ["[N/A]", "0", "lots", "[Insufficient Permissions]"])
def test_card_whose_memory_is_not_told_is_not_taken_for_a_small_one(tmp_path: Path, memory: str) -> None:
    machine = gpus.look(machine_with(tmp_path, f"GPU-dddd, NVIDIA GB10, {memory}, 12.1"))
    assert machine == gpus.Machine(problem="nvidia-smi does not tell the memory of NVIDIA GB10")


@pytest.mark.parametrize(
    ("cards", "code", "problem"),
    [
        ("", 0, "nvidia-smi lists none"),
        ("No devices were found\n", 6, "nvidia-smi exits with code 6: No devices were found"),
        (f"{FAILED} Make sure\n", 9, f"nvidia-smi exits with code 9: {FAILED} Make sure"),
        ("what is this\n", 0, "nvidia-smi answers something else than cards"),
    ],
)
def test_machine_without_cards_says_why(tmp_path: Path, cards: str, code: int, problem: str) -> None:
    assert gpus.look(machine_with(tmp_path, cards, code=code)) == gpus.Machine(problem=problem)


def test_no_card_is_visible_if_cuda_may_see_none(tmp_path: Path) -> None:
    machine = gpus.look(machine_with(tmp_path, H100, CUDA_VISIBLE_DEVICES=""))
    assert machine == gpus.Machine(problem="CUDA_VISIBLE_DEVICES='' leaves none")


def test_machine_without_nvidia_smi_says_so(tmp_path: Path) -> None:
    assert gpus.look({"PATH": str(tmp_path)}) == gpus.Machine(problem="there is no nvidia-smi")


def test_nvidia_smi_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "QUERY_SECONDS", 0.2)
    assert gpus.look(machine_with(tmp_path, H100, seconds=30)).problem == "nvidia-smi does not answer within 0.2 s"


def test_nvidia_smi_that_cannot_even_be_killed_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "QUERY_SECONDS", 0.2)
    monkeypatch.setattr(gpus, "KILL_SECONDS", 0.2)
    hanging: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: hanging.append(process))
    began = time.monotonic()
    assert "does not answer" in gpus.look(machine_with(tmp_path, H100, seconds=30)).problem
    assert time.monotonic() - began < 15
    monkeypatch.undo()
    [process] = hanging
    process.kill()
    process.wait()


def printed(folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "engine.py"), "--print"]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=60)


def test_print_shows_what_was_chosen_and_why(tmp_path: Path) -> None:
    shown = printed(tmp_path, machine_with(tmp_path, L40S, PRESET="auto"))
    assert shown.returncode == 0
    assert "PRESET=auto takes l40s-fp8: NVIDIA L40S (48.31 GB" in shown.stderr
    assert "mratsim/GLM-4.7-Flash-FP8" in shown.stdout
    assert "preset l40s-fp8" in shown.stdout


def test_card_that_is_too_small_is_refused_with_one_clear_sentence(tmp_path: Path) -> None:
    shown = printed(tmp_path, machine_with(tmp_path, "GPU-cccc, NVIDIA RTX A4000, 16376, 8.6", PRESET="auto"))
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("PRESET=auto: NVIDIA RTX A4000 (17.17 GB, compute capability 8.6) has too little")
    assert len(shown.stderr.splitlines()) == 1
