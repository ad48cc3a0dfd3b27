import re

import pytest

from malmoi.evaluation.fewshot.arithmetic import OPERATIONS, Arithmetic, problems


def right(question: str) -> int:
    """The value of a question, read by Python itself."""
    for word, sign in (("더하기", "+"), ("빼기", "-"), ("곱하기", "*")):
        question = question.replace(word, sign)
    assert re.fullmatch(r"[\d+\-*() ]+", question)
    return int(eval(question))


def test_the_ten_tasks_are_gpt3s() -> None:
    assert set(OPERATIONS) == {f"{n}d{kind}" for n in range(2, 6) for kind in "as"} | {"2dm", "1dc"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_is_right_and_no_question_comes_twice(operation: str) -> None:
    made = problems(Arithmetic(operation))
    rows = [*made.documents, *made.examples]
    assert (len(made.documents), len(made.examples)) == (500, 200)
    assert len({row["question"] for row in rows}) == 700
    assert all(int(row["answer"]) == right(row["question"]) for row in rows)


@pytest.mark.parametrize(("operation", "digits"), [("5da", 5), ("3ds", 3), ("2dm", 2), ("1dc", 1)])
def test_numbers_have_up_to_as_many_digits_as_the_name_says(operation: str, digits: int) -> None:
    numbers = [int(n) for row in problems(Arithmetic(operation)).documents for n in re.findall(r"\d+", row["question"])]
    assert max(numbers) < 10**digits
    assert max(numbers) >= 9 * 10 ** (digits - 1)
    assert min(numbers) < 10**digits / 10 + 1


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert problems(Arithmetic("2da")) == problems(Arithmetic("2da"))
    assert problems(Arithmetic("2da")) != problems(Arithmetic("2da", seed=1))
    # Seeds of text are hashed by Python's random itself and not by `hash`, which changes from process to process.
    assert problems(Arithmetic("2da")).documents[0] == PINNED


PINNED = {"question": "19 더하기 9", "answer": "28"}
