"""Write a tiny, randomly initialised Qwen3 model with its tokenizer and a LoRA adapter, offline.

Run with the engine environment's Python: ``python make_tiny_model.py OUTDIR`` writes ``OUTDIR/tiny-qwen3``
(0.4 M parameters, vocabulary of 2,048, ChatML template) and ``OUTDIR/tiny-lora`` (rank 8 on the attention
projections). The weights are random but seeded: greedy output is the same on every machine of one kind, so
"equal to what the engine says itself" is a usable test.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 2048
HIDDEN = 64
LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
LORA_RANK = 8

CHAT_TEMPLATE = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)


def corpus(lines: int = 8000, words_per_line: int = 12) -> list[str]:
    """Return made-up text: the tokenizer only needs something to learn merges from."""
    rnd = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = "the quick brown fox replica rank prefill decode cache block token engine request stream".split()
    words += ["".join(rnd.choice(syllables) for _ in range(rnd.randint(2, 3))) for _ in range(3000)]
    return [" ".join(rnd.choice(words) for _ in range(words_per_line)) + ".\n" for _ in range(lines)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of exactly VOCABULARY entries."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )
    fast.chat_template = CHAT_TEMPLATE
    if len(fast) != VOCABULARY:
        raise SystemExit(f"the tokenizer learnt {len(fast)} entries, not {VOCABULARY}")
    return fast


def write_model(out: Path) -> None:
    """Save the model, its tokenizer and its generation settings under ``out``."""
    torch.manual_seed(0)
    tok = tokenizer()
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        bos_token_id=None,
        initializer_range=0.2,  # wide enough that the logits of two tokens are never a rounding error apart
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    tok.save_pretrained(out)
    ids = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    (out / "generation_config.json").write_text(json.dumps(ids))


def write_adapter(out: Path, base: Path) -> None:
    """Save a LoRA adapter in PEFT's layout, large enough to change greedy output."""
    torch.manual_seed(1)
    out.mkdir(parents=True)
    shapes = {"q_proj": HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        for name, width in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(LORA_RANK, HIDDEN, dtype=torch.bfloat16)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(width, LORA_RANK, dtype=torch.bfloat16)
    save_file(tensors, out / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": LORA_RANK,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(shapes),
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1))


def main(out: Path) -> None:
    """Write the model and its adapter below ``out``."""
    write_model(out / "tiny-qwen3")
    write_adapter(out / "tiny-lora", out / "tiny-qwen3")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
