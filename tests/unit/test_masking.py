"""Secrets stay out of texts, in every form and whole; ordinary words stay in."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import masking
from common.errors import JobError
from common.masking import MASK, LineMask, Mask
from engine import _overview, plan
from gateway.errors import MAX_MESSAGE_CHARACTERS, from_payload, make_presentable

ENVIRONMENT = {
    "API_KEY": "sk-engine",
    "ADMIN_API_KEY": "sk-engine-admin",
    "HF_TOKEN": "hf_abcdef",
    "RUNPOD_AI_API_KEY": "rp-key.*",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+key",
    "SSL_KEYFILE_PASSWORD": "correct horse",
    "MAX_TOTAL_TOKENS": "4096",
    "TOKENIZER_MODE": "auto",
    "MODEL_NAME": "zai-org/GLM-4.7-Flash",
    "GITHUB_TOKEN": "abc",
}
QUOTABLE = 'hf_"quoted"+/and\\äß9'
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nx1\n-----END PRIVATE KEY-----\n"


def test_every_secret_of_the_environment_is_masked() -> None:
    mask = Mask.from_environ(ENVIRONMENT)
    for name in (
        "API_KEY",
        "ADMIN_API_KEY",
        "HF_TOKEN",
        "RUNPOD_AI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "SSL_KEYFILE_PASSWORD",
    ):
        assert mask(f"<{ENVIRONMENT[name]}>") == "<***>"


def test_ordinary_values_and_very_short_ones_stay() -> None:
    mask = Mask.from_environ(ENVIRONMENT)
    text = "4096 tokens, auto, zai-org/GLM-4.7-Flash, the abc"
    assert mask(text) == text


def test_keys_in_sglang_s_own_list_of_arguments_are_masked_however_short() -> None:
    printed = "server_args={'api_key': 'k', 'admin_api_key': \"l\", 'host': 'h', 'api_key_x': 'm'}"
    assert Mask()(printed) == "server_args={'api_key': ***, 'admin_api_key': ***, 'host': 'h', 'api_key_x': 'm'}"


@pytest.mark.parametrize(
    "form",
    [
        QUOTABLE,
        quote(QUOTABLE),
        quote(QUOTABLE, safe=""),
        quote(QUOTABLE, safe="").lower(),
        json.dumps(QUOTABLE),
        json.dumps(QUOTABLE, ensure_ascii=False),
        repr(QUOTABLE),
    ],
)
def test_secret_is_masked_however_it_is_quoted(form: str) -> None:
    assert Mask([QUOTABLE, QUOTABLE.lower()])(f"<{form}>").strip("<>'\"") == MASK


@given(st.binary(max_size=8), st.binary(max_size=8), st.booleans())
def test_secret_is_masked_in_base64_whatever_is_around_it(before: bytes, after: bytes, url_safe: bool) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    secret = b"sk-0123456789?>~"
    text = encode(before + secret + after).decode()
    assert MASK in (masked := Mask([secret.decode()])(text))
    assert len(masked) <= len(text) - 4 * (len(secret) - 2) // 3 + len(MASK)


def test_keys_in_urls_are_secrets_of_their_own() -> None:
    webhooks = {
        "RUNPOD_WEBHOOK_PING": "http://127.0.0.1:8000/v2/e/ping/$RUNPOD_POD_ID?gpu=none&key=w%2Fkey1",
        "HTTPS_PROXY": "http://proxy-user:proxy-word@127.0.0.1:3128",
    }
    mask = Mask.from_environ(webhooks)
    for secret in ("w%2Fkey1", "w/key1", "proxy-word"):
        assert mask(f"<{secret}>") == "<***>"
    assert Mask()("GET /ping/x?key=unknown&job_id=1, /x?n=1&X-Amz-Signature=ab12") == (
        "GET /ping/x?key=***&job_id=1, /x?n=1&X-Amz-Signature=***"
    )


# Some with a Kelvin sign or a long s, which patterns take for k and s.
PARTS = [*"_-=: '\"?&@x", "api-KEY", "api_\u212aey='", "Password", "pa\u017f\u017fword='", "token=", "://u:"]


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
def test_text_that_is_not_searched_has_nothing_to_mask(text: str) -> None:
    thoroughly = masking._NAMED.sub(rf"\1{MASK}", text)
    thoroughly = masking._IN_QUERY.sub(rf"\1{MASK}", thoroughly)
    assert Mask()(text) == masking._IN_ADDRESS.sub(rf"\1{MASK}", thoroughly)


def test_secret_of_several_lines_is_masked_line_by_line() -> None:
    lines = LineMask(Mask.from_environ({"TLS_PRIVATE_KEY": PEM}))
    assert lines.feed(PEM.encode()) == "***\n***\nx1\n***\n"
    assert "MIIE" not in Mask([PEM])(repr(PEM))


def test_keys_given_by_extra_arguments_are_secrets() -> None:
    for words in ("--api-key=sk-extra-1", "--api-key sk-extra-1", "--admin-api=sk-extra-1"):
        assert "sk-extra-1" in plan({"SGLANG_EXTRA_ARGS": words}).secrets, words


@pytest.mark.parametrize("key", ["k", "k2", "sk-long-enough"])
def test_overview_of_the_settings_shows_no_key_however_short(key: str) -> None:
    environ = dict.fromkeys(("API_KEY", "ADMIN_API_KEY", "LOCAL_API_KEY"), key)
    environ["SGLANG_EXTRA_ARGS"] = f"--enable-metrics --ssl-keyfile-password {key}" if len(key) > 9 else ""
    overview = _overview(plan(environ | {"SGLANG_EXTRA_ARGS": ""}), environ, {})
    for line in overview.splitlines():
        assert key not in line.split(), line
    assert overview.count(MASK) >= 5


def test_text_is_cut_after_it_is_masked() -> None:
    mask = Mask(["sk-0123456789"])
    for place in range(90, 110):
        head = mask.head("x" * place + "sk-0123456789" + "y" * 50, 100)
        assert "sk-" not in head, place
        assert len(head) <= 100
    assert mask.head("short", 100) == "short"


def test_all_that_an_error_says_is_masked() -> None:
    error = JobError("with hf_abcdef", kind="hf_abcdef_error", param="messages.hf_abcdef", code=400)
    Mask(["hf_abcdef"]).error(error, most=20)
    assert error.payload() == {
        "error": {"message": "with ***", "type": "***_error", "param": "messages.***", "code": 400}
    }


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1000, 16 * 1024, 32 * 1024])
def test_secret_in_a_long_line_is_masked_wherever_chunks_end(size: int) -> None:
    for place in (size - 5, 16 * 1024 - 5, 32 * 1024 - 5):
        line = b"x" * place + b"hf_abcdef" + b"y" * 100 + b"\n"
        lines = LineMask(Mask(["hf_abcdef"]))
        assert "".join(map(lines.feed, chunks(line, size))) == "x" * place + "***" + "y" * 100 + "\n"


def test_line_without_end_is_cut_and_never_in_a_secret() -> None:
    most = LineMask.MAX_LINE_BYTES
    for place in range(most - 12, most + 3):
        lines = LineMask(Mask(["hf_abcdef"]))
        endless = b"x" * place + b"hf_abcdef" + b"y" * 10 * most
        shown = "".join(map(lines.feed, chunks(endless, most // 3))) + lines.feed(b"\nnext\n")
        assert len(lines._line) <= most
        assert shown.endswith(" bytes more)\nnext\n")
        assert "hf_" not in shown
        assert len(shown) < most + 100


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"hf_abcdef", b"\xff"]), max_size=30), st.integers(1, 7))
def test_lines_come_out_whole_and_in_order(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    lines = LineMask(Mask(["hf_abcdef"]))
    shown = "".join(map(lines.feed, chunks(data, size))) + lines.rest()
    expected = data.decode("utf-8", "replace").replace("hf_abcdef", "***")
    assert shown in (expected, f"{expected}\n")


@pytest.mark.parametrize("place", [MAX_MESSAGE_CHARACTERS - 5, 4 * MAX_MESSAGE_CHARACTERS - 5])
def test_engine_s_message_is_masked_before_it_is_cut(place: int) -> None:
    frames = '\n  File "/a/b.py", line 3\n' + "    x" * 1500 + "\n"  # which are taken out of the message
    message = ("x" * 100 + frames).ljust(place, " ") if place > len(frames) else "x" * place
    error = from_payload({"error": {"message": f"{message}hf_abcdef, and more", "type": "no hf_abcdef"}}, 400)
    make_presentable(error, Mask(["hf_abcdef"]))
    assert "hf_" not in error.as_json()
    assert error.type == "invalid_request_error"
    assert len(error.message) <= MAX_MESSAGE_CHARACTERS + len("… (cut)")
