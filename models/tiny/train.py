"""Train a tiny model on Shakespeare and save it as a Hugging Face folder.

    python -m graphrt.models.tiny.train tiny-deepseek2 shakespeare.txt OUT_FOLDER
    graphrt convert OUT_FOLDER tiny-deepseek2.gguf --type q8_0

Most steps see short windows; the last ones see long windows, for tiny-deepseek2 with YaRN switched on, as DeepSeek-V2's
own training does. The folder always holds the model of the best validation loss so far.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from graphrt.models.tiny.train_tokenizer import VOCABULARY_SIZE, BytePairVocabulary, SentencePieceVocabulary

Vocabulary = BytePairVocabulary | SentencePieceVocabulary

CONTEXT = 1024
SHORT_WINDOW = 256
LONG_WINDOW = 512
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": SHORT_WINDOW,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model learns."""

    dropout: float
    steps: int = 2600
    tokens_per_step: int = 2048
    long_share: float = 0.12  # of the steps, at the end
    warmup_share: float = 0.04
    peak_rate: float = 2e-3
    final_rate: float = 5e-5
    weight_decay: float = 0.1
    balance: float = 0.01  # weight of the router's load-balancing loss
    evaluate_every: int = 200


SCHEDULES = {"tiny-deepseek2": Schedule(dropout=0.1), "tiny-mixtral": Schedule(dropout=0.2)}


def deepseek2_config(vocabulary: Vocabulary) -> DeepseekV2Config:
    """A dense layer, then three mixtures of 8 routed experts (2 used) and a shared one; latent attention."""
    return DeepseekV2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=256,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        first_k_dense_replace=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        topk_method="greedy",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
    )


def mixtral_config(vocabulary: Vocabulary) -> MixtralConfig:
    """Four layers of 8 experts (2 used); grouped-query attention with two key-value heads."""
    return MixtralConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
    )


def build(name: str, train_text: str) -> tuple[PreTrainedModel, Vocabulary]:
    """The untrained model called `name` and its vocabulary, learned from the training text."""
    if name == "tiny-deepseek2":
        vocabulary: Vocabulary = BytePairVocabulary(train_text)
        model: PreTrainedModel = DeepseekV2ForCausalLM(deepseek2_config(vocabulary))
    else:
        vocabulary = SentencePieceVocabulary(train_text)
        model = MixtralForCausalLM(mixtral_config(vocabulary))
    model.set_experts_implementation("eager")  # on a CPU as fast as the grouped product, or faster
    return model, vocabulary


def switch_yarn_on(model: PreTrainedModel) -> None:
    """Stretch the rotary embedding of a DeepSeek-2 model in place; its weights stay."""
    config = DeepseekV2Config(**{**model.config.to_dict(), "rope_parameters": dict(YARN)})
    stretched = DeepseekV2ForCausalLM(config)
    model.config = model.model.config = config
    model.model.rotary_emb = stretched.model.rotary_emb
    for layer, donor in zip(model.model.layers, stretched.model.layers, strict=True):
        layer.self_attn.scaling = donor.self_attn.scaling


