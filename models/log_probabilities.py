"""Log-probabilities of logits, and files of them in the form of llama-perplexity's --kl-divergence-base.

R rows of logits, V vocabulary. The file, little-endian, without padding:

    8 bytes       "_logits_"
    3 x i32       n_ctx, vocabulary V, chunks K
    K·n_ctx i32   the tokens, as the text has them: without BOS in place of each chunk's first
    K·R rows      one for each token scored, R = n_ctx - n_ctx/2 - 1 of each chunk; a row is
        2 x f32   scale, lowest
        V x u16   codes, and one more where V is odd;  ln p = lowest + scale · code

A row keeps ln p over the 16 nats below its highest; what lies deeper is raised to that. So a code errs by at most
1.3e-4 nats, and what is raised has less than a millionth of the highest probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import FormatError

MAGIC = b"_logits_"
HEADER_BYTES = len(MAGIC) + 12
DEEPEST = 16.0  # nats below the highest logit
CODES = 65535


def token_losses(logits: Array, targets: Array) -> Array:
    """-ln softmax(logits)[target] of each row: logits [R, V] f32, targets [R] -> [R] f64, in nats."""
    return log_sum_exp(logits) - logits[np.arange(len(targets)), targets]


def log_sum_exp(logits: Array) -> Array:
    """ln Σ exp(logits) of each row: [R, V] f32 -> [R] f64."""
    found = np.empty(len(logits))
    for row, each in enumerate(logits):  # one by one: a copy of all rows of a large vocabulary is hundreds of MiB
        top = each.max()
        found[row] = top + np.log(np.exp(each - top).sum(dtype=np.float64))
    return found


def encode(logits: Array) -> Array:
    """Logits [R, V] f32 as rows of the file [R, 4 + V or V+1] u16."""
    count, vocabulary = logits.shape
    rows = np.zeros((count, row_codes(vocabulary)), "<u2")
    top = logits.max(axis=1)
    lowest = np.maximum(logits.min(axis=1), top - DEEPEST)
    scale = (top - lowest) / np.float32(CODES)
    head = rows[:, :4].view("<f4")
    head[:, 0], head[:, 1] = scale, lowest - log_sum_exp(logits)
    for row, each in enumerate(logits):
        if scale[row] > 0:
            codes = np.rint((each - lowest[row]) / scale[row])
            rows[row, 4 : 4 + vocabulary] = np.clip(codes, 0, CODES)
    return rows


def decode(row: Array, vocabulary: int) -> Array:
    """One row of the file as ln p [V] f32."""
    scale, lowest = row[:4].view("<f4")
    return np.asarray(lowest + scale * row[4 : 4 + vocabulary].astype(np.float32))


def row_codes(vocabulary: int) -> int:
    """Numbers of 16 bits in a row."""
    return 4 + vocabulary + vocabulary % 2


def scored(n_ctx: int) -> int:
    """Tokens of a chunk that are scored."""
    return n_ctx - n_ctx // 2 - 1


class LogProbabilityWriter:
    """Writes such a file, to be used as a context manager; it is there under its name once it is complete.

    Args:
        path: the file.
        tokens: [K, n_ctx], the chunks.
        vocabulary: V.
    Raises: FormatError if it cannot be written.
    """

    def __init__(self, path: Path, tokens: Array, vocabulary: int) -> None:
        self.path, self._part = path, path.with_name(path.name + ".part")
        try:
            self._file: IO[bytes] = self._part.open("wb")
        except OSError as error:
            raise FormatError(f"[{path}] cannot be written: {error.strerror}; choose another path") from error
        chunks, n_ctx = tokens.shape
        self._file.write(MAGIC + np.array([n_ctx, vocabulary, chunks], "<i4").tobytes())
        self._file.write(tokens.astype("<i4").tobytes())

    def write(self, logits: Array) -> None:
        """Add rows: logits [R, V]."""
        self._file.write(encode(logits).tobytes())

    def __enter__(self) -> LogProbabilityWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            self._part.replace(self.path)
        else:
            self._part.unlink()


@dataclass(frozen=True)
class LogProbabilities:
    """Such a file, open for reading; rows are read when they are touched.

    Args:
        vocabulary: V.
        tokens: [K, n_ctx] i32, the chunks.
        rows: [K, R, numbers of a row] u16.
    """

    vocabulary: int
    tokens: Array
    rows: Array

    @classmethod
    def open(cls, path: str | Path) -> LogProbabilities:
        """Open a file.

        Raises: FormatError if it is missing, no such file, or cut short.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                head = file.read(HEADER_BYTES)
            size = path.stat().st_size
        except OSError as error:
            raise FormatError(f"[{path}] cannot be read: {error.strerror}; write it with --kl-base") from error
        if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
            raise FormatError(f"[{path.name}] is no file of log-probabilities; write one with --kl-base")
        n_ctx, vocabulary, chunks = (int(number) for number in np.frombuffer(head, "<i4", 3, len(MAGIC)))
        if min(vocabulary, chunks) < 1 or n_ctx < 2:
            raise FormatError(
                f"[{path.name}] n_ctx {n_ctx}, vocabulary {vocabulary}, {chunks} chunks cannot be; write it again"
            )
        shape = (chunks, scored(n_ctx), row_codes(vocabulary))
        rows_at = HEADER_BYTES + 4 * chunks * n_ctx
        expected = rows_at + 2 * shape[0] * shape[1] * shape[2]
        if size != expected:
            raise FormatError(
                f"[{path.name}] {chunks} chunks of {n_ctx} tokens over {vocabulary} take {expected:,} bytes, the file "
                f"has {size:,}; write it again"
            )
        tokens = np.fromfile(path, "<i4", chunks * n_ctx, offset=HEADER_BYTES).reshape(chunks, n_ctx)
        return cls(vocabulary, tokens, np.memmap(path, "<u2", "r", rows_at, shape))
