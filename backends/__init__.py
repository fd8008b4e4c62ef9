"""The devices that graphs run on, one folder each; see graphrt.backend for what a backend is."""

if __name__ != "graphrt.backends":
    raise ImportError(f"`{__name__}` is a folder of the graphrt package; use `from graphrt import backends`")
