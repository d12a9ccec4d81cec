"""What a tuning is worth, beside what costs nothing: the commonest answer, no slots at all, untrained slots."""

from minicompress.compression.queries import Query
from minicompress.gpt2.prefix import Prefix
from minicompress.trees import flatten
from minicompress.tuning.diagnosis import diagnose
from minicompress.tuning.recipe import trained
from minicompress.tuning.scores import majority


def outcome(run):
    """A dict ready for JSON of a Tuning that has ended: sizes, the held-out scores, what was seen."""
    recipe, best = run.recipe, run.history[run.best_at]
    bare = [without_slots(q) for q in run.task.held]
    rows = {
        "none": run.score(Prefix(), bare) if all(q.start for q in bare) else None,
        "untrained": run.history[0],
        "tuned": best,
    }
    measured, lines = diagnose(run)
    return {
        "method": recipe.method,
        "parameterisation": recipe.parameterisation,
        "carrier": recipe.carrier,
        "slots": recipe.slots,
        "template": recipe.template,
        "numbers_trained": sum(a.size for a in flatten(trained(run.raw)).values()),
        "numbers_baked": int(run.initial.size),
        "examples": len(run.task.train),
        "held_out": len(run.task.held),
        "texts_cut": run.task.cut,
        "majority": majority(run.task.held),
        **{name: value for name, value in best.items() if name not in ("step", "train_loss", "predicted", "written")},
        "steps": run.state["step"],
        "best_step": best["step"],
        "rows": rows,
        "history": run.history,
        "measured": measured,
        "diagnosis": lines,
        "seconds": sum(run.seconds.values()),
        "seconds_per_step": run.seconds["steps"] / max(1, run.state["step"]),
    }


def without_slots(query):
    """The same row, but no slot stands in it."""
    row = [token for token in query.ids[: query.start] if token >= 0]
    return Query(row + query.ids[query.start :], len(row), query.question, query.answer)
