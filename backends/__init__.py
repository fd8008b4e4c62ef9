"""The devices that graphs run on, one folder each; see graphrt.backend for what a backend is."""
