# SPDX-License-Identifier: Apache-2.0
"""From the text of an instruction to its level, by rules that can be read.

The taxonomy is the paper's (SAM3-I, arXiv 2512.04585): a concept is a noun phrase, a simple instruction names the noun
and narrows it down, a complex one leaves the noun to be inferred. Decisions where the taxonomy is silent:

* A bare phrase with an adjective ("yellow school bus", "red car", "a striped cat") is a *concept*: it is the form of
  prompt that SAM3 itself was trained on. The definite article singles an instance out, so "the red car" is *simple*,
  while "the car" adds nothing to "car" and stays a *concept*. "all", "every" and "each" also stay: a concept prompt
  means every instance.
* Position, order, number, comparison, possession, negation, "and" / "or" and any clause are *simple*.
* A question, a function ("used to", "for cutting"), an ability or a judgement ("can", "most dangerous"), a condition
  and a wish are *complex* even when a noun is named.
* An action of a named noun ("the man riding a horse") is *simple*: it is a visible relation. An action of a word that
  names no kind ("the animal waiting to be let out", "the thing that ...") is *complex*.
* Politeness and commands ("please segment", "could you find") count for nothing.

The rules are English. What they cannot read, another script or language, is *simple*, never the level that bypasses
the adapters, and a warning says so once: give the level, or let the trained router choose (`auto_levels="router"`),
which is warned about as well, for it knows the languages of its training.
"""

import logging
import re
from functools import lru_cache

from ..modeling_sam3i.instruction_levels import InstructionLevel

logger = logging.getLogger(__name__)  # not that of Transformers, whose import takes seconds


def _lexicon(words: str) -> frozenset[str]:
    return frozenset(words.split())


