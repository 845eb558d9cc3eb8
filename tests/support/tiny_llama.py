"""A small Llama with a tokenizer that has a chat template, as a Hugging Face folder, and conversations to train it on."""

import json
from pathlib import Path

import torch

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKS = ["<pad>", "<system>", "<user>", "<assistant>", "<end>"]


def write_llama(folder: Path) -> Path:
    """config.json, weights in float32 and tokenizer."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        ["what is the sum of two numbers"], trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=MARKS)
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")  # noqa: S106
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **SMALL, vocab_size=len(fast), tie_word_embeddings=False)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def write_conversations(file: Path, lines: int = 42) -> Path:
    """Questions of unequal length with their answers, each third of them in two turns, each fifth as prompt and completion."""
    with file.open("w") as out:
        for a in range(lines):
            ask, answer = f"what is the sum of {a} and {a * a}", str(a + a * a) + "!" * (a % 7)
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            if a % 3 == 0:
                turns += [{"role": "user", "content": "sure"}, {"role": "assistant", "content": "yes"}]
            row = {"prompt": ask, "completion": answer} if a % 5 == 0 else {"messages": turns}
            out.write(json.dumps(row) + "\n")
    return file
