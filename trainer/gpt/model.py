"""A GPT over bytes: 256 tokens, learned positions, pre-norm blocks, tied embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class GPTConfig:
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float


class Linear(nn.Linear):
    """Without initial values: GPT draws them itself. A recovery waits for this, and replaces the values anyway."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """Without initial values, like Linear."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Causal self-attention: (batch, time, n_embd) to (batch, time, n_embd)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qkv = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = Linear(config.n_embd, config.n_embd, bias=False)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.n_head, width // self.n_head).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out: Tensor = self.drop(self.proj(y.transpose(1, 2).reshape(batch, time, width)))
        return out


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, bias=False)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd, bias=False)
        self.up = Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.down = Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        out: Tensor = x + self.drop(self.down(F.gelu(self.up(self.norm_2(x)))))
        return out


class GPT(nn.Module):
    """forward(bytes, targets), both int64 (batch, time), returns the mean cross-entropy in nats. Without targets it
    returns the logits, (batch, time, 256)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(VOCABULARY, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = Linear(config.n_embd, VOCABULARY, bias=False)
        self.head.weight = self.wte.weight
        # As in GPT-2: the residual stream adds up the outputs of 2 * n_layer such layers.
        last = 0.02 / math.sqrt(2 * config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=last if name.endswith(("proj.weight", "down.weight")) else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.drop(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])
        for block in self.h:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().view(-1, VOCABULARY), targets.reshape(-1))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """The groups for the optimizer: weight decay for matrices, none for gains."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        gains = [p for p in self.parameters() if p.dim() < 2]
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}]
