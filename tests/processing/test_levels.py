# SPDX-License-Identifier: Apache-2.0
"""The rules that choose a level from the text."""

import pytest

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing import levels
from sam3i.processing.levels import classify_level
from sam3i.processing.row_layout import read_levels

CONCEPT = """
dog | dogs | the dog | a dog | all dogs | every dog | each person | Dog. | DOG | traffic light | fire hydrant
dining table | washing machine | the washing machine | swimming pool | parking meter | cutting board | building
yellow school bus | red car | a red car | striped cat | black and white cat | wooden chair | broken window
glass of water | bunch of bananas | statue of liberty | pair of scissors | ceiling fan | ring | bed | hot dog | nest
front door | top hat | teddy bear | men's shoes | animal | animals | object | person wearing-hat | trash can
can of soda | segment dogs | find the dog | show me all the cats | please highlight every car | mask | the mask
spot | forest | T-shirt | 7-up | side mirror | soldier | batsman | potted plant | unripe banana
grey hair
"""
SIMPLE = """
the brown dog | the brown dog on the left | dog on the left | left dog | leftmost cup | the largest elephant
the red car | two dogs | second giraffe from the right | man in blue | man riding a horse | woman wearing a hat
the man next to the bike | cup behind the plate | the dog's tail | wheel of the car | the dog that is brown
the dog that is lying on the sofa | dog and cat | cats, dogs | person without a helmet | the parked cars
smaller dog | the tallest building | the 3rd bottle | everyone's umbrella | dog under the table
left | left-most dog | top-left window
the one on the left | guy on far left | dog is sleeping | all dogs except the brown one | the animal on the left
animal lying on the couch | the vehicle parked on the left | the vehicle that is red
Can you segment the dog on the left?
could you please find the red car | segment the umbrella next to the woman, please | both horses | no dog
the running dog | dog running | the children playing in the garden | last slice of pizza | object on the table
"""
COMPLEX = """
the animal waiting to be let out | What is the dog chasing? | which dog is on the left | where is the dog
something to drink from | the thing that keeps you dry | what you use to cut bread | the tool used for cutting paper
Which animal is closest to the door? | The pet waiting to go outside | the object that tells the time
the knife used to cut bread | an appliance for keeping food cold | the vehicle that carries many people
find something to sit on | I am thirsty | if it rains, what should I take | the item you would put on your head
the most dangerous animal | the healthiest food | the one who is crying | someone who looks bored
the part of the car that lights the road | a place to sit | the creature about to catch the frisbee
who is winning | whatever makes the room brighter | is there a dog in the picture | the food most likely to spoil
the person responsible for safety | furniture designed for two people | things that could break | to sit on
Can you segment the food that tastes spicy? | it is cold, what can we wear | the container that can hold water
the garment protecting her hands | people who might be late | the device you answer calls with
objects made for children to play with | the animal known for its long memory | the plant that stores water
it smells bad here, where does it come from | the structure built to cross the river
"""


def _table():
    for level, block in (("concept", CONCEPT), ("simple", SIMPLE), ("complex", COMPLEX)):
        for text in block.replace("\n", "|").split("|"):
            if text.strip():
                yield text.strip(), level


CASES = list(_table())


def test_the_table_is_large_and_balanced():
    counts = {level: sum(expected == level for _, expected in CASES) for level in ("concept", "simple", "complex")}
    assert len(CASES) >= 120 and min(counts.values()) >= 30, counts


@pytest.mark.parametrize(("text", "level"), CASES)
def test_level_of(text, level):
    assert classify_level(text) is InstructionLevel(level)


# the category names of COCO, which the rules were not written for
COCO = """person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking
meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|
skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|
fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|
bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|
vase|scissors|teddy bear|hair drier|toothbrush"""


def test_category_names_are_concepts():
    names = [" ".join(name.split()) for name in COCO.split("|")]
    assert len(names) == 80
    assert [name for name in names if classify_level(name) is not InstructionLevel.CONCEPT] == []


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_empty_text_is_an_error(text):
    with pytest.raises(ValueError, match="must not be empty"):
        classify_level(text)


@pytest.mark.parametrize("text", [None, 3, ["dog"], b"dog"])
def test_other_types_are_errors(text):
    with pytest.raises(TypeError, match="must be a string"):
        classify_level(text)


@pytest.mark.parametrize("text", ["?", "...", "🐶", "!?", "'s", "a", "the", "please", "of", "-", "1", "can you"])
def test_odd_text_gets_some_level(text):
    assert isinstance(classify_level(text), InstructionLevel)


FOREIGN = [
    "左边的狗",
    "собака слева",
    "猫",
    "собака",
    "الكلب",
    "犬",
    "der Hund links",
    "le chien rouge",
    "el perro",
    "la macchina",
    "🐶",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_what_the_rules_cannot_read_is_never_bypassed_in_silence(text, monkeypatch):
    said = []
    monkeypatch.setattr(levels, "_warn_once", said.append)
    assert classify_level(text) is InstructionLevel.SIMPLE
    assert len(said) == 1 and "another script or language" in said[0]
    assert read_levels(None, [text], None, auto_levels="router") == [-1]
    assert len(said) == 2 and "the router's guess" in said[1]


def test_english_is_left_to_the_router_in_silence(monkeypatch):
    monkeypatch.setattr(levels, "_warn_once", lambda _: pytest.fail("it was read"))
    assert read_levels(None, ["the red dog", "café", None], None, auto_levels="router") == [-1, -1, 0]


@pytest.mark.parametrize("text", ["café", "crème brûlée", "jalapeño", "the café on the left", "poster of das boot"])
def test_borrowed_words_are_english(text, monkeypatch):
    monkeypatch.setattr(levels, "_warn_once", lambda _: pytest.fail("it was not read"))
    classify_level(text)
