import numpy as np
import pytest

from jax_excite.data.class_names import CLASS_NAMES, class_index
from jax_excite.errors import TargetError


def test_class_names_are_the_thousand_of_imagenet():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 1000
    assert all(name and name == name.strip() for name in CLASS_NAMES)
    known = {0: "tench", 217: "English springer", 497: "church", 701: "parachute"}
    assert {index: CLASS_NAMES[index] for index in known} == known
    assert CLASS_NAMES[999] == "toilet tissue"


@pytest.mark.parametrize(
    ("given", "index"),
    [
        ("church", 497),
        ("CHURCH", 497),
        ("english_springer", 217),
        (" English  springer ", 217),
        ("garbage-truck", 569),
        ("shih tzu", 155),
        ("bicycle built for two", 444),
        ("jack o' lantern", 607),
        ("crane bird", 134),
        ("0", 0),
        (" 999 ", 999),
        (497, 497),
        (np.int32(3), 3),
    ],
)
def test_class_index_of_a_name_or_index(given, index):
    assert class_index(given) == index


def test_every_unambiguous_name_finds_its_index():
    ambiguous = {"crane", "maillot", "Cardigan", "cardigan"}
    for index, name in enumerate(CLASS_NAMES):
        if name not in ambiguous:
            assert class_index(name.upper().replace(" ", "_")) == index


@pytest.mark.parametrize(
    ("name", "indices"),
    [("crane", (134, 517)), ("maillot", (638, 639)), ("cardigan", (264, 474))],
)
def test_an_ambiguous_name_is_refused_with_its_indices(name, indices):
    with pytest.raises(TargetError) as caught:
        class_index(name)
    assert all(str(index) in str(caught.value) for index in indices)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("chruch", "church"),
        ("truck", "garbage truck"),
        ("Ostritch", "ostr"),
        ("cat", "did you mean tiger cat, Persian cat"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, suggestion):
    with pytest.raises(TargetError, match=f"no class '{name}'.*{suggestion}"):
        class_index(name)


@pytest.mark.parametrize("name", ["", "-", "qqqqqqqqqqqq", "1" * 5000])
def test_a_name_like_no_other_is_refused(name):
    with pytest.raises(TargetError, match="give a class name or an index"):
        class_index(name)


@pytest.mark.parametrize("index", [-1, 1000, "1000", "-1"])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(TargetError, match=f"index {index} is out of range: give 0 to 999"):
        class_index(index)


@pytest.mark.parametrize("given", [1.0, None, np.array([1, 2])])
def test_what_is_neither_name_nor_integer_is_refused(given):
    with pytest.raises(TargetError, match="by a name or an integer"):
        class_index(given)


def test_other_class_names():
    names = ("cat", "dog", "Dog")
    assert class_index("CAT", names) == 0
    with pytest.raises(TargetError, match=r"1 \(dog\), 2 \(Dog\)"):
        class_index("dog", names)
    with pytest.raises(TargetError, match="0 to 2"):
        class_index(3, names)
