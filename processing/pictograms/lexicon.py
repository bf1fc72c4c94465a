# SPDX-License-Identifier: Apache-2.0
"""The words of the pictogram world: what its things are called, what they are for, and which wider kinds they are of.

Every clause follows "that", "what" or "whatever" and takes no grammatical number. The LAST clause of each list is
unheard: no instruction of training says it, and most of these clauses hold words that no other one has. What the
clauses of kinds and uses say is true of all nouns of the kind and of no other noun, so that "everything except what
could be eaten" has an answer.
"""

from ..language import lexicon as shared
from ..language.lexicon import Table
from ..shapes.lexicon import WorldWords
from ..shapes.phrasings import with_more_phrasings

PLURALS = {
    "fish": "fish", "bird": "birds", "butterfly": "butterflies", "turtle": "turtles", "cat": "cats",
    "apple": "apples", "burger": "burgers", "carrot": "carrots", "pizza": "pizzas",
    "cup": "cups", "mug": "mugs", "glass": "glasses",
    "car": "cars", "boat": "boats", "plane": "planes",
    "guitar": "guitars", "drum": "drums", "trumpet": "trumpets",
    "hat": "hats", "shoe": "shoes", "shirt": "shirts",
    "tree": "trees", "cactus": "cacti", "flower": "flowers",
}  # fmt: skip
NOUNS = tuple(PLURALS)
DESCRIPTORS: Table = {
    "fish": ("would breathe under water", "could be caught with a rod", "grew fins and scales", "an angler hopes for"),
    "bird": ("would build a nest", "could lay eggs on a farm", "grew feathers and a beak", "should quack on a pond"),
    "butterfly": ("grew from a caterpillar", "would drink from one blossom after another", "kept thin painted wings",
                  "came out of a cocoon"),
    "turtle": ("would carry a home on the back", "could hide inside a shell", "nobody calls fast", "beat the hare"),
    "cat": ("would chase mice at night", "could purr on a sofa", "might say meow", "a kitten becomes"),
    "apple": ("would fall from a branch", "a teacher gets from a pupil", "could keep the doctor away",
              "people press for cider"),
    "burger": ("would come with fries", "could be ordered at a grill", "a cook puts between two buns",
               "might hold beef and lettuce"),
    "carrot": ("would grow below the soil", "a donkey runs after", "could be the nose of a snowman",
               "rabbits nibble"),
    "pizza": ("would be cut into slices", "could come in a flat box", "a cook covers with cheese",
              "italy became famous for"),
    "cup": ("would hold hot coffee", "could stand on a saucer", "a tired worker needs", "an espresso fills"),
    "mug": ("would hold a beer", "could foam over at the bar", "guests raise at a festival", "a brewer fills"),
    "glass": ("would hold wine", "could stand on a long stem", "guests raise for a toast",
              "a waiter pours champagne into"),
    "car": ("would need a parking lot", "could stop at a crossing", "a family would drive to work",
            "came with a steering wheel"),
    "boat": ("would leave the harbor", "a captain sails", "could hoist a sail", "an anchor might keep in place"),
    "plane": ("would land on a runway", "a pilot steers", "could cross the clouds with passengers",
              "might take off at an airport"),
    "guitar": ("came with six strings", "could be played at a campfire", "a rock singer would hold",
               "fingers strum"),
    "drum": ("would be hit with two sticks", "could give the beat of a march", "might sound like thunder",
             "a percussionist knocks on"),
    "trumpet": ("would be blown with full cheeks", "could be made of brass", "might sound a fanfare",
                "jazz musicians puff into"),
    "hat": ("would sit on the head", "a magician pulls a rabbit from", "could be lifted to greet",
            "a gentleman tips"),
    "shoe": ("would need laces and a sole", "could warm the feet", "a child ties before a race", "runners jog in"),
    "shirt": ("would cover the chest", "could be ironed and folded", "a child puts both arms through",
              "tailors sew buttons on"),
    "tree": ("would give shade in a park", "could become wood for a fire", "came with a trunk and leaves",
             "squirrels climb"),
    "cactus": ("could live in the desert", "would sting with spines", "can do without rain", "might look prickly"),
    "flower": ("would smell sweet in a vase", "could open petals in spring", "a lover picks for a bouquet",
               "a florist sells"),
}  # fmt: skip
# What stands for "thing" in a complex instruction, by kind: words that can be counted.
_KIND_WORDS = {"animal": "animal", "vehicle": "vehicle", "plant": "plant"}
KINDS: dict[str, frozenset[str]] = {
    kind: frozenset(nouns.split())
    for kind, nouns in {
        "animal": "fish bird butterfly turtle cat",
        "food": "apple burger carrot pizza",
        "drinking": "cup mug glass",
        "vehicle": "car boat plane",
        "instrument": "guitar drum trumpet",
        "clothing": "hat shoe shirt",
        "plant": "tree cactus flower",
        "flying": "bird butterfly plane",
        "swimming": "fish turtle boat",
    }.items()
}
KIND_CLAUSES: Table = {
    "animal": ("would count as an animal", "can feel hunger and pain", "a zoo could show",
               "might belong to the fauna"),
    "food": ("would count as food", "could be eaten", "should be on a plate", "people swallow"),
    "drinking": ("people drink from", "could be filled with a drink", "a thirsty person needs", "you sip from"),
    "vehicle": ("would count as a vehicle", "could take people to another city", "a crew or a driver runs",
                "might serve as a means of transport"),
    "instrument": ("would make music", "could be played on a stage", "a band needs", "an orchestra might use"),
    "clothing": ("could be worn", "should be in a wardrobe", "people put on to go out", "you dress in"),
    "plant": ("would count as a plant", "would need roots and light", "could stay where a gardener sets",
              "might belong to the flora"),
    "flying": ("could fly", "would move through the air with wings", "can be seen high in the sky",
               "might soar and glide"),
    "swimming": ("could swim", "would feel at home in the waves", "can be found in or on the sea",
                 "might float in the ocean"),
}  # fmt: skip
# One pair per color, six different nouns: compositions that no training image or sentence contains.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "boat"),
        ("orange", "fish"),
        ("yellow", "shirt"),
        ("green", "guitar"),
        ("blue", "tree"),
        ("purple", "cup"),
    }
)


def _lexicon(clauses: slice) -> shared.Lexicon:
    return shared.Lexicon(
        plural=PLURALS.__getitem__,
        descriptors={noun: every[clauses] for noun, every in DESCRIPTORS.items()},
        complex=shared.COMPLEX_TEMPLATES
        | {"kind": shared.COMPLEX_TEMPLATES["category"], "not_kind": shared.COMPLEX_TEMPLATES["except"]},
        kinds={noun: word for kind, word in _KIND_WORDS.items() for noun in KINDS[kind]},
        kind_clauses={kind: every[clauses] for kind, every in KIND_CLAUSES.items()},
    )


_TRAINING = _lexicon(slice(None, -1))
PICTOGRAM_WORDS = WorldWords(
    name="pictograms",
    nouns=NOUNS,
    lexicon=_TRAINING,
    varied=with_more_phrasings(_TRAINING),
    held_out_pairs=HELD_OUT_PAIRS,
    kinds=KINDS,
    unheard=_lexicon(slice(-1, None)),
)
