"""A second GPT-2 and its gradient, written in the open, in which every decision that people get wrong is a field of `Way`."""
