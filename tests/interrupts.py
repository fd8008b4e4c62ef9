"""Subprocesses that heed Ctrl-C: one that is started in the background may inherit that interrupts are ignored."""

HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
GRAPHRT = f"{HEED}; from graphrt.cli import main; main()"
