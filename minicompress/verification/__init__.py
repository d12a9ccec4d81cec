"""The means to prove a gradient, and traces by which two implementations are compared."""
