"""How often `compare` sees that a stranger is wrong, and how often it names the mistake: a table, on fresh seeds.

    python tests/peers/naming.py [--seeds N] [--first SEED] [--only ID] [--json FILE]

A name is right where it comes first; `alike` counts first names under which a stranger gives the very same tensors, so
that no one could tell. Everything is asked four ways: all tensors or the contract's, float64 or float32.
"""

import argparse
import json
import sys
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "peers")]

import numpy as np  # noqa: E402
from strangers import CONVENTIONS, RIGHT, STRANGERS, carrier_of, random_setup  # noqa: E402

from minicompress.verification.compare import compare  # noqa: E402
from minicompress.verification.oracles import relative_error  # noqa: E402

WAYS = [(rich, dtype) for dtype in (np.float64, np.float32) for rich in (True, False)]


def way_of(rich, dtype):
    return f"{'all' if rich else 'contract'} {np.dtype(dtype).name}"


def asked(stranger, seed, rich, dtype):
    """One comparison -> a dict of what came out."""
    setup = random_setup(
        np.random.default_rng([seed, *stranger.bug.encode(), rich, dtype == np.float32]), stranger, dtype
    )
    suspect = stranger.make(setup, rich)
    begun, found = time.time(), {"bug": stranger.bug, "id": stranger.id, "seed": seed, "way": way_of(rich, dtype)}
    found |= {"carrier": carrier_of(setup), "kl": setup.teacher_context is not None, "gradients": setup.gradients}
    try:
        result = compare(setup.tensors(), suspect, setup)
    except Exception:  # of interest too
        return found | {"error": traceback.format_exc(limit=-2), "seconds": time.time() - begun}
    names = [cause.id for cause in result.causes]
    found |= {
        "equal": bool(result.equal),
        "names": names,
        "first": str(result.first)[:200],
        "seconds": time.time() - begun,
    }
    found["scores"] = [float(cause.score) for cause in result.causes[:3]]
    if names and names[0] != stranger.id:
        found["alike"] = any(
            alike(other.make(setup, rich), suspect) for other in OTHERS[names[0]] if fits(other, setup)
        )
    return found


OTHERS = defaultdict(list)
for one in STRANGERS + CONVENTIONS:
    OTHERS[one.id].append(one)


def fits(stranger, setup):
    """Whether the stranger could be asked this at all."""
    carrier = carrier_of(setup)
    carrier = f"{carrier} with beta" if carrier == "kv" and setup.prompt.beta is not None else carrier
    encoder = setup.prompt is not None and "embedding" in (setup.prompt.raw or {})
    return carrier in stranger.wishes["carriers"] and (encoder or "raw" not in stranger.wishes)


def alike(a, b):
    small = 1e-9 if b["logits"].dtype == np.float64 else 1e-5
    return a.keys() == b.keys() and all(x.shape == b[n].shape and relative_error(x, b[n]) < small for n, x in a.items())


def table(results):
    """Lines of text: rates by way, then by mistake, with the names that came first instead."""
    ways = [way_of(*way) for way in WAYS]
    wrong, right = [r for r in results if r["id"]], [r for r in results if not r["id"]]
    yield f"{'':52}{''.join(f'{way:>18}' for way in ways)}"
    share = lambda some, of: f"{sum(bool(some(r)) for r in of)}/{len(of)}" if of else "-"
    rows = {"detected": detected, "named": named, "named, or alike": lambda r: named(r) or r.get("alike"),
            "among the first three": lambda r: r["id"] in r.get("names", [])[:3], "errors": lambda r: "error" in r}  # fmt: skip
    for title, some in rows.items():
        yield f"{title:52}" + "".join(f"{share(some, [r for r in wrong if r['way'] == way]):>18}" for way in ways)
    alarm = lambda r: not r.get("equal")
    yield f"{'false alarms':52}" + "".join(f"{share(alarm, [r for r in right if r['way'] == way]):>18}" for way in ways)
    yield ""
    for bug in dict.fromkeys(r["bug"] for r in wrong):
        mine = [r for r in wrong if r["bug"] == bug]
        instead = Counter(first_name(r) for r in mine if not named(r))
        words = ", ".join(f"{name} {n}" for name, n in instead.most_common(4))
        yield (
            f"{bug:52}"
            + "".join(f"{share(named, [r for r in mine if r['way'] == way]):>18}" for way in ways)
            + f"   {words}"
        )
    yield f"\nseconds a comparison: {np.mean([r['seconds'] for r in results]):.2f}"


def detected(result):
    return not result.get("equal", "error" not in result) or "error" in result


def named(result):
    return bool(result.get("names")) and result["names"][0] == result["id"] and not result["equal"]


def first_name(result):
    if "error" in result:
        return "(error)"
    if result["equal"]:
        return "(equal)"
    return (result["names"] or ["(nothing)"])[0] + (" (alike)" if result.get("alike") else "")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--right", type=int, default=50, help="questions to the one who is right")
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    options = parser.parse_args()
    results = []
    for stranger in STRANGERS + CONVENTIONS + [RIGHT]:
        if options.only not in stranger.bug:
            continue
        for seed in range(options.first, options.first + (options.seeds if stranger.id else options.right)):
            ways = [way for way in WAYS if stranger.id != "loss-in-float32" or way[1] == np.float64]
            results += [asked(stranger, seed, *way) for way in ways]
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=1))
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
