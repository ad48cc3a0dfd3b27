"""Openings, and continuations that neither length nor ending reveals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.evaluation.human_eval.openings import LENGTH_TOLERANCE, cut_at_word, find_opening

WORDS = st.lists(st.text("가나다라마.abc", min_size=1, max_size=9), min_size=1, max_size=80)


@given(WORDS, st.integers(1, 300), st.sampled_from([" ", "\n", "  "]))
def test_a_cut_ends_at_a_word_near_the_wanted_length_and_never_at_the_texts_end(
    words: list[str], characters: int, gap: str
) -> None:
    text = gap.join(words)
    cut = cut_at_word(text, characters)
    ends = [sum(map(len, words[:n])) + len(gap) * (n - 1) for n in range(1, len(words))]
    near = [end for end in ends if abs(end - characters) <= LENGTH_TOLERANCE * characters]
    if cut is None:
        assert not near
        return
    assert text.startswith(cut) and len(cut) in near
    assert abs(len(cut) - characters) == min(abs(end - characters) for end in near)
    assert len(cut) < len(text)


def test_the_first_sentence_or_the_first_line_is_the_opening() -> None:
    rest = "그는 1545년 3.5리 밖에서 태어났다. " + "그리고 바다로 갔다. " * 20
    by_sentence = find_opening(f'이순신은 "장군이다." {rest}', "f:1", "sentence", 100, 50)
    assert by_sentence is not None
    assert (by_sentence.text, by_sentence.gap) == ('이순신은 "장군이다."', " ")
    assert by_sentence.prompt == by_sentence.text
    assert rest.startswith(by_sentence.continuation) and 90 <= len(by_sentence.continuation) <= 110
    by_line = find_opening(f"이순신의 생애. 전편\n\n{rest}", "f:1", "line", 100, 50)
    assert by_line is not None
    assert by_line.text == "이순신의 생애. 전편"
    assert by_line.prompt == "이순신의 생애. 전편\n\n"
    numbers = find_opening(f"거리는 3.5리이다. {rest}", "f:1", "sentence", 100, 50)
    assert numbers is not None and numbers.text == "거리는 3.5리이다."


@pytest.mark.parametrize(
    "document",
    [
        "",
        "한 문장뿐이다.",
        "끝이 없는 문장 " * 30,
        "짧다. 너무 짧다.",
        "가" * 201 + ". " + "나 " * 200,
        "다. " + "라" * 300,
    ],
)
def test_a_document_without_an_opening_or_with_little_after_it_is_not_used(document: str) -> None:
    assert find_opening(document, "f:1", "sentence", 100, 50) is None


def test_a_persons_last_word_is_never_shown_even_where_all_of_it_would_fit() -> None:
    found = find_opening(f"첫 문장이다. {'하나 둘 셋 ' * 10}마지막.", "f:1", "sentence", 1000, 10)
    assert found is not None
    assert found.continuation == ("하나 둘 셋 " * 10).rstrip()
