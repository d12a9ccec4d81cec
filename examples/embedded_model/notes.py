"""Notes about a few people, and questions about them: facts that can only be known from the context.

Every fact is a (person, kind, value). A kind has verb phrases ("lives in {v}"), noun phrases ("{n}'s home is in {v}"),
and questions. The phrasings after `HELD` are never trained on, and neither are the pairs of name and value for which
`is_held_out_pair` is true.
"""

from collections import namedtuple

import numpy as np

Context = namedtuple("Context", "text questions chance header", defaults=(0.0, ""))
Question = namedtuple("Question", "question answer kind person")
Kind = namedtuple("Kind", "values verbs nouns questions")

HELD = None  # stands between the phrasings for training and the held-out ones

NAMES = ("Mara Tom Anna Ben Clara David Ella Frank Greta Henry Iris Jack Kate Leo Lucy Max Nora Oscar Paul Rosa Sam Tina "
         "Victor Wanda Adam Bella Carl Dora Emma Felix Hugo Ida Jonas Karin Lars Maya Nina Otto Peter Ruth Simon Vera "
         "Walter Zoe Alex Bruno Daisy Eric Fiona George Helen Ivan Julia Kurt Lena Mark Olga Philip Rita Stefan").split()

KINDS = {
    "place": Kind(
        "Oslo Paris Rome London Berlin Madrid Vienna Lisbon Athens Dublin Prague Warsaw Cairo Delhi Tokyo Lima Boston "
        "Denver Dallas Milan Venice Geneva Moscow Hamburg".split(),
        ("lives in {v}", "has a home in {v}", "has a house in {v}", HELD, "lives in the city of {v}"),
        ("{n}'s home is in {v}", "The home of {n} is in {v}", "The city where {n} lives is {v}", HELD, "{n}'s house is in {v}"),
        ("Where does {n} live?", "Where is {n}'s home?", "In which city does {n} live?", "What city is the home of {n}?",
         "Where does {n} have a home?", HELD, "In which city is {n}'s home?", "Where is {n}'s house?")),
    "job": Kind(
        "baker doctor teacher farmer lawyer nurse painter pilot sailor tailor waiter writer driver singer dancer judge "
        "clerk cook priest soldier miner hunter plumber carpenter".split(),
        ("works as a {v}", "is a {v}", "earns money as a {v}", HELD, "has work as a {v}"),
        ("{n}'s job is {v}", "The job of {n} is {v}", "The work that {n} does is that of a {v}", HELD, "{n}'s work is that of a {v}"),
        ("What is {n}'s job?", "What work does {n} do?", "What does {n} work as?", "Which job does {n} have?",
         HELD, "What is the work of {n}?", "Which work does {n} do?")),
    "age": Kind(
        [str(age) for age in range(21, 69, 2)],
        ("is {v} years old", "turned {v} this year", "has the age of {v}", HELD, "is now {v} years of age"),
        ("{n}'s age is {v}", "The age of {n} is {v}", "In years, {n} is {v}", HELD, "{n}'s age this year is {v}"),
        ("How old is {n}?", "What is {n}'s age?", "How many years old is {n}?", "What age is {n}?",
         HELD, "How many years does {n} have?")),
    "pet": Kind(
        "cat dog horse rabbit parrot goat hamster turtle snake pony goose duck mouse lizard frog donkey sheep pig "
        "canary spider fox raven hen kitten".split(),
        ("has a {v}", "keeps a pet {v}", "owns a {v} as a pet", HELD, "has a {v} for a pet"),
        ("{n}'s pet is a {v}", "The pet of {n} is a {v}", "The animal that {n} keeps is a {v}", HELD, "{n}'s animal is a {v}"),
        ("What pet does {n} have?", "Which animal does {n} keep?", "What is {n}'s pet?", "What kind of pet does {n} own?",
         HELD, "Which pet does {n} keep?", "What animal is {n}'s pet?")),
    "colour": Kind(
        "red blue green yellow black white brown grey pink purple orange silver gold violet".split(),
        ("likes the colour {v}", "loves the colour {v}", "mostly wears {v}", HELD, "likes to wear {v}"),
        ("{n}'s favourite colour is {v}", "The favourite colour of {n} is {v}", "The colour that {n} likes is {v}",
         HELD, "The colour that {n} loves is {v}"),
        ("What is {n}'s favourite colour?", "Which colour does {n} like?", "What colour does {n} love?",
         "What is the colour that {n} likes?", HELD, "Which colour is {n}'s favourite?", "What colour does {n} like best?")),
    "food": Kind(
        "bread soup cheese rice fish pasta salad honey cake apples cherries grapes pears plums nuts beans eggs "
        "butter onions potatoes carrots pie sausage chocolate".split(),
        ("eats {v}", "likes to eat {v}", "always eats {v} for dinner", HELD, "loves to eat {v}"),
        ("{n}'s favourite food is {v}", "The favourite food of {n} is {v}", "The food that {n} likes is {v}",
         HELD, "The food that {n} eats is {v}"),
        ("What does {n} eat?", "What is {n}'s favourite food?", "What food does {n} like?", "What does {n} like to eat?",
         HELD, "Which food does {n} eat?", "Which food is {n}'s favourite?")),
    "music": Kind(
        "piano violin guitar flute drum trumpet harp cello organ horn banjo fiddle clarinet tuba".split(),
        ("plays the {v}", "is learning the {v}", "makes music on the {v}", HELD, "is learning to play the {v}"),
        ("{n}'s instrument is the {v}", "The instrument of {n} is the {v}", "The instrument that {n} plays is the {v}",
         HELD, "The music that {n} makes is on the {v}"),
        ("What instrument does {n} play?", "What is {n}'s instrument?", "Which instrument does {n} play?",
         "On what does {n} make music?", "What does {n} play?", HELD, "Which instrument is {n} learning?")),
    "hobby": Kind(
        "chess tennis football golf cards swimming running fishing sailing cycling reading knitting cooking skating "
        "climbing gardening drawing riding boxing hiking".split(),
        ("enjoys {v}", "spends the weekend on {v}", "has {v} as a hobby", HELD, "spends free time on {v}"),
        ("{n}'s hobby is {v}", "The hobby of {n} is {v}", "The hobby that {n} enjoys is {v}", HELD, "The free time of {n} is for {v}"),
        ("What is {n}'s hobby?", "What does {n} enjoy?", "Which hobby does {n} have?", "What does {n} do on the weekend?",
         HELD, "What hobby does {n} enjoy?")),
    "drink": Kind(
        "tea coffee milk water juice wine beer cocoa lemonade cider rum brandy".split(),
        ("drinks {v}", "likes to drink {v}", "always drinks {v} in the morning", HELD, "loves to drink {v}"),
        ("{n}'s favourite drink is {v}", "The favourite drink of {n} is {v}", "The drink that {n} likes is {v}",
         HELD, "The drink that {n} orders is {v}"),
        ("What does {n} drink?", "What is {n}'s favourite drink?", "What drink does {n} like?", "What does {n} like to drink?",
         "What does {n} drink in the morning?", HELD, "Which drink does {n} like?", "Which drink is {n}'s favourite?")),
    "language": Kind(
        "French German Italian Spanish Greek Russian Dutch Polish Danish Turkish Latin Arabic Hindi Swedish".split(),
        ("speaks {v}", "is learning to speak {v}", "speaks {v} at home", HELD, "knows how to speak {v}"),
        ("{n}'s language is {v}", "The language of {n} is {v}", "The language that {n} speaks is {v}",
         HELD, "The language {n} knows is {v}"),
        ("What language does {n} speak?", "Which language does {n} speak?", "What is {n}'s language?",
         "What does {n} speak at home?", HELD, "What does {n} speak?", "Which language is {n}'s?")),
}

