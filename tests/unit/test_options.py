"""The table of options: every kind of value, every refusal, and every name; presets, extra arguments, warnings."""

from __future__ import annotations

from dataclasses import fields

import pytest

from common.settings import ConfigurationError
from common.variables import VARIABLES
from engine import DEFAULTS, OPTIONS, RENAMED, RESERVED, RUNPOD_NAMES, plan, warnings_for
from sglang_engine import options
from sglang_engine.options import Kind, Option, Type
from sglang_engine.presets import PRESETS
from sglang_engine.spelling import distance, nearest_names


def words_of(environ: dict[str, str]) -> list[str]:
    return list(plan(environ).arguments)


def option(kind: Kind, value_type: Type = Type.TEXT, **more: object) -> Option:
    given = {"name": "THE_X", "flag": "--the-x", "kind": kind, "type": value_type, **more}
    assert set(given) <= {field.name for field in fields(Option)}
    return Option(**given)  # type: ignore[arg-type]


FLAG, PAIR = option(Kind.FLAG, Type.BOOLEAN), option(Kind.PAIR, Type.BOOLEAN)
CHOICE = option(Kind.VALUE, choices=("fa3", "flashinfer", "triton"))
LEVEL = option(Kind.VALUE, Type.INTEGER, choices=("0", "1", "2"))
WORDS = option(Kind.LIST)
NUMBERS = option(Kind.LIST, Type.INTEGER)
MAYBE_EMPTY = option(Kind.LIST, may_be_empty=True)
CHECKSUM = option(Kind.OPTIONAL)

ACCEPTED = [
    *((FLAG, value, ["--the-x"]) for value in ("true", "1", "yes", "on", "TRUE", "On")),
    *((FLAG, value, []) for value in ("false", "0", "no", "off", "OFF")),
    (PAIR, "yes", ["--the-x"]),
    (PAIR, "no", ["--no-the-x"]),
    (option(Kind.VALUE), "some text", ["--the-x", "some text"]),
    (option(Kind.VALUE), "-1", ["--the-x", "-1"]),
    (option(Kind.VALUE), "--looks-like-a-flag", ["--the-x=--looks-like-a-flag"]),
    (option(Kind.VALUE, Type.INTEGER), "-5", ["--the-x", "-5"]),
    (option(Kind.VALUE, Type.NUMBER), "-1e-5", ["--the-x=-1e-5"]),
    (option(Kind.VALUE, Type.NUMBER), ".5", ["--the-x", ".5"]),
    *((option(Kind.VALUE, Type.SIZE), size, ["--the-x", size]) for size in ("128", "128k", "1.5M", "64Ki", "-1")),
    (CHOICE, "triton", ["--the-x", "triton"]),
    (LEVEL, "2", ["--the-x", "2"]),
    (LEVEL, "02", ["--the-x", "02"]),
    (WORDS, "a 'b c' d", ["--the-x", "a", "b c", "d"]),
    (WORDS, '["a", "b c"]', ["--the-x", "a", "b c"]),
    (WORDS, '[{"lora_name": "a", "lora_path": "b"}]', ["--the-x", '{"lora_name": "a", "lora_path": "b"}']),
    (NUMBERS, "1 -2 3", ["--the-x", "1", "-2", "3"]),
    (NUMBERS, "[1, 2]", ["--the-x", "1", "2"]),
    (MAYBE_EMPTY, "[]", ["--the-x"]),
    (option(Kind.JSON, Type.ANY), '{"a": [1]}', ["--the-x", '{"a": [1]}']),
    (option(Kind.JSON, Type.OBJECT), "{}", ["--the-x", "{}"]),
    (option(Kind.JSON, Type.ARRAY), "[1]", ["--the-x", "[1]"]),
    (CHECKSUM, "true", ["--the-x"]),
    (CHECKSUM, "false", []),
    (CHECKSUM, "sums.json", ["--the-x", "sums.json"]),
]

