"""From a context to a soft prompt: queries, a teacher, an objective, and a producer of slots."""
