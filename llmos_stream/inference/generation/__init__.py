"""Language models answered over HTTP as OpenAI's clients ask: chat and completions, token by token.

asked -> Prompts -> Generator -> spoken (text, stops) -> answers
"""
