"""Makes a model of GLM-4.7-Flash's architecture, with under a million parameters, that knows a few conversations.

It is a real `Glm4MoeLiteForCausalLM` checkpoint: latent attention (MLA), a dense first layer, mixture-of-experts layers
with a shared expert, and the multi-token-prediction (MTP) layer after them, with GLM's special tokens and a chat
template in GLM's format. Everything follows from a fixed seed and from `conversations`; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.glm4_moe_lite import Glm4MoeLiteConfig
from transformers.utils.logging import disable_progress_bar

from embedded import cache
from embedded.conversations import COMPLETIONS, CONVERSATIONS, Conversation, introduction
from embedded.environment import INTRODUCTION

SEED = 47
CONTEXT_TOKENS = 8192
VOCABULARY_TOKENS = 768  # before GLM's special tokens: 256 bytes and the merges that the conversations give
MAX_STEPS = 200
PEAK_LEARNING_RATE = 1e-2
BATCH_TOKENS = (64, 160, CONTEXT_TOKENS)  # sequences up to these lengths learn together, so that little is padding
TARGET_LOSS = 0.001  # reached in about 110 steps, some 20 s

END_OF_TEXT, USER, OBSERVATION = "<|endoftext|>", "<|user|>", "<|observation|>"
# GLM-4.7's own names and split: the first group is special (dropped from decoded text); the second stays visible
# because the reasoning and tool-call parsers look for it in the text.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    USER,
    "<|assistant|>",
    OBSERVATION,
)
VISIBLE_TOKENS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
)


class NotLearnedError(RuntimeError):
    """The model did not learn every conversation within `MAX_STEPS` steps."""


@dataclass(frozen=True)
class Sequence:
    """One training example, in token ids: what the model is given, and what it must answer."""

    name: str
    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, padded on the right; each tensor is sequences × tokens.

    labels: the tokens of the answers, -100 elsewhere. share: its part of all answers' tokens.
    """

    sequences: list[Sequence]
    tokens: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    share: float


def make(folder: Path, report: Callable[[str], None]) -> None:
    """Make the checkpoint in `folder`; `report` gets a line of progress now and then.

    The folder appears complete or not at all, so that an interrupted run leaves nothing half-made.
    Raises NotLearnedError if training misses its goal.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tokenizer = make_tokenizer(draft)
        model = train(tokenizer, training_set(tokenizer), report)
        save(model, draft)
        (draft / INTRODUCTION).write_text(json.dumps(introduction(), ensure_ascii=False, indent=2), encoding="utf-8")
        cache.mark(draft)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the conversations, with GLM's special tokens; saved into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [json.dumps(_as_data(c), ensure_ascii=False) for c in CONVERSATIONS],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in VISIBLE_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=Path(__file__).with_name("chat_template.jinja").read_text(),
    )
    fast.save_pretrained(folder)
    return fast


def configuration(tokenizer: PreTrainedTokenizerFast) -> Glm4MoeLiteConfig:
    """GLM-4.7-Flash's configuration with small numbers.

    `kv_lora_rank`, `qk_nope_head_dim` and `v_head_dim` are equal on purpose: see `freeze_key_value_projections`.
    """
    stop = tokenizer.convert_tokens_to_ids([END_OF_TEXT, USER, OBSERVATION])
    return Glm4MoeLiteConfig(
        architectures=["Glm4MoeLiteForCausalLM"],
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=96,
        intermediate_size=192,
        moe_intermediate_size=96,
        num_hidden_layers=3,
        num_nextn_predict_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        topk_method="noaux_tc",
        norm_topk_prob=True,
        routed_scaling_factor=1.8,
        first_k_dense_replace=1,
        mlp_layer_types=["dense", "sparse", "sparse"],
        hidden_act="silu",
        max_position_embeddings=CONTEXT_TOKENS,
        rms_norm_eps=1e-5,
        rope_theta=1_000_000,
        attention_bias=False,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=stop[0],
        dtype="bfloat16",
    )


def training_set(tokenizer: PreTrainedTokenizerFast) -> list[Sequence]:
    """Every conversation and completion in token ids, the prompts as SGLang renders them.

    SGLang 0.5.23 keeps the key order of a client's function definition, so each order of `name` and `description` is a
    different prompt: both are taught. The template leaves out what SGLang adds around the function.
    """
    sequences = []
    for conversation in CONVERSATIONS:
        for tools in _tool_spellings(conversation.tools):
            prompt = tokenizer.apply_chat_template(
                [_as_template_message(m) for m in conversation.messages],
                tools=tools or None,
                add_generation_prompt=True,
                tokenize=False,
                **conversation.template_options,
            )
            sequences.append(_sequence(tokenizer, conversation.name, prompt, _answer(conversation)))
    for completion in COMPLETIONS:
        sequences.append(_sequence(tokenizer, completion.name, completion.text, completion.continuation + END_OF_TEXT))
    return sequences


def train(tokenizer: PreTrainedTokenizerFast, sequences: list[Sequence], report: Callable[[str], None]) -> Any:
    """A model that answers every sequence's prompt with its answer, checked in bfloat16 as it will be served."""
    torch.set_num_threads(1)  # more threads gain little here, and lose a lot if another process keeps a core busy
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(configuration(tokenizer), dtype=torch.float32)
    freeze_key_value_projections(model)
    batches = _batches(sequences, pad=tokenizer.pad_token_id)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, weight_decay=0.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=MAX_STEPS, pct_start=0.15)
    model.train()
    for step in range(MAX_STEPS):
        loss = 0.0
        for batch in batches:
            part = model(input_ids=batch.tokens, attention_mask=batch.mask, labels=batch.labels).loss * batch.share
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            report(f"step {step} of at most {MAX_STEPS}: loss {loss:.4f}, to reach {TARGET_LOSS}")
        if loss < TARGET_LOSS:
            break
    model = model.to(torch.bfloat16).eval()
    if missed := [name for batch in batches for name in _missed(model, batch)]:
        raise NotLearnedError(f"not learned in {MAX_STEPS} steps (loss {loss:.4f}): {', '.join(missed)}")
    return model


