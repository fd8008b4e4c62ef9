"""Models: load a GGUF file, ask for logits, let it write; `graphrt.load` makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from graphrt import Scheduler, Settings
from graphrt.backend import Backend
from graphrt.buffer import HOST
from graphrt.dtypes import Array
from graphrt.errors import FormatError, SettingsError
from graphrt.models import deepseek2, llama
from graphrt.models.batch import Batch
from graphrt.models.blocks import Decoder
from graphrt.models.chat import render
from graphrt.models.context import Context, Progress
from graphrt.models.context_pool import ContextPool
from graphrt.models.generation import Generation
from graphrt.models.gguf_file import FileTensor, GGUFFile
from graphrt.models.gguf_memory import Progress as BytesProgress
from graphrt.models.gguf_memory import in_memory
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters, LlamaHyperparameters
from graphrt.models.kv_cache import cache_dtype
from graphrt.models.mla_choice import RateSource
from graphrt.models.mla_rates import MeasuredRates
from graphrt.models.options import ModelOptions
from graphrt.models.sampling import Sampler, SamplingOptions
from graphrt.models.tokenizer import Tokenizer
from graphrt.models.weights import NOT_ONLY_PRODUCTS, Weights
from graphrt.overrides import gpu_layers as gpu_layer_rules
from graphrt.scheduler import DEFAULT_BACKENDS

NAMES = ("tiny-deepseek2", "tiny-mixtral")  # models that come with the package
DEFAULT_CONTEXT = 4096  # n_ctx where none is given and the model could take more
MAX_CONTEXT = 1 << 31  # positions are i32

Message = Mapping[str, str]


@dataclass(frozen=True)
class Architecture:
    """What to do with files of one architecture.

    Args:
        read: its hyperparameters from a file.
        load: the model from these, the weights, the options, and what tells the rates of the machine.
    """

    read: Callable[[GGUFFile], Any]
    load: Callable[[Any, Weights, ModelOptions, RateSource], Decoder]


ARCHITECTURES = {
    "llama": Architecture(
        read=LlamaHyperparameters.from_file,
        load=lambda hp, weights, options, _: llama.load(hp, weights, options),  # there is nothing to choose by rates
    ),
    "deepseek2": Architecture(read=DeepSeek2Hyperparameters.from_file, load=deepseek2.load),
}


@dataclass(frozen=True)
class Reading:
    """That a file is read into memory, in place of being mapped.

    Args:
        repack: whether to interleave weights that stay on the host.
        progress: is told of progress(bytes done, bytes in all).
    """

    repack: bool = False
    progress: BytesProgress | None = None


class Model:
    """A loaded model; make one with `graphrt.load`.

    Attributes:
        file: the GGUF file.
        hyperparameters: the numbers that shape the model.
        decoder: its weights and graph.
        n_ctx: cells of each context.
        options: how it attends, what the cache holds, tokens of a ubatch.
        scheduler: says where its graphs run; each context has plans of its own, over the same weights.
    """

    def __init__(
        self,
        file: GGUFFile,
        *,
        backends: Sequence[str | Backend] = DEFAULT_BACKENDS,
        overrides: Iterable[str] | None = None,
        node_overrides: Iterable[str] = (),
        gpu_layers: int | None = None,
        n_ctx: int | None = None,
        options: ModelOptions | None = None,
        reading: Reading | None = None,
        **settings: Any,
    ) -> None:
        self.file = file
        self.options = options or ModelOptions()
        architecture = _architecture(file)
        self.hyperparameters = architecture.read(file)
        self.n_ctx = min(self.hyperparameters.context, DEFAULT_CONTEXT) if n_ctx is None else n_ctx
        if not 1 <= self.n_ctx < MAX_CONTEXT:
            raise SettingsError(f"[load] n_ctx is {n_ctx}; it must be at least 1 and below {MAX_CONTEXT}")
        self.scheduler = Scheduler(backends, overrides=overrides, node_overrides=node_overrides, **settings)
        if gpu_layers is not None:
            self.scheduler.add_overrides(self._device_rules(gpu_layers))
        if reading is not None:
            self.file = in_memory(file, reading.progress, lambda tensor: reading.repack and self._is_to_repack(tensor))
        self.decoder = self._load_decoder(architecture)
        cache_dtype(self.options.cache_type, self.decoder.cache_layout)
        held = self.options.kv_file
        self.contexts = ContextPool(self.new_context, [] if held is None else [self.new_context(held)])

    def __repr__(self) -> str:
        return f"Model({self.file.path.name}: {self.file.architecture}, n_ctx {self.n_ctx})"

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def backends(self) -> Sequence[Backend]:
        """Where its graphs run, the preferred first."""
        return self.scheduler.backends

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer.

        Raises: FormatError if the file has none, or one that graphrt does not know.
        """
        return Tokenizer.from_metadata(self.file.metadata, self.file.path.name)

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """The token ids of a text; `add_special` adds the tokens that the model wants around one."""
        return self.tokenizer.encode(text, add_special=add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(ids)

    def new_context(self, kv_file: str | Path | None = None) -> Context:
        """A context of its own: an empty KV cache of n_ctx cells, or one in a file, with what that holds.

        Raises: FormatError if the file is damaged, or of another model or size; SettingsError if it is in use.
        """
        options = self.options
        return Context(
            self.decoder,
            self.scheduler.fork(),
            self.n_ctx,
            options.cache_type,
            options.n_ubatch,
            k_rotation=options.k_cache,
            kv_file=kv_file,
            architecture=self.file.architecture,
        )

    def logits(self, tokens: Sequence[int]) -> Array:
        """The logits after each token, in a fresh context.

        Args: tokens [T], 1 to n_ctx ids.
        Returns: [T, V] f32.
        Raises: GraphError if there is no token, or too many, or an id out of range.
        """
        with self.contexts.lend() as context:
            return context.decode(Batch.of(tokens, all_logits=True)).copy()

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        context_shift: bool = False,
        keep: int = 0,
        ignore_eos: bool = False,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Generation:
        """Let the model go on from a prompt; what an earlier prompt began with alike is not run again.

        Args:
            prompt: a text; token ids; or a chat, messages {"role": ..., "content": ...}.
            max_tokens: end after that many; None: where the model ends, or when the context is full.
            stop: end before any of these strings.
            context_shift: when the context is full, forget the older half of it and go on, without an end.
            keep: tokens at the prompt's beginning that are not forgotten then, -1: all of them; a BOS token never is.
            ignore_eos: never choose a token that ends the text.
            progress: is told of a prompt of several ubatches, progress(tokens done, tokens in all).
            sampling: fields of SamplingOptions: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last, seed.
        Returns: an iterator of pieces of text, with `tokens`, `timings` and `finish_reason`.
        Raises: GraphError if the prompt is empty or longer than the context; SettingsError for a sampling option.
        """
        ids = self._prompt_ids(prompt)
        excluded = self.tokenizer.vocabulary.end_of_generation if ignore_eos else ()
        sampler = Sampler(_sampling_options(sampling), ids, excluded)
        going_on = {"context_shift": context_shift, "keep": keep, "progress": progress}
        return Generation(self.contexts.lend, self.tokenizer, sampler, ids, max_tokens, stop, **going_on)

    def close(self) -> None:
        """Let go of the contexts that wait; a cache's file is then on the disk, and free for others."""
        self.contexts.close()

    def _load_decoder(self, architecture: Architecture) -> Decoder:
        weights, name = Weights(self.file), self.file.path.name
        decoder = architecture.load(self.hyperparameters, weights, self.options, MeasuredRates(self.scheduler))
        if weights.unused:
            raise FormatError(
                f"[{name}] {len(weights.unused)} tensors have no place in graphrt's {self.file.architecture}, such as "
                f'"{weights.unused[0]}"; without them the results would be wrong: use a file of another model'
            )
        return decoder

    def _prompt_ids(self, prompt: str | Sequence[int] | Sequence[Message]) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special=True)
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if messages:
            return self.tokenizer.encode(self._render(messages))
        return [int(item) for item in prompt if not isinstance(item, Mapping)]

    def _render(self, messages: Sequence[Message]) -> str:
        """A chat as the text that the model's template makes of it, special tokens included."""
        vocabulary = self.tokenizer.vocabulary
        bos, eos = ("" if i is None else vocabulary.tokens[i] for i in (vocabulary.bos, vocabulary.eos))
        return render(messages, vocabulary.chat_template, bos, eos)

    def _device_rules(self, count: int) -> list[str]:
        """The rules that put the last layers on the first device."""
        device = next((backend.name for backend in self.backends if backend.memory != HOST), None)
        if device is None:
            raise SettingsError(
                f"[load] gpu_layers is {count}, but none of the backends is a device: "
                f"{', '.join(backend.name for backend in self.backends)}; name one in front of them"
            )
        return gpu_layer_rules(count, self.hyperparameters.layers, device)

    def _is_to_repack(self, tensor: FileTensor) -> bool:
        """Whether a weight stays on the host, and is read by products alone."""
        return self.scheduler.stays_on_host(tensor.name) and not NOT_ONLY_PRODUCTS.search(tensor.name)


