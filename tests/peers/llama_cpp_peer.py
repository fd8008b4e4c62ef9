"""llama.cpp behind a few functions, for comparisons on the same files: logits, greedy tokens, quantization.

It goes through the C API of llama-cpp-python, whose `Llama` class copies every row of logits and so would be timed
instead of llama.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from graphrt.models.file_types import FILE_TYPES

FTYPES = {**{name: each.number for name, each in FILE_TYPES.items()}, "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S}
F32, F16 = 0, 1
UBATCH = 512


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log."""


llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


@dataclass
class Peer:
    """A model loaded by llama.cpp with one context."""

    model: ctypes.c_void_p
    context: ctypes.c_void_p

    @property
    def vocabulary_size(self) -> int:
        return llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits [T, V] of every token, in a fresh context."""
        self.clear()
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        self._decode(batch)
        rows = llama_cpp.llama_get_logits(self.context)
        logits = np.ctypeslib.as_array(rows, (len(tokens), self.vocabulary_size)).copy()
        llama_cpp.llama_batch_free(batch)
        return logits

    def logits_one_by_one(self, tokens: Sequence[int]) -> np.ndarray:
        """The same [T, V], the tokens decoded one after the other."""
        self.clear()
        rows = []
        for token in tokens:
            self.feed([token])
            rows.append(self._last_logits().copy())
        return np.array(rows)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely tokens after a prompt, one after the other."""
        self.clear()
        self.feed(prompt)
        written = []
        for _ in range(count):
            written.append(int(np.argmax(self._last_logits())))
            self.feed(written[-1:])
        return written

    def feed(self, tokens: Sequence[int]) -> None:
        """Decode tokens after those that the context holds; the last one's logits are computed."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        self._decode(llama_cpp.llama_batch_get_one(array, len(tokens)))

    def clear(self) -> None:
        """Forget every token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def forget_from(self, position: int) -> None:
        """Forget the tokens from a position on."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, position, -1)

    def _decode(self, batch: llama_cpp.llama_batch) -> None:
        status = llama_cpp.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode says {status} for {batch.n_tokens} tokens"
        llama_cpp.llama_synchronize(self.context)

    def _last_logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (self.vocabulary_size,))


@contextmanager
def opened(
    path: Path, *, n_ctx: int = 512, threads: int = 1, cache: int = F16, flash: bool | None = None
) -> Iterator[Peer]:
    """Load a model.

    Args:
        cache: F16 or F32 cells.
        flash: whether to use flash attention, which rounds to f16 on the way; None: as llama.cpp likes.
    """
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    assert model, f"llama.cpp cannot load {path}"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = n_ctx
    params.n_ubatch = min(n_ctx, UBATCH)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = cache
    if flash is not None:
        kinds = (llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        params.flash_attn_type = kinds[flash]
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, f"llama.cpp makes no context for {path}"
    try:
        yield Peer(model, context)
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def quantize(source: Path, target: Path, kind: str, threads: int = 1) -> None:
    """Write `source` in another type as llama-quantize does."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FTYPES[kind], threads, True
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, f"llama_model_quantize says {status} for {source} as {kind}"
