"""One command from settings to a RunPod endpoint, over REST API v2. Run by scripts/deploy."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dotenv import load_dotenv

from common.masking import Mask
from common.settings import ConfigurationError
from scripts.deployment import (
    TYPES,
    Deployment,
    Wanted,
    changes,
    deployment,
    mask_of,
    price_per_hour,
    shown,
    with_catalogue,
)
from scripts.first_answer import NoAnswerError, first_answer, follow_logs
from scripts.rest_v2 import BASE_URL, ApiError, RestV2
from sglang_engine.presets import PRESETS
from sglang_engine.start_time import VARIABLE

EXAMPLES = """\
examples:
  scripts/deploy --image ghcr.io/me/glm-flash-worker:0.2.0 --gpu h100
  scripts/deploy --image ghcr.io/me/glm-flash-worker:0.2.0 --gpu l40s-fp8 --type http --volume 2q9m7x4c --env HF_TOKEN
  scripts/deploy --update 4m7x2k9q --image ghcr.io/me/glm-flash-worker:0.3.0
  scripts/deploy --logs 4m7x2k9q

RUNPOD_API_KEY, in the environment or in .env, is a key from https://console.runpod.io/user/settings.
Exit codes: 0 done, 1 it failed or you said no, 2 a setting is wrong and nothing was sent.
"""


class UsageError(Exception):
    """The command line cannot be followed; the message says what is missing."""


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line asks for. Returns the exit code."""
    arguments = _parser().parse_args(words)
    load_dotenv(Path.cwd() / ".env")  # what the environment has already wins
    try:
        return asyncio.run(_run(arguments))
    except ConfigurationError as error:
        return _failed(2, *error.problems)
    except UsageError as error:
        return _failed(2, str(error))
    except (ApiError, NoAnswerError) as error:
        return _failed(1, str(error))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/deploy",
        description="Create a RunPod endpoint with this worker and follow it to its first answer; or change, show or "
        "delete one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--image", help="the worker's image, with its tag")
    parser.add_argument("--gpu", help=f"a preset: {', '.join(PRESETS)}")
    parser.add_argument(
        "--type", dest="kind", choices=TYPES, help="queue (default), or http: a load balancer, no queue"
    )
    parser.add_argument("--name", help="the endpoint's name; default: the served model's")
    parser.add_argument("--max-workers", type=int, metavar="N", help="the most workers at once (3)")
    parser.add_argument("--volume", metavar="ID", help="a network volume, where the model is kept")
    parser.add_argument("--registry", metavar="ID", help="RunPod's id of the credentials for a private registry")
    parser.add_argument(
        "--env",
        action="append",
        metavar="NAME=VALUE",
        help="a variable of the worker; NAME alone takes its value from here, as in docker run",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the request's body; send nothing (--update reads the endpoint)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--update", metavar="ID", help="change an endpoint to what the other options say")
    actions.add_argument("--delete", metavar="ID", help="delete an endpoint, its workers and its queue")
    actions.add_argument("--status", metavar="ID", help="show an endpoint and its workers")
    actions.add_argument("--logs", metavar="ID", help="follow the logs of an endpoint's workers")
    return parser


async def _run(arguments: argparse.Namespace) -> int:
    _check_options_belong_together(arguments)
    if arguments.dry_run and not arguments.update:
        return _dry_run(_planned(arguments))
    planned = (
        None if arguments.update or arguments.delete or arguments.status or arguments.logs else _planned(arguments)
    )
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    if not key:
        raise UsageError(
            "RUNPOD_API_KEY is not set: a key from https://console.runpod.io/user/settings, here or in .env"
        )
    async with RestV2.connect(key, os.environ.get("RUNPOD_REST_URL") or BASE_URL) as api:
        if planned is not None:
            return await create(api, planned, key=key, is_agreed=arguments.yes)
        if arguments.update:
            return await update(api, arguments)
        if arguments.delete:
            return await delete(api, arguments.delete, is_agreed=arguments.yes)
        if arguments.status:
            return await status(api, arguments.status)
        return await logs(api, arguments.logs)


def _check_options_belong_together(arguments: argparse.Namespace) -> None:
    """Raises UsageError where an option would be left out of account."""
    action = next((name for name in ("delete", "status", "logs") if getattr(arguments, name)), None)
    names = ("image", "gpu", "kind", "name", "max_workers", "volume", "registry", "env", "dry_run")
    given = [name for name in names if getattr(arguments, name) not in (None, False)]
    if action and given:
        flags = ("--type" if name == "kind" else f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"--{action} takes no {', '.join(flags)}")


def _wanted(arguments: argparse.Namespace) -> tuple[Wanted, frozenset[str]]:
    """What the command line asks for, and the names of the fields that it gives."""
    named = {name: getattr(arguments, name) for name in ("image", "gpu", "kind", "name", "max_workers", "volume")}
    named |= {"registry": arguments.registry, "environment": _environment(arguments.env) if arguments.env else None}
    given = {name: value for name, value in named.items() if value is not None}
    return Wanted(**{"image": "", "gpu": "", **given}), frozenset(given)


def _environment(words: Sequence[str]) -> dict[str, str]:
    environment = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or any(character.isspace() for character in name):
            raise UsageError(f"--env {name!r}: expected NAME=VALUE, or NAME")  # without the value, which may be secret
        if not equals and name not in os.environ:
            raise UsageError(f"--env {name}: it has no value, and is not set here")
        environment[name] = value if equals else os.environ[name]
    return environment


def _planned(arguments: argparse.Namespace) -> Deployment:
    wanted, given = _wanted(arguments)
    if missing := [f"--{name}" for name in ("image", "gpu") if name not in given]:
        raise UsageError(f"{' and '.join(missing)} missing; --help has examples")
    return deployment(wanted)


def _dry_run(planned: Deployment) -> int:
    _tell_notes(planned)
    print(planned.shown())
    return 0


# --- What it can do -------------------------------------------------------------------------------------------------


async def create(api: RestV2, planned: Deployment, *, key: str, is_agreed: bool) -> int:
    """Show and ask; create the endpoint; follow it to its first answer; print what a client needs."""
    catalogue = await api.gpus()
    planned.body["gpu"] = with_catalogue(planned.body["gpu"], planned.preset, catalogue)
    _tell_notes(planned)
    say(f"POST {BASE_URL}/serverless\n{planned.shown()}")
    say(_cost(planned, price_per_hour(planned.preset, catalogue)))
    if not _agrees("Create this endpoint?", is_agreed):
        return _failed(1, "nothing was created")
    with _errors_masked(planned.mask):
        try:
            endpoint = await api.create(planned.body)
        except ApiError as error:
            raise await _perhaps_created(api, planned, error) from error
        return await _follow(api, endpoint, planned, key=key)


async def _follow(api: RestV2, endpoint: Mapping[str, Any], planned: Deployment, *, key: str) -> int:
    """From a new endpoint to its first answer, and what a client needs."""
    endpoint_id = endpoint["id"]
    say(f"endpoint {endpoint_id} is created; it costs nothing until a worker starts, which the first request does")
    try:
        answer = await first_answer(
            api,
            endpoint,
            key=key,
            model=planned.served_model_name,
            init_timeout_seconds=float(planned.body["env"][VARIABLE]),
            say=lambda line: say(planned.mask(line)),
        )
    except BaseException:
        say(
            f"endpoint {endpoint_id} is still there: scripts/deploy --logs {endpoint_id} shows what it does, "
            f"--delete {endpoint_id} deletes it"
        )
        raise
    say(f"first answer: {answer}")
    print(client_lines(endpoint, planned.served_model_name))
    return 0


@contextmanager
def _errors_masked(mask: Mask) -> Iterator[None]:
    """Errors are told without the secrets of a request, which an API may quote."""
    try:
        yield
    except ApiError as error:
        raise ApiError(mask(str(error)), error.status) from None
    except NoAnswerError as error:
        raise NoAnswerError(mask(str(error))) from None


async def _perhaps_created(api: RestV2, planned: Deployment, error: ApiError) -> ApiError:
    """The error, with the endpoints of that name if nobody knows whether the request was carried out."""
    if error.status is not None and 400 <= error.status < 500:
        return error
    name = planned.body["name"]
    try:
        ids = [str(endpoint["id"]) for endpoint in await api.endpoints() if endpoint["name"] == name]
    except ApiError:
        return ApiError(f"{error}; whether {name} was created is not known: look at the console", error.status)
    return ApiError(f"{error}; endpoints named {name} now: {', '.join(ids) or 'none'}", error.status)


async def update(api: RestV2, arguments: argparse.Namespace) -> int:
    """Show what would change and ask; change it; say how the new release gets to the workers."""
    wanted, given = _wanted(arguments)
    endpoint = await api.endpoint(arguments.update)
    planned = changes(endpoint, wanted, given)
    if "gpu" in planned.body and not arguments.dry_run:
        planned.body["gpu"] = with_catalogue(planned.body["gpu"], planned.preset, await api.gpus())
    if not planned.body:
        say(f"endpoint {arguments.update} is already like that")
    if arguments.dry_run:
        return _dry_run(planned)
    if not planned.body:
        return 0
    _tell_notes(planned)
    mask = mask_of(endpoint.get("env") or {})
    before = {name: endpoint.get(name) for name in planned.body}
    say(f"before:\n{shown(before, mask)}\nafter:\n{planned.shown()}")
    if not _agrees(f"Change endpoint {arguments.update}?", arguments.yes):
        return _failed(1, "nothing was changed")
    with _errors_masked(planned.mask):
        await api.update(arguments.update, planned.body)
    rollout = (await api.releases(arguments.update)).get("rollout")
    say(f"endpoint {arguments.update} is changed; {_rollout(rollout)}")
    return 0


async def delete(api: RestV2, endpoint_id: str, *, is_agreed: bool) -> int:
    """Name the endpoint and ask; delete it."""
    endpoint = await api.endpoint(endpoint_id)
    counts = (await api.workers(endpoint_id))["summary"]
    say(f"{endpoint['name']} ({endpoint_id}), {counts['total']} workers; its queued and running jobs will be cancelled")
    if not _agrees("Delete it for good?", is_agreed):
        return _failed(1, "nothing was deleted")
    await api.delete(endpoint_id)
    say(f"endpoint {endpoint_id} is deleted")
    return 0


async def status(api: RestV2, endpoint_id: str) -> int:
    """Print an endpoint's settings, its workers and how far the newest release has got."""
    endpoint, found = await api.endpoint(endpoint_id), await api.workers(endpoint_id)
    releases = await api.releases(endpoint_id)
    settings = {name: value for name, value in endpoint.items() if name not in ("requestUrls", "id") and value}
    print(f"endpoint {endpoint_id}\n{shown(settings, mask_of(endpoint.get('env') or {}))}")
    counts = found["summary"]
    print(f"workers: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    for worker in found["workers"]:
        facts = (worker.get("gpuTypeId"), worker.get("dataCenterId"), f"up {worker.get('uptimeSeconds') or 0} s")
        stale = ", of an older release" if worker["isStale"] else ""
        print(f"  {worker['id']}  {worker['status']}  {', '.join(str(fact) for fact in facts if fact)}{stale}")
    print(_rollout(releases.get("rollout")))
    return 0


async def logs(api: RestV2, endpoint_id: str) -> int:
    """Print the logs of an endpoint's workers until interrupted."""
    mask = mask_of((await api.endpoint(endpoint_id)).get("env") or {})
    await follow_logs(api, endpoint_id, lambda line: print(mask(line), flush=True))
    return 0


def _rollout(rollout: Mapping[str, Any] | None) -> str:
    if not rollout or not rollout["workersTotal"]:
        return "workers start with the newest release"
    progress = f"{rollout['workersOnLatest']} of {rollout['workersTotal']} workers have the newest release"
    return f"{progress}; the others get it when they are replaced" if rollout["inProgress"] else progress


def client_lines(endpoint: Mapping[str, Any], model: str) -> str:
    """What a client needs, to be pasted: curl and the OpenAI client."""
    urls = endpoint["requestUrls"]
    header = '-H "Authorization: Bearer $RUNPOD_API_KEY" -H "Content-Type: application/json"'
    chat = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    if "runSync" in urls:
        base = f"{urls['runSync'].removesuffix('/runsync')}/openai/v1"
        curl = f'curl {urls["runSync"]} {header} \\\n    -d \'{{"input": {{"prompt": "Hello World"}}}}\''
    else:
        base = f"{urls['base']}/v1"
        curl = f"curl --retry 10 --retry-delay 5 {base}/chat/completions {header} \\\n    -d '{chat}'"
    return "\n".join(
        [
            f"export ENDPOINT_ID={endpoint['id']}",
            curl,
            "",
            "import os",
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{base}", api_key=os.environ["RUNPOD_API_KEY"])',
            'messages = [{"role": "user", "content": "Hello"}]',
            f'print(client.chat.completions.create(model="{model}", messages=messages).choices[0].message.content)',
        ]
    )


def _cost(planned: Deployment, price: float | None) -> str:
    gpus = planned.gpus_at_most
    if price is None:
        return f"at most, an hour costs {gpus} x the hourly price of one {planned.preset.card}; the catalogue has none"
    return f"at most, an hour costs {gpus} GPUs x {price:.2f} USD = {gpus * price:.2f} USD, by RunPod's list prices"


def _tell_notes(planned: Deployment) -> None:
    for note in planned.notes:
        say(planned.mask(f"note: {note}"))


def _agrees(question: str, is_agreed: bool) -> bool:
    if is_agreed:
        return True
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; --yes goes ahead without a question")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say(line: str) -> None:
    """Tell the user something that is not the result."""
    print(line, file=sys.stderr, flush=True)


def _failed(code: int, *problems: str) -> int:
    mask = Mask.from_environ(os.environ)
    for problem in problems:
        say(mask(problem))
    return code


if __name__ == "__main__":
    sys.exit(main())