class RouterBalance:
    """Load-balancing loss of every router in a model (Fedus et al. 2021, arXiv:2101.03961, equation 4).

    E * sum over experts of (share of the tokens sent to it) * (mean router probability), 1 when balanced.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.losses: list[Tensor] = []
        for module in model.modules():
            if type(module).__name__.endswith("Router"):
                module.register_forward_hook(self._record)

    def _record(self, router: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        logits, _, chosen = outputs  # [T, E], [T, K], [T, K]
        experts = logits.shape[-1]
        if not router.training:
            return
        share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        probability = logits.float().softmax(-1).mean(0)
        self.losses.append(experts * (share * probability).sum())

    def take(self) -> Tensor:
        """Mean over the routers since the last call."""
        loss = torch.stack(self.losses).mean()
        self.losses.clear()
        return loss


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Drop elements of each sublayer's output while training; the model classes only offer it on attention weights."""

    def drop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> object:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], rate, module.training), *output[1:])
        return nn.functional.dropout(output, rate, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


class WindowChooser:
    """Draws training windows: BOS, then text from the start of a line, every line once before any comes again."""

    def __init__(self, text: str, vocabulary: Vocabulary, seed: int) -> None:
        self.text, self.vocabulary, self.random = text, vocabulary, random.Random(seed)
        last = len(text) - 6 * LONG_WINDOW
        self.starts = [0] + [i + 1 for i, character in enumerate(text[:last]) if character == "\n"]
        self.pool: list[int] = []

    def window(self, length: int) -> list[int]:
        """Token ids of one window."""
        if not self.pool:
            self.pool = self.random.sample(self.starts, len(self.starts))
        start = self.pool.pop()
        ids = self.vocabulary.encode(self.text[start : start + 6 * length])
        return [self.vocabulary.bos, *ids[: length - 1]]

    def batch(self, tokens: int, length: int) -> Tensor:
        """Windows of `length` tokens, `tokens` in all: [windows, length] i64."""
        return torch.tensor([self.window(length) for _ in range(tokens // length)])


@torch.no_grad()
def nats_per_character(model: PreTrainedModel, vocabulary: Vocabulary, text: str, window: int) -> float:
    """Cross entropy of `text`, cut into windows that share no context, over its number of characters."""
    ids = vocabulary.encode(text)
    model.eval()
    nats = 0.0
    for first in range(0, len(ids), window - 1):
        row = torch.tensor([[vocabulary.bos, *ids[first : first + window - 1]]])
        logits = model(input_ids=row[:, :-1], use_cache=False).logits.float()
        nats += nn.functional.cross_entropy(logits[0], row[0, 1:], reduction="sum").item()
    model.train()
    return nats / len(text)


def learning_rate(progress: float, schedule: Schedule) -> float:
    """Linear warm-up, then a half cosine from the peak to the final rate; `progress` runs from 0 to 1."""
    if progress < schedule.warmup_share:
        return schedule.peak_rate * progress / schedule.warmup_share
    phase = (progress - schedule.warmup_share) / (1 - schedule.warmup_share)
    return schedule.final_rate + (schedule.peak_rate - schedule.final_rate) * (1 + math.cos(math.pi * phase)) / 2


def make_optimizer(model: PreTrainedModel, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.peak_rate, betas=(0.9, 0.98), eps=1e-8)


def train_step(model: PreTrainedModel, batch: Tensor, balance: RouterBalance, schedule: Schedule) -> float:
    """Accumulate the gradients of one batch and return its mean cross entropy in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        (loss + schedule.balance * balance.take()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss.item()


def train(name: str, text: str, folder: Path, schedule: Schedule, minutes: float, seed: int) -> float:
    """Train the model called `name`, keep the best one in `folder` and return its validation nats per character.

    The learning rate falls with the steps done or with the time used, whichever is further on.
    """
    torch.manual_seed(seed)
    split = len(text) * 9 // 10
    train_text, validation_text = text[:split], text[split:]
    model, vocabulary = build(name, train_text)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.save(folder)
    add_dropout(model, schedule.dropout)
    balance, optimizer = RouterBalance(model), make_optimizer(model, schedule)
    model.train()
    best, window, began = math.inf, SHORT_WINDOW, time.monotonic()
    chooser = WindowChooser(train_text, vocabulary, seed)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    for step in range(1, schedule.steps + 1):
        progress = max(step / schedule.steps, (time.monotonic() - began) / (60 * minutes))
        if window == SHORT_WINDOW and progress >= 1 - schedule.long_share:
            window, best = LONG_WINDOW, math.inf  # a model of short windows must not win
            if name == "tiny-deepseek2":
                switch_yarn_on(model)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(min(progress, 1.0), schedule)
        optimizer.zero_grad()
        loss = train_step(model, chooser.batch(schedule.tokens_per_step, window), balance, schedule)
        optimizer.step()
        if step % 20 == 0:
            rate = step * schedule.tokens_per_step / (time.monotonic() - began)
            print(f"step {step} progress {progress:.3f} loss {loss:.3f} {rate:.0f} tokens/s", flush=True)
        if step % schedule.evaluate_every == 0 or step == schedule.steps or progress >= 1:
            nats = nats_per_character(model, vocabulary, validation_text, window)
            print(f"step {step} validation {nats:.4f} nats per character, window {window}", flush=True)
            if nats < best:
                best = nats
                model.save_pretrained(folder)
        if progress >= 1:
            break
    return best


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(SCHEDULES))
    parser.add_argument("text", type=Path, help="training text; its last tenth is held out for validation")
    parser.add_argument("folder", type=Path, help="where the Hugging Face folder goes")
    parser.add_argument("--minutes", type=float, default=36.0, help="learn for no longer than this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    best = train(options.model, text, options.folder, SCHEDULES[options.model], options.minutes, options.seed)
    print(f"best validation {best:.4f} nats per character, saved in {options.folder}")


if __name__ == "__main__":
    main()