HEADERS = ("Notes:", "Some notes:", "Notes about {names}:", "What we know about {names}:", "Facts about {names}:", "")
CALLED = {"place": "city", "colour": "favourite colour", "food": "favourite food", "music": "instrument", "drink": "favourite drink"}
OF_ANY_KIND = ("What is {n}'s {k}?", "What is the {k} of {n}?", "Which {k} does {n} have?", "{n}'s {k}?", "Say the {k} of {n}.",
               "What {k} does {n} have?", "Do you know the {k} of {n}?", "And {n}'s {k}?", "Tell us what {k} {n} has.", "For {n}, what is the {k}?",
               HELD, "Which is the {k} of {n}?")
JOINED = ("{n}, who {a}, {b}", "{n} {a} and {b}", "{n} {a}, and {n} also {b}", HELD, "{n}, who {a}, also {b}")
OPENERS = ("As everybody knows,", "It is said that", "These days", "In fact,", "According to a friend,", "We also know that",
           "As far as we know,", "Besides,", HELD, "People say that", "As a friend told us,")


def phrasings(options, held_out):
    """The part of a list of phrasings before the mark, or after it."""
    mark = options.index(HELD)
    return options[mark + 1:] if held_out else options[:mark]


def pick(rng, options, held_out=False):
    options = phrasings(options, held_out) if HELD in options else options
    return options[rng.integers(len(options))]


def choose(rng, options, count):
    """`count` different ones, in any order."""
    return [options[i] for i in rng.choice(len(options), count, replace=False)]


