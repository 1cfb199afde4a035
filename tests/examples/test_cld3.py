"""How an example reads C++ source, and its n-grams, by hand."""

import cld3
import numpy as np
import pytest

SOURCE = """
const int P::kNumRows[] = {2, 3};
const float16 P::kScales0[] = {16256u,
    16128u};
const uint8 P::kBytes0[] = {128, 255, 0, 129};
const float P::kWeights0[] = {
    -0.5, 1e-05f, 2.25e+3, 7};
const char *const T::kTestStrEN =
    "a \\"quoted\\" "
    "word";
const char *const T::kTestStrDE = "ein Wort;";
"""


def test_arrays_have_the_values_and_types_of_the_source():
    found = cld3.arrays(SOURCE)
    assert {name: (values.dtype.name, values.tolist()) for name, values in found.items()} == {
        "NumRows": ("int64", [2, 3]),
        "Scales0": ("uint16", [16256, 16128]),
        "Bytes0": ("uint8", [128, 255, 0, 129]),
        "Weights0": ("float32", [-0.5, np.float32(1e-5), 2250.0, 7.0]),
    }


def test_scales_are_upper_halves_of_floats_and_bytes_have_128_as_zero():
    values = cld3.arrays(SOURCE) | {"EmbeddingsNumCols": np.array([2])}
    values |= {"EmbeddingsWeights0": values["Bytes0"], "EmbeddingsQuantScales0": values["Scales0"]}
    assert cld3.Identifier._embedding(values, 0).tolist() == [[0, 127], [-64, 0.5]]  # times 1 and 1/2


def test_strings_are_put_together():
    assert cld3.strings(SOURCE, "kTestStr") == {"EN": 'a "quoted" word', "DE": "ein Wort;"}


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        (" ab ", 1, {"^": 3, "$": 3, "a": 1, "b": 1}),  # the spaces around end and begin empty words
        (" ab ", 2, {"^$": 2, "^a": 1, "ab": 1, "b$": 1}),
        ("ab a", 3, {"^ab": 1, "ab$": 1, "^a$": 1}),
        ("ab", 4, {"^ab$": 1}),
        ("a", 4, {}),
    ],
)
def test_ngrams_do_not_span_spaces(text, size, expected):
    found = cld3.ngrams(text, size, 1 << 32)
    total = sum(expected.values())
    assert found == {cld3.hash32(ngram.encode()): count / total for ngram, count in expected.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" ab д ", {1: 2 / 3, 6: 1 / 3}),
        ("ωאعᄀあア", {5: 1 / 6, 7: 1 / 6, 8: 1 / 6, 9: 1 / 6, 10: 1 / 6, 11: 1 / 6}),
        ("éक𐍈", {2: 1 / 3, 3: 1 / 3, 4: 1 / 3}),
    ],
)
def test_kinds_of_script(text, expected):
    assert cld3.kinds_of_script(text) == expected


# what the C++ function Hash32WithDefaultSeed gives
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 3107809866),
        ("a", 1509103296),
        ("ab", 2726769766),
        ("abc", 1336693821),
        ("abcd", 2275522608),
        ("^до$", 3462885427),
        ("hessians", 313429591),
    ],
)
def test_hash(text, expected):
    assert cld3.hash32(text.encode()) == expected


@pytest.fixture
def network():
    found = cld3.Identifier.__new__(cld3.Identifier)  # without the parameters
    found.scripts = {"LATIN": 1, "CYRILLIC": 3, "HANGUL": 24, "HIRAGANA": 24}
    found.script = found._script
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("12, 3!", []),
        ("Two words.", [(1, " Two words ")]),
        ("...e\u0301t\u00e9 2", [(1, " e\u0301t\u00e9 ")]),  # a mark belongs to the script before it
        ("one два", [(1, " one "), (3, " два ")]),
        ("onдe", [(1, " onдe ")]),  # one letter of another script
        ("onдва", [(1, " on "), (3, " два ")]),
        ("漢字", [(24, " 漢字 ")]),
    ],
)
def test_spans_are_words_of_one_script(network, text, expected):
    assert list(network.spans(text)) == expected


def test_clean_lowers_letter_by_letter(network):
    assert network.clean("ДВА Words, İ") == " два  words İ "  # the lower case of İ would be two characters


@pytest.mark.parametrize(("text", "expected"), [(" abc ", 1), (" 한국어 漢 ", 102), (" 한 漢字 ", 24)])
def test_first_script_knows_korean(network, text, expected):
    assert network._first_script(text) == expected
