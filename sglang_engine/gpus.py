"""The GPUs that this process may use, as nvidia-smi tells, and the preset that `PRESET=auto` takes for them.

nvidia-smi comes with the driver and answers in a fraction of a second. CUDA itself is not asked: it would take memory
on the GPU for as long as the worker lives, and torch takes seconds to import.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from sglang_engine.presets import ALL_WEIGHTS, AWQ, BF16, PRESETS, Preset, preset_of

QUERY_SECONDS = 20.0  # a driver that is not kept loaded takes several seconds for each card
KILL_SECONDS = 1.0  # one that hangs in the driver cannot even be killed, and is left behind
# What nvidia-smi exits with where it answers and warns: 14 is a corrupted infoROM (its manual page, RETURN VALUE).
_ANSWERED = (0, 14)
MIB = 1024 * 1024
GB = 1e9
# The 20 attention heads of GLM-4.7-Flash split over so many cards.
SPLITS = (4, 2, 1)
# nvidia-smi counts in MiB and tells up to 8 % more than the GB that a card is sold with.
_SAME_CARD = 0.1
_QUERY = ("--query-gpu=uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_SLICE = re.compile(r"^\s+MIG ((?:\d+c\.)?\d+g\.(\d+)gb\S*)\s.*UUID: (MIG-[^)]+)\)", re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PARENT = re.compile(r"^GPU \d+: .*UUID: (GPU-[^)]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A GPU, or a slice of one. memory_gb is in 10^9 bytes."""

    uuid: str
    product: str
    memory_gb: float
    capability: tuple[int, int]
    slice_name: str = ""
    """Its MIG profile, such as `3g.40gb`."""

    def __str__(self) -> str:
        name = f"{self.product}, slice {self.slice_name}" if self.slice_name else self.product
        return f"{name} ({self.memory_gb:.4g} GB, compute capability {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True)
class Machine:
    """What there is. problem: why there are no cards, if there are none."""

    cards: tuple[Card, ...] = ()
    problem: str = ""


def look(environ: Mapping[str, str]) -> Machine:
    """The cards that the engine would find, in its order (CUDA_DEVICE_ORDER=PCI_BUS_ID, as nvidia-smi lists them).

    Takes twice QUERY_SECONDS and KILL_SECONDS at most.
    """
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return Machine(problem="there is no nvidia-smi")
    try:
        cards = _cards(_answer(program, *_QUERY))
        slices = _slices(_answer(program, "-L"), cards)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Machine(problem=f"nvidia-smi {_complaint(error)}")
    if slices:
        cards = slices[:1]  # CUDA gives a process one slice, whatever it may see
    if untold := next((card.product for card in cards if not card.memory_gb), None):
        return Machine(problem=f"nvidia-smi does not tell the memory of {untold}")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        cards = _visible(slices or cards, visible)[: 1 if slices else None]
        return Machine(tuple(cards), "" if cards else f"CUDA_VISIBLE_DEVICES={visible!r} leaves none")
    return Machine(tuple(cards), "" if cards else "nvidia-smi lists none")


