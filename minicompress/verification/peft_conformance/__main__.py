"""`python -m minicompress.verification.peft_conformance [--json] [--seed S]`.

Exit code 0 where nothing is a defect, 1 where something is or cannot be run, 2 without torch, transformers and peft.
"""

import argparse
import json
import sys

from minicompress.verification.peft_conformance.bench import libraries
from minicompress.verification.peft_conformance.finding import DEFECT, NOT_RUN, counted, plain, text
from minicompress.verification.peft_conformance.run import examine


def main(arguments=None):
    name = "python -m minicompress.verification.peft_conformance"
    parser = argparse.ArgumentParser(name, description="the installed PEFT, held against this project")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--seed", type=int, default=0, help="of every weight and prompt; default 0")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed is {options.seed}; it must be 0 to {2**32 - 1}")
    try:
        lib = libraries(options.seed)
    except ImportError as reason:
        print(f"PEFT cannot be tested: {reason}; pip install 'minicompress[peers]'", file=sys.stderr)
        return 2
    rows, absent = examine(lib)
    facts = lib.versions, options.seed, rows, absent
    print(json.dumps(plain(*facts), indent=1, allow_nan=False) if options.json else "\n".join(text(*facts)))
    return int(bool({DEFECT, NOT_RUN} & set(counted(rows))))


if __name__ == "__main__":
    sys.exit(main())
