"""The texts of a blind test's pages, in Korean and in English."""

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


@dataclass(frozen=True)
class ResultWords:
    """The texts of the results in one language."""

    name: str
    """Of the language."""
    title: str
    """With {raters}."""
    title_of_one: str
    """Where there is one rater."""
    accuracy: str
    answers: str
    accuracy_head: tuple[str, ...]
    answers_head: tuple[str, ...]
    people: str
    control: str
    of: str
    """With {part} and {total}."""
    interval: str
    """With {low} and {high}, in percent."""
    how_to_read: str
    no_agreement: str
    agreement: str
    """With {kappa}, {pairs} and {texts}."""
    excluded: str
    """With {raters}."""
    one_rater: str
    axis: str
    """Of the figure."""
    rater: str
    raters: str
    mean: str


RESULT_WORDS: dict[Language, ResultWords] = {
    "ko": ResultWords(
        name="한국어",
        title="사람일까, 기계일까? 평가자 {raters}명의 결과",
        title_of_one="사람일까, 기계일까? 평가자 1명의 결과",
        accuracy="정확도",
        answers="답",
        accuracy_head=(
            *("글쓴이", "평가자", "정확도", "95% 신뢰구간", "50% 대비 p", "대조군 대비 t"),
            "대조군 대비 p",
        ),
        answers_head=("글쓴이", "글", "답", "모르겠음", "기계라고 답함", "비율", "정확 95% 신뢰구간"),
        people="사람",
        control="대조군",
        of="{total}개 중 {part}개",
        interval="{low:.1f}~{high:.1f}%",
        how_to_read=(
            "정확도는 평가자가 맞힌 글의 비율입니다. 사람의 글과 해당 글쓴이의 글에 같은 비중을 두고 ‘모르겠음’은 뺀 "
            "뒤, 평가자들의 평균을 냅니다. 찍으면 50%입니다. 50%에 가까울수록 그 모델의 글을 사람의 글과 구별하기 "
            "어렵습니다. 대조군은 일부러 나쁘게 생성한 글입니다."
        ),
        no_agreement=(
            "평가자 간 일치도: 정의되지 않습니다. 같은 글에 답한 평가자가 둘 이상 있고 답이 모두 같지는 않아야 합니다."
        ),
        agreement=(
            "평가자 간 일치도: 이차 가중 코언의 카파 {kappa:.3f}. 평가자 {pairs}쌍의 평균이며, 한 쌍이 함께 답한 글은 "
            "평균 {texts:.1f}편입니다."
        ),
        excluded="대조군 정확도가 너무 낮은 평가자 {raters}명은 제외했습니다.",
        one_rater=(
            "평가자가 한 명이므로 평가자에 대한 신뢰구간과 t 검정이 없습니다. 정확 신뢰구간은 답 하나하나를 독립된 "
            "표본으로 봅니다."
        ),
        axis="정확도, %",
        rater="평가자 한 명",
        raters="평가자",
        mean="평균과 95% 신뢰구간",
    ),
    "en": ResultWords(
        name="English",
        title="Person or machine? What {raters} raters found out",
        title_of_one="Person or machine? What 1 rater found out",
        accuracy="Accuracy",
        answers="Answers",
        accuracy_head=("writer", "raters", "accuracy", "95% interval", "p against 50%", "t to control", "p"),
        answers_head=(
            *("texts by", "texts", "answers", "cannot tell", "called a machine's", "share"),
            "exact 95% interval",
        ),
        people="people",
        control="control",
        of="{part} of {total}",
        interval="{low:.1f} to {high:.1f}%",
        how_to_read=(
            "Accuracy: the fraction of texts that a rater got right, people's and the writer's weighing the same and "
            "`cannot tell` excluded, mean over raters; 50% is guessing. The closer a model is to 50%, the harder it is "
            "to tell from people."
        ),
        no_agreement="Agreement of raters: undefined; it needs two who answered the same texts, not all alike.",
        agreement=(
            "Agreement of raters: Cohen's kappa with quadratic weights {kappa:.3f}, mean over pairs of raters (pairs: "
            "{pairs}; texts in common: {texts:.1f})."
        ),
        excluded="Raters excluded for too low an accuracy on the control: {raters}.",
        one_rater="One rater: no interval over raters and no t-test; the exact interval counts answers as draws.",
        axis="accuracy, %",
        rater="a rater",
        raters="raters",
        mean="mean and 95% interval",
    ),
}


def accepted_language(header: str) -> Language:
    """Return the language for a browser's Accept-Language header: English unless it prefers Korean."""
    return "ko" if header.lower().startswith("ko") else "en"
