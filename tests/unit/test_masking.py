"""Secrets stay out of texts; ordinary words stay in."""

from __future__ import annotations

import logging

from common.logs import MaskingFormatter
from common.masking import Mask

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


def test_log_lines_are_masked_with_their_exceptions() -> None:
    formatter = MaskingFormatter("%(message)s", Mask(["hf_abcdef"]))
    try:
        raise ValueError("no access with hf_abcdef")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "token %s", ("hf_abcdef",), None)
        record.exc_info = (type(error), error, error.__traceback__)
    line = formatter.format(record)
    assert "hf_abcdef" not in line
    assert line.startswith("token ***")
