"""The installed PEFT under test: every prompt method of it, held against this project's own implementation.

`python -m minicompress.verification.peft_conformance [--json] [--seed S]`. torch, transformers and
peft are imported only inside functions, and nothing is downloaded.
"""
