"""llmcls: fine-tune language models for text classification, from a laptop to a cluster."""

__version__ = "0.1.0"
