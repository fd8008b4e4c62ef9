"""Model graphs and what surrounds them: GGUF files, tokenizers, caches and generation; see graphrt.load."""

if __name__ != "graphrt.models":
    raise ImportError(f"`{__name__}` is a folder of the graphrt package; use `from graphrt import models`")
