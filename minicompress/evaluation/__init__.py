"""How close a prefix comes to the full context, held against the cheap alternatives."""
