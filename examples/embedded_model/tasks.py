"""Tasks that are only shown: an instruction, demonstrations, and questions that nothing but the demonstrations answers."""

from functools import partial

from notes import HELD, KINDS, Context, Question, choose, pick, recalls

FIRST = "bla dro fi gu jo lo mu pra sto tu wi ze".split()
SECOND = "bix dax fen gop kim lum nog rud tiv zel".split()
PLAIN = [value for kind in ("pet", "food", "drink", "colour", "job") for value in KINDS[kind].values]
CLASSES = ("pet", "food", "job", "place", "colour", "music", "language", "hobby")  # sortable kinds of known words


INVENTED = [a + b for a in FIRST for b in SECOND]


def is_held_out(*words):
    return sum("".join(words).encode()) % 5 == 0


def name_all(rng, words, held_out=False):
    """An invented word, such as `drobix`, for each of the words: [(word, invented)], a fifth of all pairs held out."""
    named = {}
    for word in words:
        named[pick(rng, [new for new in INVENTED if new not in named and is_held_out(word, new) == held_out])] = word
    return [(word, new) for new, word in named.items()]


LOOKUP_HEADERS = ("Learn the new words.", "Here are some new words.", "Learn what the words mean.", HELD, "Here is what the new words mean.")
LOOKUP = ("What is the word for {x}?", "Which word means {x}?", "How do you say {x}?", HELD, "What do you say for {x}?", "Which is the word for {x}?")


def lookup(rng, held_out=False):
    """Known words and their invented names, asked in other words. Without the list: no chance."""
    n = rng.integers(3, 8)
    table = name_all(rng, choose(rng, PLAIN, n), held_out)
    asked = [table[i] for i in rng.permutation(n)]
    shown, form = pick(rng, LOOKUP, held_out), rng.random() < 0.5
    demos = [(shown.format(x=x) if form else x, y) for x, y in table]
    questions = [(pick(rng, LOOKUP, held_out).format(x=x), y) for x, y in asked]
    return pick(rng, LOOKUP_HEADERS, held_out), demos, questions, 1 / n


SORT_HEADERS = ("Sort the words into groups.", "Give every word its group.", "Every word has a group.", HELD, "Sort every word into its group.")
SORT = ("Which group has {x}?", "What is the group of {x}?", "In which group is {x}?", HELD, "What group has {x}?", "Which is the group of {x}?")


def sorted_words(rng, held_out=False):
    """(word, label) shown and asked: the kinds of words have invented labels, and the words asked for are others."""
    n, each = rng.integers(2, 4), rng.integers(2, 4)
    labels = name_all(rng, choose(rng, CLASSES, n), held_out)
    pairs = [(word, label) for kind, label in labels for word in choose(rng, KINDS[kind].values, each + 3)]
    order = rng.permutation(len(pairs))
    return [pairs[i] for i in order if i % (each + 3) < each], [pairs[i] for i in order if i % (each + 3) >= each]


def sort(rng, held_out=False):
    """Words sorted into groups under invented labels; only words of the same kinds tell the group of another."""
    shown, asked = sorted_words(rng, held_out)
    form, chance = pick(rng, SORT, held_out), 1 / len({label for _, label in shown})
    return pick(rng, SORT_HEADERS, held_out), *([(form.format(x=x), y) for x, y in part] for part in (shown, asked)), chance


def words(rng, said, recalled):
    """The rung before tasks: words and their invented names, or their groups, said and recalled as `pairs` does it."""
    if rng.random() < 0.5:
        shown = asked = name_all(rng, choose(rng, PLAIN, rng.integers(3, 8)))
        forms = LOOKUP
    else:
        (shown, asked), forms = sorted_words(rng), SORT
    if said == "barely":
        text = " " + ", ".join(f"{x} {y}" for x, y in shown) + "\n"
    else:
        question = pick(rng, ("{x}", pick(rng, forms)))
        line = pick(rng, (" {x}: {y}\n", " {x} is {y}\n", "Q: " + question + "\nA: {y}\n"))
        text = "".join(line.format(x=x, y=y) for x, y in shown)
    form = pick(rng, forms)
    return [(text, False), *recalls(rng, [(x, y, form.format(x=x)) for x, y in asked], recalled)]


CHANGE_HEADERS = ("Do the same to every line.", "Change the words like this.", "Follow the rule.", HELD, "Follow the same rule on every line.")
RULES = {
    "repeat": lambda words, made: words + words,
    "swap": lambda words, made: words[::-1],
    "before": lambda words, made: [made] + words,
    "after": lambda words, made: words + [made],
}


def change(rng, held_out=False, rule=None):
    """Two words and a rule that only the demonstrations show. `held_out`: pairs of words not trained on."""
    rule = rule or pick(rng, list(RULES))
    made, lines = pick(rng, INVENTED), []
    while len(lines) < 9:
        words = choose(rng, PLAIN, 2)
        if is_held_out(*words) == held_out:
            lines.append((" ".join(words), " ".join(RULES[rule](words, made))))
    shown = rng.integers(3, 5)
    return pick(rng, CHANGE_HEADERS, held_out), lines[:shown], lines[shown:], 1 / len(RULES)


FAMILIES = {"lookup": lookup, "sort": sort} | {rule: partial(change, rule=rule) for rule in RULES}


def task(rng, held_out=False, family=None):
    """One task; the context ends with its demonstrations, and `chance` is what a guesser reaches without them."""
    family = family or pick(rng, list(FAMILIES))
    header, demos, questions, chance = FAMILIES[family](rng, held_out)
    text = header + "\n" + "".join(f"Q: {x}\nA: {y}\n" for x, y in demos)
    return Context(text, [Question(x, y, family, None) for x, y in questions], chance, header)
