"""Language models: the task `llm`, its adapters, and versions as what other programs load."""
