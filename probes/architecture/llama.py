"""A small Llama with the names of llama2.c: rotary positions, RMS norms, gated feed-forward, shared key heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scale(nn.Module):
    """Divide by the root of the mean square and multiply by a weight (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps) * self.weight


class Attention(nn.Module):
    """Causal self-attention with rotary positions; several heads of queries may share one of keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        size = width // heads
        self.wq = nn.Linear(width, heads * size, bias=False)
        self.wk = nn.Linear(width, kv_heads * size, bias=False)
        self.wv = nn.Linear(width, kv_heads * size, bias=False)
        self.wo = nn.Linear(heads * size, width, bias=False)
        self._heads, self._kv_heads, self._size = heads, kv_heads, size

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D); cos, sin: (T, size / 2)."""
        N, T, _ = x.shape
        q = rotate(self.wq(x).view(N, T, self._heads, self._size), cos, sin)
        k = rotate(self.wk(x).view(N, T, self._kv_heads, self._size), cos, sin)
        v = self.wv(x).view(N, T, self._kv_heads, self._size)
        k, v = (each.repeat_interleave(self._heads // self._kv_heads, 2) for each in (k, v))
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(mixed.transpose(1, 2).reshape(N, T, -1))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """The SwiGLU feed-forward layer (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D)."""
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward layer, each behind its norm and beside a residual path."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, kv_heads)
        self.feed_forward = Gated(width, hidden)
        self.attention_norm = Scale(width, eps)
        self.ffn_norm = Scale(width, eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D)."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))  # type: ignore[no-any-return]


class SmallLlama(nn.Module):
    """A decoder: token ids (N, T) to logits (N, T, V).

    tables: the tables of angles that the file keeps among its tensors: "freqs_cos" (and freqs_sin), "rope.freqs" or "".
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        kv_width: int,
        width: int,
        hidden: int,
        tied: bool = True,
        norm_eps: float = 1e-5,
        theta: float = 10_000.0,
        tables: str = "",
    ) -> None:
        super().__init__()
        size = width // heads
        kv_heads = kv_width // size
        if width % heads or size % 2 or kv_width % size or not kv_heads or heads % kv_heads:
            raise ValueError(f"width {width} cannot be cut into {heads} heads with keys and values of width {kv_width}")
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.tok_embeddings.weight, std=0.02)
        self.layers = nn.ModuleList([Block(width, heads, kv_heads, hidden, norm_eps) for _ in range(layers)])
        self.norm = Scale(width, norm_eps)
        self.output = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.output.weight = self.tok_embeddings.weight
        frequencies = 1.0 / theta ** (torch.arange(0, size, 2)[: size // 2].float() / size)
        angles = torch.outer(torch.arange(context).float(), frequencies)
        self.register_buffer("freqs_cos", angles.cos(), persistent=tables == "freqs_cos")
        self.register_buffer("freqs_sin", angles.sin(), persistent=tables == "freqs_cos")
        if tables == "rope.freqs":
            self.rope = nn.Module()
            self.rope.register_buffer("freqs", frequencies)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, T) to logits (N, T, V)."""
        T, context = tokens.shape[1], len(self.freqs_cos)
        if context < T:
            raise ValueError(
                f"a sequence has {T} tokens, but the model's context is {context}; choose a shorter context"
            )
        cos, sin = self.freqs_cos[:T], self.freqs_sin[:T]
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, cos, sin)
        return self.output(self.norm(x))  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels by the angle of their position (Su et al. 2021); x: (N, T, H, size)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