DEFINITE = _lexicon("the this that these those my your his her its their our")
DETERMINERS = DEFINITE | _lexicon("a an any some all every each")
QUESTION_WORDS = _lexicon("what what's whats which who who's whom whose where where's why how when whatever whoever")
AUXILIARIES = _lexicon("is are was were do does did can could would should will has have may might must")
COPULAS = _lexicon("is are was were be been being has have had isn't aren't")
MODALS = _lexicon("could would should might must may cannot can't couldn't wouldn't shouldn't will won't i'd you'd")
PERSONS = _lexicon("i i'm i'd i've i'll im we we're us you you're one's myself yourself ourselves")
CONDITIONS = _lexicon("if when whenever because unless otherwise")
INDEFINITE = _lexicon(
    "something anything everything nothing someone somebody anyone anybody whatever whoever somewhere anywhere"
)
FUNCTION_WORDS = _lexicon(
    "used needed required designed intended meant suitable suited appropriate ideal useful handy able unable "
    "capable responsible likely unlikely probably supposed allowed necessary helpful helps enables"
)
JUDGMENTS = _lexicon(
    "dangerous expensive healthy nutritious useful suitable appropriate comfortable important likely relevant "
    "valuable unusual dominant powerful popular efficient famous interesting healthier healthiest safest cheapest "
    "priciest safer cheaper deadliest strangest easiest best worst"
)
# words that stand for anything, and words that name a family rather than a kind
GENERIC = _lexicon("thing things object objects item items stuff entity entities one ones element elements")
HYPERNYMS = GENERIC | _lexicon(
    "animal animals creature creatures pet pets vehicle vehicles food foods appliance appliances furniture device "
    "devices tool tools utensil utensils container containers instrument instruments equipment gadget gadgets "
    "garment garments clothing structure structures drink drinks beverage beverages product products part parts "
    "area areas place places spot region regions surface surfaces material substance mammal predator figure being "
    "source accessory accessories plant plants machine machines living component components feature features space "
    "those"
)
MADE = _lexicon("made known built worn kept grown eaten sold held given driven")
# states one sees, not actions one has to interpret
VISIBLE_STATES = _lexicon(
    "lying laying sitting standing sleeping hanging walking running wearing holding facing looking leaning resting "
    "flying swimming jumping carrying containing showing touching riding crossing covering surrounding pointing "
    "kneeling"
)
POSITIONS = _lexicon(
    "left right top bottom upper lower middle center centre central leftmost rightmost topmost bottommost front "
    "back rear corner foreground background nearest closest farthest furthest edge side far outermost innermost"
)
ORDER_AND_NUMBER = _lexicon(
    "first second third fourth fifth sixth seventh eighth ninth tenth last two three four five six seven eight nine "
    "ten both other others another only same different rest most least more less bigger smaller taller shorter "
    "larger longer older younger closer farther further nearer higher darker thinner wider thicker heavier newer "
    "brighter"
)
LINKS = _lexicon(
    "on in at under underneath beneath below above over behind beside besides near between among amongst inside "
    "outside within without with by next around across along against beyond toward towards from to into onto off "
    "through opposite for than except not no and or plus but which who whose whom where while as like nearby held"
)
ADJECTIVES = _lexicon(
    "red orange yellow green blue purple violet pink brown black white gray grey golden silver beige tan maroon "
    "navy teal turquoise cyan magenta cream dark light bright pale colorful colourful blond blonde brunette big "
    "small large little tiny huge giant tall short long wide narrow thick thin fat slim heavy young old new ancient "
    "modern elderly baby adult wooden metal metallic plastic leather glass paper stone brick woolen cotton ceramic "
    "marble striped plaid checkered polka-dot spotted dotted plain floral transparent clear shiny dirty clean wet "
    "dry empty full open closed broken ripe fresh rotten frozen hot cold round square circular rectangular "
    "triangular curved straight flat curly hairy furry fluffy bald smiling happy sad angry sleepy asleep awake "
    "tired busy beautiful pretty ugly cute rusty dusty muddy sunny shaggy spiky fuzzy messy blurry male female "
    "unripe raw cooked bare naked lone lonely single wild hollow sharp dull soft hard smooth rough loose tight "
    "partial visible upright sliced"
)
ING_NOUNS = _lexicon(
    "building buildings ceiling ceilings ring rings king kings string strings wing wings painting paintings "
    "clothing railing railings icing lightning morning evening swing swings sling earring earrings pudding dumpling "
    "dumplings duckling ducklings seedling seedlings filling stuffing topping toppings frosting dressing bedding "
    "awning awnings lettering wiring fencing flooring siding wedding sibling siblings herring spring springs viking "
    "drawing drawings carving carvings crossing crossings opening openings landing being beings parking living"
)
# a gerund before its noun that names a kind: "dining table" is no table that dines
GERUND_COMPOUNDS = re.compile(
    r"\b(dining|washing|sewing|swimming|cutting|ironing|running|walking|shopping|parking|sleeping|frying|mixing|"
    r"measuring|baking|chewing|fishing|hiking|rocking|wedding|drinking|vending|watering|racing|boxing|skating|landing|"
    r"changing|steering|building|living|serving|training|bathing|sailing|rowing|printing|writing|reading|rolling|"
    r"sitting|playing|driving|roasting|cooking|riding|sanding|welding|smoking|recycling|knitting|crossing)[ -](?="
    r"tables?|rooms?|chairs?|machines?|pools?|trunks|boards?|shoes?|sticks?|carts?|bags?|baskets?|malls?|centers?|"
    r"meters?|lots?|spaces?|garages?|pans?|bowls?|cups?|spoons?|tapes?|sheets?|trays?|soda|gum|rods?|boats?|nets?|"
    r"boots?|dress(es)?|rings?|cakes?|fountains?|glass(es)?|water|cans?|cars?|gloves?|rinks?|gear|wheels?|blocks?|"
    r"suits?|ships?|press|desks?|lamps?|pins?|cards?|utensils?|mowers?|helmets?|bins?|needles?|signs?|poles?|masks?)"
)
FIXED_PHRASES = re.compile(
    r"\b(top hats?|tank tops?|crop tops?|table tops?|front doors?|back doors?|back packs?|right angles?|"
    r"side (tables?|mirrors?)|rear ?view mirrors?|"
    r"shopping centers?|city centers?|center ?pieces?|salt and pepper|mac and cheese|fish and chips|"
    r"cups? and saucers?|bows? and arrows?|black and white|ping pong|first aid|second hand|stop light|hot dogs?|"
    r"teddy bears?|side walks?|jack in the box|bed and breakfast|fire ?place|market ?place|living rooms?|parking|"
    r"hair ?dry(er|ers|ing)|"
    r"(men|women|children|kids|ladies|baby)['’]?s? (shoes|clothes|clothing|wear|room|toys?|books?))\b"
)
EST_NOUNS = _lexicon("forest chest vest nest guest harvest breast test rest west crest priest quest pest contest")
ED_NOUNS = _lexicon("bed beds shed sled seed weed reed moped bobsled breed feed flatbed red steed seabed")
PARTS = _lexicon("leg legs arm arms wheel wheels handle lid tail head heads roof door tip end base ear ears eye eyes")

