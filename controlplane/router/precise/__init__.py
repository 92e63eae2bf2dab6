"""The `precise` mode of a model: prompts as the engine's own tokens, matched with the engines' own KV events."""
