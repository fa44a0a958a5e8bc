"""weft runs, measures, explains and plans multi-GPU LLM inference by its communication."""

__version__ = "0.1.0"