# articles and prepositions of German, French, Spanish, Italian, Portuguese, Dutch and Swedish that English has not
FOREIGN = _lexicon(
    "der das dem ein eine einen einem einer und auf neben unter über le les la une du avec sur dans el los las una "
    "unos del sobre il gli della nel sul os um uma com het een och på ett med"
)
ENGLISH = _lexicon("the of with on and that which is are to for from an at by")

_UNREADABLE = (
    "The rules for levels read English; an instruction in another script or language is taken as a simple one. Give "
    "`instruction_levels` (`level=`), or load the processor with auto_levels='router' where the model has a trained "
    "router. This is said once."
)
_LEFT_TO_ROUTER = (
    "The level of an instruction in another script or language than English is the router's guess: it knows the "
    "languages it was trained on, and a concept bypasses the adapters. Give `instruction_levels` (`level=`) if the "
    "results name the wrong one. This is said once."
)

COMMAND = re.compile(
    r"^(?:please )?(?:(?:can|could|would|will) you (?:please )?)?"
    r"(?:(?:segment|find|show|highlight|locate|detect|identify|outline|look for|search for|point out|pick out|cut out|"
    r"give me|get me|show me)\b|(?:mask|mark|spot|point to|pick|select|get|label|choose|point at)\b"
    r"(?= (?:the|a|an|all|every|each|any|out|me|this|that|these|those|something|anything)\b))"
    r"(?: out\b| me\b)?(?: (?:the )?masks? (?:of|for)\b)?"
)
POLITE_REQUEST = re.compile(r"^(?:please )?(?:can|could|would|will) you\b")
WORD = re.compile(r"[a-z0-9]+(?:['’-][a-z0-9]+)*")


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words, words[1:], strict=False))


def _is_participle(word: str) -> bool:
    return len(word) > 4 and word.endswith("ing") and word not in ING_NOUNS


def _is_superlative(word: str) -> bool:
    return len(word) > 5 and word.endswith("est") and word not in EST_NOUNS


def _is_adjective(word: str) -> bool:
    if word in ADJECTIVES or _is_participle(word):
        return True
    return len(word) > 4 and word not in ED_NOUNS and word.endswith(("ed", "ish", "less", "ful", "-looking"))


def _split_head(words: list[str]) -> tuple[str | None, list[str]]:
    """The noun that the phrase is about and the clause after it."""
    start = 0
    while start < len(words) and words[start] in DETERMINERS:
        start += 1
    for index in range(start + 1, len(words)):
        word = words[index]
        opens_clause = word in MADE | LINKS | DETERMINERS | COPULAS | FUNCTION_WORDS | POSITIONS | {"about", "of"}
        if opens_clause or _is_participle(word) or (word.endswith("ed") and words[index - 1] in HYPERNYMS):
            return words[index - 1], words[index:]
    return (words[-1] if len(words) > start else None), []


def _asks(words: list[str], question_mark: bool) -> bool:
    if question_mark or words[0] in QUESTION_WORDS:
        return True
    if any(first in {"where", "what", "how", "why"} and second in AUXILIARIES for first, second in _pairs(words)):
        return True
    subjects = DETERMINERS | PERSONS | {"there", "it", "they", "he", "she"}
    return len(words) > 2 and words[0] in AUXILIARIES and words[1] in subjects


def _states_function(words: list[str]) -> bool:
    if set(words) & (MODALS | PERSONS | CONDITIONS | INDEFINITE) or words[0] == "to":
        return True
    for first, second in _pairs(words):
        if first in FUNCTION_WORDS and second in {"to", "for", "in", "as", "by", "of", "when", "with", "on"}:
            return True
        if first == "for" and len(second) > 4 and second.endswith("ing") and second not in ING_NOUNS:
            return True
        if first in {"most", "least", "more"} and second in JUDGMENTS:
            return True
        if (first, second) in {("order", "to"), ("so", "that")}:
            return True
        if second == "can" and first in HYPERNYMS | {"that", "which", "who", "it", "they", "people", "person"}:
            return True
    return words[0] in DEFINITE and bool(set(words[1:]) & JUDGMENTS) and len(words) > 2


