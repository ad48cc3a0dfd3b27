"""The texts of a blind test's page, in Korean and in English."""

from dataclasses import dataclass
from typing import Literal

Language = Literal["ko", "en"]


@dataclass(frozen=True)
class Words:
    """The texts of the page in one language."""

    title: str
    introduction: tuple[str, ...]
    """Paragraphs."""
    start: str
    place: str
    """With {number} and {items}."""
    question: str
    scale: tuple[str, str, str, str, str]
    """Labels of `malmoi.evaluation.human_eval.ratings.SCALE`."""
    next: str
    nothing_chosen: str
    thanks: str
    language: str


WORDS: dict[Language, Words] = {
    "ko": Words(
        title="사람이 썼을까, 기계가 썼을까?",
        introduction=(
            "이제 글을 한 편씩 보게 됩니다. 굵은 글씨로 된 첫머리는 언제나 사람이 쓴 것입니다. "
            "그다음은 사람이 이어 썼을 수도 있고 언어 모형이 이어 썼을 수도 있습니다. 모든 글은 도중에 잘려 있습니다.",
            "어느 쪽인지 다섯 단계로 답해 주세요. 답은 바로 저장됩니다. 창을 닫았다가 같은 브라우저로 다시 오면 "
            "이어서 할 수 있습니다. 한 번 보낸 답은 바꿀 수 없습니다. 이름은 묻지 않습니다.",
        ),
        start="시작",
        place="{items}편 가운데 {number}번째",
        question="이어지는 부분은 누가 썼을까요?",
        scale=("분명히 사람", "아마 사람", "모르겠음", "아마 기계", "분명히 기계"),
        next="다음",
        nothing_chosen="먼저 답을 하나 골라 주세요.",
        thanks="모두 끝났습니다. 고맙습니다.",
        language="언어",
    ),
    "en": Words(
        title="Written by a person, or by a machine?",
        introduction=(
            "You will see one text at a time. Its beginning, in bold, was always written by a person. What follows may "
            "be by a person too, or by a language model. Every text is cut off somewhere.",
            "Say which, in five steps. Each answer is saved at once. You may close the window and continue later in "
            "the same browser. An answer that was sent cannot be changed. Your name is not asked.",
        ),
        start="Start",
        place="Text {number} of {items}",
        question="Who wrote what follows the beginning?",
        scale=("Surely a person", "Rather a person", "I cannot tell", "Rather a machine", "Surely a machine"),
        next="Next",
        nothing_chosen="Choose an answer first.",
        thanks="That was all. Thank you.",
        language="Language",
    ),
}


def accepted_language(header: str) -> Language:
    """Return the language for a browser's Accept-Language header: English unless it prefers Korean."""
    return "ko" if header.lower().startswith("ko") else "en"