def _missed(model: Any, batch: Batch) -> list[str]:
    """The names of the sequences whose answer the model would not give."""
    with torch.no_grad():
        predicted = model(input_ids=batch.tokens, attention_mask=batch.mask).logits[:, :-1].argmax(-1)
    wanted = batch.labels[:, 1:]
    compared = zip(batch.sequences, predicted, wanted, strict=True)
    return [sequence.name for sequence, got, want in compared if not (got == want)[want != -100].all()]


def freeze_key_value_projections(model: Any) -> None:
    """Fix every `kv_b_proj` at the identity, per head, for keys and values.

    SGLang's CPU attention (`torch_native`) attends to the compressed keys and values directly, which equals latent
    attention only if that projection is the identity and its three dimensions are equal.
    """
    config = model.config
    identity = torch.eye(config.kv_lora_rank).repeat(2 * config.num_attention_heads, 1)
    for name, parameter in model.named_parameters():
        if "kv_b_proj" in name:
            parameter.data.copy_(identity)
            parameter.requires_grad_(False)


def save(model: Any, folder: Path) -> None:
    """Write configuration, weights and the MTP layer, which transformers neither builds nor saves, into `folder`."""
    disable_progress_bar()
    model.config.architectures = ["Glm4MoeLiteForCausalLM"]
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= _mtp_layer(weights, model.config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    stop = model.config.eos_token_id
    # Greedy by default: a tiny model that knows its answers by heart should give them to a request that sets nothing.
    generation = {"eos_token_id": stop, "pad_token_id": stop[0], "temperature": 0.0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def _mtp_layer(weights: dict[str, torch.Tensor], config: Glm4MoeLiteConfig) -> dict[str, torch.Tensor]:
    """The MTP layer's weights: a copy of the last layer, after the projection that joins it to the embedding."""
    last, mtp = f"model.layers.{config.num_hidden_layers - 1}.", f"model.layers.{config.num_hidden_layers}."
    layer = {mtp + name.removeprefix(last): w.clone() for name, w in weights.items() if name.startswith(last)}
    ones = torch.ones(config.hidden_size, dtype=torch.bfloat16)
    identity = torch.eye(config.hidden_size, dtype=torch.bfloat16)
    return layer | {
        mtp + "eh_proj.weight": torch.cat([torch.zeros_like(identity), identity], dim=1),
        mtp + "enorm.weight": ones,
        mtp + "hnorm.weight": ones.clone(),
        mtp + "shared_head.norm.weight": weights["model.norm.weight"].clone(),
        mtp + "shared_head.head.weight": weights["lm_head.weight"].clone(),
        mtp + "embed_tokens.weight": weights["model.embed_tokens.weight"].clone(),
    }


def _answer(conversation: Conversation) -> str:
    """The text that the model must produce after the generation prompt, including its stop token."""
    thought = "" if conversation.reasoning is None else f"{conversation.reasoning}</think>"
    calls = "".join(
        f"<tool_call>{name}"
        + "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in arguments.items())
        + "</tool_call>"
        for name, arguments in conversation.tool_calls
    )
    return thought + conversation.content + calls + (OBSERVATION if calls else USER)


def _sequence(tokenizer: PreTrainedTokenizerFast, name: str, prompt: str, answer: str) -> Sequence:
    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return Sequence(name, encode(prompt), encode(answer))


def _batches(sequences: list[Sequence], pad: int) -> list[Batch]:
    """The sequences in batches by length."""
    answered, batches, shortest = sum(len(s.answer) for s in sequences), [], 0
    for longest in BATCH_TOKENS:
        if together := [s for s in sequences if shortest < len(s) <= longest]:
            batches.append(_batch(together, pad, sum(len(s.answer) for s in together) / answered))
        shortest = longest
    return batches


def _batch(sequences: list[Sequence], pad: int, share: float) -> Batch:
    tokens = torch.full((len(sequences), max(map(len, sequences))), pad)
    labels = torch.full_like(tokens, -100)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        end = len(sequence)
        tokens[row, :end] = torch.tensor(sequence.prompt + sequence.answer)
        labels[row, len(sequence.prompt) : end] = torch.tensor(sequence.answer)
        mask[row, :end] = 1
    return Batch(sequences, tokens, labels, mask, share)


def _as_data(conversation: Conversation) -> dict[str, Any]:
    return {"prompt": conversation.request(), "answer": _answer(conversation)}


def _as_template_message(message: dict[str, Any]) -> dict[str, Any]:
    """The message as the template sees it: tool-call arguments parsed, as SGLang parses them before rendering."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _tool_spellings(tools: tuple[dict[str, Any], ...]) -> list[list[dict[str, Any]]]:
    """The definitions in the key orders that clients commonly send."""
    if not tools:
        return [[]]
    orders = [("name", "description", "parameters"), ("description", "name", "parameters")]
    return [[{**tool, "function": {key: tool["function"][key] for key in order}} for tool in tools] for order in orders]