def is_held_out_pair(name, kind, value):
    return (NAMES.index(name) + KINDS[kind].values.index(value)) % 5 == 0


def draw_facts(rng, slots, held_out=False):
    """A (name, kind, value) for each (name, kind), if one is left; no value stands twice."""
    used, drawn = set(), []
    for name, kind in slots:
        allowed = [v for v in KINDS[kind].values if v not in used and is_held_out_pair(name, kind, v) == held_out]
        if allowed:
            drawn.append((name, kind, pick(rng, allowed)))
            used.add(drawn[-1][2])
    return drawn


def sentence(rng, fact, held_out=False):
    name, kind, value = fact
    if rng.random() < 0.4:
        return pick(rng, KINDS[kind].nouns, held_out).format(n=name, v=value)
    return f"{name} {pick(rng, KINDS[kind].verbs, held_out).format(v=value)}"


def opened(rng, said, held_out=False):
    """A sentence, now and then after a few words that say nothing."""
    if rng.random() > 0.35:
        return said + "."
    said = said if said.split()[0].rstrip(",").removesuffix("'s") in NAMES else said[0].lower() + said[1:]
    return f"{pick(rng, OPENERS, held_out)} {said}."


def sentences(rng, drawn, held_out=False):
    """Sentences that together state every fact, by person or in any order; some of them state two facts."""
    order = rng.permutation(len(drawn))
    if rng.random() < 0.5:  # person by person
        order = sorted(order, key=lambda i: drawn[i][0])
    left, said = [drawn[i] for i in order], []
    while left:
        fact = left.pop(0)
        other = next((f for f in left if f[0] == fact[0]), None)
        if other and rng.random() < 0.3:
            left.remove(other)
            parts = {x: pick(rng, KINDS[k].verbs, held_out).format(v=v) for x, (_, k, v) in (("a", fact), ("b", other))}
            said.append(opened(rng, pick(rng, JOINED, held_out).format(n=fact[0], **parts), held_out))
        else:
            said.append(opened(rng, sentence(rng, fact, held_out), held_out))
    return said


def list_names(names):
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def ask(rng, fact, held_out=False):
    name, kind, value = fact
    form = pick(rng, OF_ANY_KIND if rng.random() < 0.5 else KINDS[kind].questions, held_out)
    return Question(form.format(n=name, k=CALLED.get(kind, kind)), value, kind, name)


def notes(rng, people, facts, held_out=False):
    """Notes in prose, and one question for each fact, shuffled."""
    names, kinds = choose(rng, NAMES, people), choose(rng, list(KINDS), len(KINDS))
    # the same kinds for all people first: they must be told apart
    drawn = draw_facts(rng, [(name, kind) for kind in kinds for name in choose(rng, names, people)][:facts], held_out)
    header = pick(rng, HEADERS).format(names=list_names(names))
    text = " ".join(([header] if header else []) + sentences(rng, drawn, held_out)) + "\n"
    return Context(text, [ask(rng, drawn[i], held_out) for i in rng.permutation(len(drawn))])


def recalls(rng, asked, recalled):
    """Each (given, wanted, question) in the way that `recalled` says, as pieces (text, whether it is to be recalled)."""
    for given, wanted, question in choose(rng, asked, len(asked)):
        if recalled == "barely":
            yield from [(f" {given}", False), (f" {wanted}", True), (",", False)]
        else:
            yield (f"Q: {question if recalled == 'by question' else given}\nA:", False)
            yield (f" {wanted}\n", True)


def pairs(rng, people, said, recalled, each=1):
    """A fact or a few for each of some people, and then each value again, as (text, whether it is to be recalled).

    What makes a model bind a value to its name is that either end can be bare: said as `Mara Oslo`, a value follows its
    name at once; recalled as `Mara`, nothing stands between the name and what is asked for. An induction head knows that
    much; a sentence on one end, later on both, asks for a little more. With more facts than one, all people have the
    same kinds of them, and only a question can tell which is meant.
    """
    names = choose(rng, NAMES, people)
    if each > 1:
        kinds, recalled = choose(rng, list(KINDS), each), "by question"
        facts = draw_facts(rng, choose(rng, [(name, kind) for name in names for kind in kinds], people * each))
    else:
        kinds = rng.choice(list(KINDS), 1 if rng.random() < 0.5 else people)
        facts = draw_facts(rng, list(zip(names, np.resize(kinds, people).tolist())))
    stated = [f"{name} {value}" if said == "barely" else sentence(rng, (name, kind, value)) for name, kind, value in facts]
    asked = [(name, value, ask(rng, (name, kind, value)).question) for name, kind, value in facts]
    return [(" " + (", " if said == "barely" else ". ").join(stated) + "\n", False), *recalls(rng, asked, recalled)]