REFUSED = [
    (FLAG, "maybe", "true or false"),
    (PAIR, "2", "true or false"),
    (option(Kind.VALUE, Type.INTEGER), "1.5", "a whole number"),
    (option(Kind.VALUE, Type.INTEGER), "many", "a whole number"),
    (option(Kind.VALUE, Type.NUMBER), "half", "a number"),
    (option(Kind.VALUE, Type.SIZE), "1.5Ki", "a whole number, or one with a unit such as 128k or 64Ki"),
    (option(Kind.VALUE, Type.SIZE), "128K", "a whole number, or one with a unit such as 128k or 64Ki"),
    (CHOICE, "flashinfr", "one of fa3, flashinfer, triton (did you mean 'flashinfer'?)"),
    (CHOICE, "zzz", "one of fa3, flashinfer, triton"),
    (LEVEL, "3", "one of 0, 1, 2"),
    (WORDS, "'a", "a list, split as a shell would, or a JSON array: words"),
    (WORDS, "[", "a list, split as a shell would, or a JSON array: words"),
    (WORDS, "[]", "a list, split as a shell would, or a JSON array: words, at least one"),
    (WORDS, "a --b", "a list, split as a shell would, or a JSON array: words, none of them starting with a dash"),
    (NUMBERS, "1 x", "a list, split as a shell would, or a JSON array: each a whole number"),
    (option(Kind.JSON, Type.ANY), "{", "JSON"),
    (option(Kind.JSON, Type.ANY), "NaN", "JSON"),
    (option(Kind.JSON, Type.OBJECT), "[]", "a JSON object"),
    (option(Kind.JSON, Type.ARRAY), "{}", "a JSON array"),
]


@pytest.mark.parametrize(("of", "value", "words"), ACCEPTED)
def test_accepted_value(of: Option, value: str, words: list[str]) -> None:
    assert of.arguments(value) == words


