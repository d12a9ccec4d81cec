"""A second GPT-2 and its gradient, in the open: every decision that people get wrong is a field of `Way`."""