def _leaves_noun_open(words: list[str]) -> bool:
    """Whether the head names no kind and the clause after it says what it does instead of where or how it is."""
    head, clause = _split_head(words)
    if head not in HYPERNYMS or not clause:
        return False
    relatives = {"that", "which", "who", "whose"}
    if clause[0] == "of":
        clause = next((clause[index:] for index, word in enumerate(clause) if word in relatives), clause)
    if clause[0] in relatives:
        if len(clause) > 1 and clause[1] in COPULAS:
            clause = clause[2:]
        else:
            return len(clause) > 1 and clause[1] not in VISIBLE_STATES
    if not clause:
        return False
    if clause[0] in {"to", "for", "where", "about"} or clause[0] in FUNCTION_WORDS:
        return True
    if len(clause) > 1 and (clause[0] in MADE or clause[0].endswith("ed")) and clause[1] in {"to", "for", "as", "by"}:
        return True
    return _is_participle(clause[0]) and (clause[0] not in VISIBLE_STATES or "to" in clause)


def _narrows_down(text: str, words: list[str]) -> bool:
    """Whether anything beside the noun phrase itself restricts which instances are meant."""
    parts = {part for word in words for part in word.split("-") if part in {"left", "right", "top", "bottom"}}
    if (set(words) | parts) & (LINKS | POSITIONS | ORDER_AND_NUMBER | COPULAS) or "," in text or "&" in text:
        return True
    if any(_is_superlative(word) or re.fullmatch(r"\d+(st|nd|rd|th)?", word) for word in words):
        return True
    if any(word.endswith(("'s", "’s", "s'")) for word in words[:-1]):
        return True
    if any(word in DETERMINERS for word in words[1:]) and words[0] not in {"all", "every", "each", "any", "some"}:
        return True
    if "of" in words and (set(words[: words.index("of")]) & PARTS or words[words.index("of") + 1 :][:1] == ["the"]):
        return True
    content = [word for word in words if word not in DETERMINERS | {"of"}]
    if len(content) > 5:
        return True
    if any(_is_participle(word) for word in content[1:]):
        return True
    if len(content) > 1 and len(content[-1]) > 4 and content[-1].endswith("ed") and content[-1] not in ED_NOUNS:
        return True
    return words[0] in DEFINITE and any(_is_adjective(word) for word in content[:-1])


def _is_english(text: str) -> bool:
    """Whether the rules can read a text in lower case."""
    words = WORD.findall(text)
    is_other_script = sum(map(len, words)) < sum(character.isalnum() for character in text) / 2
    every_word = set(re.findall(r"[^\W\d_]+", text))
    return bool(words) and not is_other_script and not (every_word & FOREIGN and not every_word & ENGLISH)


def warn_of_language(text: str) -> None:
    """Say once that the router, who decides the level of `text`, may not know its language."""
    if not _is_english(text.lower()):
        _warn_once(_LEFT_TO_ROUTER)


def classify_level(text: str) -> InstructionLevel:
    """Choose the level of one instruction by the rules in the module's docstring.

    Args:
        text (`str`): The instruction as a user writes it.

    Returns:
        `InstructionLevel`.

    Raises:
        TypeError: when `text` is not a string.
        ValueError: when `text` is empty.
    """
    if not isinstance(text, str):
        raise TypeError(f"An instruction must be a string, got {type(text).__name__}: {text!r}.")
    normal = " ".join(text.lower().replace("’", "'").split())
    if not normal:
        raise ValueError("An instruction must not be empty.")
    question_mark = "?" in normal and not POLITE_REQUEST.match(normal)
    normal = COMMAND.sub("", normal).strip(" .,!;:\"'")
    normal = normal.removesuffix(" please").strip(" ,") or text.lower()
    words = WORD.findall(normal)
    if not _is_english(normal):
        _warn_once(_UNREADABLE)
        return InstructionLevel.SIMPLE
    if _asks(words, question_mark) or _states_function(words) or _leaves_noun_open(words):
        return InstructionLevel.COMPLEX
    kind = FIXED_PHRASES.sub("kind", GERUND_COMPOUNDS.sub("", normal))
    if _narrows_down(kind, WORD.findall(kind)):
        return InstructionLevel.SIMPLE
    return InstructionLevel.CONCEPT


@lru_cache
def _warn_once(message: str) -> None:
    logger.warning(message)