def _answer(program: str, *arguments: str) -> str:
    """What nvidia-smi says. Raises OSError and SubprocessError, after QUERY_SECONDS and KILL_SECONDS at most."""
    command = [program, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, errors="replace"
    )
    try:
        said, complaint = process.communicate(timeout=QUERY_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        raise
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if process.returncode not in _ANSWERED:
        raise subprocess.CalledProcessError(process.returncode, command, said, complaint)
    return said


def _complaint(error: Exception) -> str:
    match error:
        case subprocess.TimeoutExpired():
            return f"does not answer within {QUERY_SECONDS:g} s"
        case subprocess.CalledProcessError():
            said = (error.stdout or error.stderr or "").strip().splitlines()
            return f"exits with code {error.returncode}" + (f": {said[0]}" if said else "")
        case OSError():
            return f"cannot be run ({error.strerror})"
    return "answers something else than cards"


def _cards(listing: str) -> list[Card]:
    """Raises ValueError for a line that is no card; but for warnings, which may stand among those of cards."""
    lines = [line for line in listing.splitlines() if line.strip()]
    found = []
    for line in [line for line in lines if line.startswith("GPU-")] or lines:
        uuid, product, memory, capability = (part.strip() for part in line.split(","))
        major, _, minor = capability.partition(".")
        memory_gb = float(memory) * MIB / GB if _NUMBER.fullmatch(memory) else 0.0  # a card in slices may not tell
        found.append(Card(uuid, product, memory_gb, (int(major), int(minor))))
    return found


def _slices(listing: str, cards: Sequence[Card]) -> list[Card]:
    """The MIG slices under the cards in `nvidia-smi -L`; empty without MIG. The profile tells the memory, in GB."""
    by_uuid = {card.uuid: card for card in cards}
    found: list[Card] = []
    for part in re.split(r"^(?=GPU )", listing, flags=re.MULTILINE):
        parent = _PARENT.search(part)
        card = by_uuid.get(parent[1]) if parent else None
        if card is not None:
            found += [
                replace(card, uuid=uuid, memory_gb=float(memory), slice_name=profile)
                for profile, memory, uuid in _SLICE.findall(part)
            ]
    return found


def _visible(cards: Sequence[Card], names: str) -> list[Card]:
    """What CUDA_VISIBLE_DEVICES leaves: indices or the beginnings of UUIDs, up to the first that is unknown."""
    chosen: list[Card] = []
    for name in (name.strip() for name in names.split(",")):
        if name.isdigit():
            card = cards[int(name)] if int(name) < len(cards) else None
        else:
            card = next((card for card in cards if name and card.uuid.startswith(name)), None)
        if card is None:
            break
        chosen.append(card)
    return chosen


@dataclass(frozen=True)
class Choice:
    """What `PRESET=auto` has chosen. why: one line."""

    preset: Preset
    why: str


def choose(cards: Sequence[Card], *, split: int | None = None) -> Choice:
    """The best weights that the cards can hold, on as many of the cards as the model splits over.

    split: over how many cards the user wants it split, if that is given. Raises ValueError with a sentence if no
    weights fit, or there are no cards.
    """
    if not cards:
        raise ValueError("no GPU is visible")
    alike = [card for card in cards if _is_like(card, cards[0])]
    most = split or next(count for count in SPLITS if count <= len(alike))
    card = min(alike[:most], key=lambda card: card.memory_gb)
    weights = next((each for each in ALL_WEIGHTS if each.fits(card.memory_gb, card.capability, most)), None)
    if weights is None:
        others = len(cards) - len(alike)
        left = f"; {others} other of {len(cards)} cards left out (CUDA_VISIBLE_DEVICES chooses)" if others else ""
        raise ValueError(_too_small(card, most) + left)
    known = next((preset for preset in PRESETS.values() if _is_of(preset, card)), None)
    if known is not None and most == 1:
        preset = known
    else:
        name = f"{known.name if known else 'for this card'}, {weights.name}"
        preset = preset_of(name, str(card), weights, card.memory_gb, card.capability, cards=most)
    idle = len(cards) - most
    why = "; ".join(
        part
        for part in (
            f"{most} x {card}" if most > 1 else str(card),
            f"{weights.name} weights of {weights.size_gb:g} GB, {preset.cache_tokens:,} tokens of KV cache",
            f"{idle} of {len(cards)} cards stay idle" if idle > 0 and split is None else "",
            "not run on such a card by the authors",
        )
        if part
    )
    return Choice(preset, why)


def _is_like(card: Card, other: Card) -> bool:
    """Whether SGLang would split a model over both: it refuses cards whose memory differs."""
    return card.capability == other.capability and abs(card.memory_gb - other.memory_gb) <= 0.1 * other.memory_gb


def _is_of(preset: Preset, card: Card) -> bool:
    is_as_large = abs(card.memory_gb - preset.memory_gb) <= _SAME_CARD * preset.memory_gb
    return not card.slice_name and preset.is_for(card.product) and is_as_large


def _too_small(card: Card, cards: int) -> str:
    if card.capability < AWQ.capability:
        return f"{card} is older than Ampere, and runs no variant of the model"
    smallest = min(preset.memory_gb for preset in PRESETS.values())
    what = f"{cards} x {card} have" if cards > 1 else f"{card} has"
    return (
        f"{what} too little memory: the smallest variant (AWQ, {AWQ.size_gb:g} GB of weights) needs a GPU of "
        f"{smallest:g} GB, bf16 ({BF16.size_gb:g} GB) one of 80 GB"
    )
