"""Soft prompts: the object, its file, and where its first values come from."""
