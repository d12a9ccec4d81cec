"""Small files of inputs and right answers, by which a port in any language proves itself."""
