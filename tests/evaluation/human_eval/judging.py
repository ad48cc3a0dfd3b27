"""A small blind test whose results were computed by hand."""

from malmoi.evaluation.human_eval.items import Author, Item, JudgeTest
from malmoi.evaluation.human_eval.ratings import Rating

MODEL = "runs/secret-name/model"
AUTHORS: tuple[Author, ...] = ("human",) * 4 + ("model",) * 4 + ("control",) * 2

# The answers of three raters to those ten texts. Fractions right, `3` excluded:
#   a  people 2/3, model 2/4, control 2/2: accuracy 7/12 and 5/6
#   b  people 4/4, model 2/2, control 1/2: accuracy 1    and 3/4
#   c  people 2/4, model 1/4, control 2/2: accuracy 3/8  and 3/4
ANSWERS = {
    "a": (1, 2, 5, 3, 5, 4, 1, 2, 5, 5),
    "b": (1, 1, 1, 1, 4, 3, 3, 5, 5, 1),
    "c": (1, 2, 4, 5, 1, 1, 2, 5, 4, 5),
}


def small_test() -> JudgeTest:
    """Return ten texts; number n begins with `첫머리 n.`, and all look like code."""
    items = tuple(
        Item(
            id=f"{(number + 1) * 7919:016x}",
            author=author,
            model="" if author == "human" else MODEL,
            opening=f"첫머리 {number}. <b>굵게</b> ${{1 + 1}}",
            continuation=f"이어지는 글 <script>window.attacked = 1</script> {{{{x}}}} & 끝\n다음 줄 {number}",
            place="place",
            human_characters=10,
            seed=0,
        )
        for number, author in enumerate(AUTHORS)
    )
    return JudgeTest("5eed", (MODEL,), items)


def known_ratings() -> list[Rating]:
    """Return `ANSWERS` as ratings."""
    return [
        Rating(rater, item.id, answer)
        for rater, answers in ANSWERS.items()
        for item, answer in zip(small_test().items, answers, strict=True)
    ]