def load(
    path_or_name: str | Path | GGUFFile,
    *,
    backends: Sequence[str | Backend] | str | None = None,
    overrides: Iterable[str] | str | None = None,
    node_overrides: Iterable[str] | str = (),
    gpu_layers: int | None = None,
    n_ctx: int | None = None,
    threads: int | None = None,
    mmap: bool = True,
    repack: bool = False,
    progress: BytesProgress | None = None,
    **options: Any,
) -> Model:
    """Load a model from a GGUF file.

    Args:
        path_or_name: a file, opened or not, or "tiny-deepseek2" or "tiny-mixtral", which come with the package.
        backends: names or Backend objects, the preferred first; None: cpu, then reference.
        overrides: rules `regex=backend` over weights' names, the first match wins; `regex@prompt=backend` and
            `regex@decode=backend` hold in one phase only; None: GRAPH_TENSOR_OVERRIDES.
        node_overrides: such rules over the names of nodes and of ops.
        gpu_layers: put the output and the last so many layers less one, with their caches, on the first device; the
            overrides come first.
        n_ctx: tokens that the KV cache holds; None: what the model was trained for, at most 4096.
        threads: of the CPU backend; None: GRAPH_THREADS, or as many as the process may use.
        mmap: map the file; False: read it into memory, which takes as much of it, but decodes some per cent faster.
        repack: read it into memory, and interleave there the quantized weights that stay on the host, for the CPU's
            kernels: faster where memory is fast, or prompts are short. Such weights are not offloaded to a device.
        progress: is told of progress(bytes done, bytes in all) while a file is read into memory.
        options: fields of ModelOptions (mla, cache_type, k_cache, n_ubatch) and of graphrt.Settings.
    Raises: FormatError if the file is damaged, of an unknown architecture, or lacks a tensor; SettingsError for a wrong
        option; PlacementError without room for what is to be read into memory.
    """
    known = {item.name for item in fields(ModelOptions)}
    settings = {name: value for name, value in options.items() if name not in known}
    unknown = sorted(settings.keys() - {item.name for item in fields(Settings)})
    if unknown:
        raise SettingsError(
            f"[load] unknown option {', '.join(unknown)}; known: n_ctx, threads, {', '.join(sorted(known))}, "
            f"and the settings {', '.join(item.name for item in fields(Settings))}"
        )
    file = path_or_name if isinstance(path_or_name, GGUFFile) else GGUFFile.open(locate(path_or_name))
    return Model(
        file,
        backends=[backends] if isinstance(backends, str) else backends or DEFAULT_BACKENDS,
        overrides=[overrides] if isinstance(overrides, str) else overrides,
        node_overrides=[node_overrides] if isinstance(node_overrides, str) else node_overrides,
        gpu_layers=gpu_layers,
        n_ctx=n_ctx,
        options=ModelOptions(**{name: value for name, value in options.items() if name in known}),
        reading=None if mmap and not repack else Reading(repack, progress),
        threads=threads,
        **settings,
    )


def locate(path_or_name: str | Path) -> Path:
    """The GGUF file of that path, or of that model that comes with the package.

    Raises: FormatError if there is none.
    """
    if path_or_name in NAMES:
        return Path(__file__).with_name("tiny") / f"{path_or_name}.gguf"
    path = Path(path_or_name)
    if not path.is_file():
        raise FormatError(f'[load] there is no file "{path}"; give a GGUF file, or one of {", ".join(NAMES)}')
    return path


def _architecture(file: GGUFFile) -> Architecture:
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        raise FormatError(
            f'[{file.path.name}] unknown architecture "{file.architecture}"; graphrt runs {", ".join(ARCHITECTURES)}'
        )
    return found


def _sampling_options(given: Mapping[str, Any]) -> SamplingOptions:
    known = {item.name for item in fields(SamplingOptions)}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise SettingsError(f"[generate] unknown option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return SamplingOptions(**given)