@pytest.mark.parametrize(("of", "value", "expected"), REFUSED)
def test_refused_value(of: Option, value: str, expected: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        of.arguments(value)
    assert str(refusal.value) == expected


def test_table_has_every_kind() -> None:
    table = options.load()
    assert len(table) == 531
    counts = {kind: sum(entry.kind is kind for entry in table) for kind in Kind}
    assert counts == {
        Kind.VALUE: 322,
        Kind.FLAG: 161,
        Kind.PAIR: 12,
        Kind.LIST: 23,
        Kind.JSON: 12,
        Kind.OPTIONAL: 1,
    }


def test_every_spelling_of_a_flag_is_a_variable_and_gives_that_spelling() -> None:
    for name, flag in (("TP_SIZE", "--tp-size"), ("TENSOR_PARALLEL_SIZE", "--tensor-parallel-size")):
        words = words_of({name: "2"})
        assert words[words.index(flag) + 1] == "2"
    for name, of in OPTIONS.items():
        assert name in RUNPOD_NAMES or name == options.variable_name(options.flag_of(name))
        assert of.name in OPTIONS


def test_names_of_other_workers_mean_what_they_say() -> None:
    assert set(RUNPOD_NAMES).isdisjoint(of.name for of in options.load())
    words = words_of({"MODEL_NAME": "a/b", "MAX_MODEL_LEN": "4096", "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "mine"})
    for flag, value in (("--model-path", "a/b"), ("--context-length", "4096"), ("--served-model-name", "mine")):
        assert words[words.index(flag) + 1] == value
    assert words.count("--served-model-name") == 1


def test_options_and_settings_share_no_name() -> None:
    assert set(OPTIONS).isdisjoint(variable.name for variable in VARIABLES)
    assert set(RENAMED).isdisjoint(OPTIONS)
    assert set(RESERVED) <= {of.name for of in options.load()}


def test_every_mistake_is_told_at_once_with_what_is_accepted() -> None:
    with pytest.raises(ConfigurationError) as refused:
        plan(
            {
                "DTYPE": "bflot16",
                "TP_SIZE": "2",
                "TENSOR_PARALLEL_SIZE": "4",
                "API_KEY": "sk-secret",
                "PRESET": "h101",
                "SGLANG_EXTRA_ARGS": "--x 'y",
                "NNODES": "2",
                "LOG_REQUESTS_LEVEL": "9",
            }
        )
    assert refused.value.problems == [
        f"PRESET='h101': expected one of {', '.join(PRESETS)}, auto, off",
        "NNODES is reserved: one worker is one machine; scale out with more workers",
        "TP_SIZE and TENSOR_PARALLEL_SIZE both set --tp-size, to different values",
        "DTYPE='bflot16': expected one of auto, bfloat16, float, float16, float32, half (did you mean 'bfloat16'?)",
        "LOG_REQUESTS_LEVEL='9': expected one of 0, 1, 2, 3",
        "SGLANG_EXTRA_ARGS cannot be split as a shell does: no closing quotation",
    ]


def test_extra_arguments_come_last_as_they_are_and_win() -> None:
    config = plan(
        {"PORT": "1", "SGLANG_EXTRA_ARGS": "--port 31000 --host=0.0.0.0 --api-k 'a b' --served-model mine --new-flag"}
    )
    words = ("--port", "31000", "--host=0.0.0.0", "--api-k", "a b", "--served-model", "mine", "--new-flag")
    assert config.arguments[-len(words) :] == words
    assert (config.host, config.port, config.api_key, config.served_model_name) == ("0.0.0.0", 31000, "a b", "mine")
    assert "a b" not in config.shown_command()


@pytest.mark.parametrize(
    "extra", ["--ssl-certfile x", "--node-rank=1", "--config f.yaml", "--disaggregation-mo prefill"]
)
def test_reserved_options_are_refused_in_extra_arguments_too(extra: str) -> None:
    with pytest.raises(ConfigurationError, match=r"SGLANG_EXTRA_ARGS: --.* is reserved: "):
        plan({"SGLANG_EXTRA_ARGS": extra})


@pytest.mark.parametrize(
    "environ", [{"SGLANG_EXTRA_ARGS": "--port http"}, {"SGLANG_EXTRA_ARGS": "--port"}, {"PORT": "0"}, {"PORT": "65536"}]
)
def test_port_is_checked_wherever_it_comes_from(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="PORT"):
        plan(environ)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_sets_known_options_with_a_source_for_each(name: str) -> None:
    preset = PRESETS[name]
    assert set(preset.variables) <= set(OPTIONS)
    assert set(preset.variables) <= set(preset.sources)
    assert preset.sources
    sources = {setting.name: setting.source for setting in plan({"PRESET": name}).settings}
    for variable in preset.variables:
        assert sources[variable] == f"preset {name}"


def test_layers_win_in_their_order() -> None:
    image = DEFAULTS | {"MEM_FRACTION_STATIC": "0.85", "CONTEXT_LENGTH": "1000", "MODEL_NAME": "image/model"}
    # In a container the image's variables are in the environment as well.
    environ = image | {"PRESET": "rtx4090-awq", "CONTEXT_LENGTH": "2000", "MODEL_PATH": ""}
    del environ["MODEL_PATH"]
    settings = {s.name: (s.value, s.source) for s in plan(environ, image).settings}
    assert settings["CONTEXT_LENGTH"] == ("2000", "environment")
    assert settings["MODEL_NAME"] == ("QuantTrio/GLM-4.7-Flash-AWQ", "preset rtx4090-awq")
    assert settings["MEM_FRACTION_STATIC"] == ("0.85", "image")
    assert settings["SPECULATIVE_ALGORITHM"] == ("", "preset rtx4090-awq")
    assert "SPECULATIVE_NUM_STEPS" not in settings
    on = plan(environ | {"SPECULATIVE_ALGORITHM": "NGRAM", "MODEL_PATH": "a/b"}, image)
    assert "NGRAM" in on.arguments
    assert on.arguments[on.arguments.index("--model-path") + 1] == "a/b"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CONTXT_LENGTH", "did you mean CONTEXT_LENGTH?"),
        ("TENSOR_PARALEL_SIZ", "did you mean TENSOR_PARALLEL_SIZE?"),
        ("MAX_CONCURENCY", "did you mean MAX_CONCURRENCY?"),
        ("MEM_FRACTION_STATCI", "did you mean MEM_FRACTION_STATIC?"),
        ("ENABLE_FLASHINFER_MLA", "use ATTENTION_BACKEND=flashinfer"),
        ("GPU_MEMORY_UTILIZATION", "use MEM_FRACTION_STATIC"),
    ],
)
def test_variable_that_was_meant_otherwise_gets_a_warning(name: str, said: str) -> None:
    [warning] = warnings_for({name: "1", "PATH": "/bin", "CONTEXT_LENGTH": "5", "PRESET": "h100"})
    assert warning.startswith(f"{name} is ignored: it is not an option of SGLang 0.5.23; ")
    assert said in warning


def test_other_programs_variables_get_no_warning() -> None:
    names = (
        "HOME HOSTNAME PATH PWD LANG TERM USER SHELL NVIDIA_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES HF_HOME RUNPOD_POD_ID"
        " WAVERLESS_POD_ID OMP_NUM_THREADS NCCL_DEBUG SGLANG_USE_MODELSCOPE LD_LIBRARY_PATH DEBIAN_FRONTEND PUBLIC_KEY"
        " PYTHONPATH VIRTUAL_ENV RUNPOD_API_KEY ENDPOINT_ID _"
    )
    environ = dict.fromkeys(names.split(" "), "x")
    assert list(warnings_for(environ)) == []


@pytest.mark.parametrize(
    ("one", "other", "far"),
    [("abc", "abc", 0), ("abc", "abd", 1), ("abc", "acb", 1), ("abc", "ab", 1), ("abc", "xabcy", 2), ("abc", "xyz", 3)],
)
def test_distance(one: str, other: str, far: int) -> None:
    assert distance(one, other, 2) == far
    assert distance(other, one, 2) == far


def test_short_names_must_be_nearer() -> None:
    assert nearest_names("DEVICES", ["DEVICE"]) == ["DEVICE"]
    assert nearest_names("DEVIC", ["DEVICE"]) == ["DEVICE"]
    assert nearest_names("DEVYCES", ["DEVICE"]) == []
