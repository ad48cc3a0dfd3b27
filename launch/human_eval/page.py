"""The page of a blind test, in Gradio. Nothing that it sends to a browser reveals who wrote a text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI

from malmoi.evaluation.human_eval.items import JudgeTest
from malmoi.evaluation.human_eval.ratings import SCALE, NextItem, Rating, Ratings
from malmoi.launch.human_eval import TEMPLATES
from malmoi.launch.human_eval.words import WORDS, Language, Words, accepted_language

STYLE = """
.gradio-container { max-width: 46rem !important; margin: 0 auto !important; }
.judge h1 { font-size: 1.4rem; margin: .5rem 0; word-break: keep-all; }
.judge p { line-height: 1.7; margin: .7rem 0; white-space: pre-wrap; overflow-wrap: anywhere; word-break: keep-all; }
.judge .opening, .judge .continuation { font-size: 1.05rem; }
#answer .wrap { flex-direction: column; }
.judge .opening { font-weight: 700; }
.judge .place, .judge .note { opacity: .75; font-size: .9rem; }
"""
LANGUAGES = [("한국어", "ko"), ("English", "en")]
_RATER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Visitor:
    """The state that a browser keeps between two visits."""

    rater: str
    """Id of the rater; empty before they start."""
    language: Language

    def as_stored(self) -> dict[str, str]:
        """Return the state for the browser's storage."""
        return {"rater": self.rater, "language": self.language}


def visitor_of(stored: object, ratings: Ratings, language: Language) -> Visitor:
    """Return the visitor that a browser's storage names; it may have been changed, so an unknown one counts as new."""
    kept = stored if isinstance(stored, dict) else {}
    rater, chosen = kept.get("rater"), kept.get("language")
    is_known = isinstance(rater, str) and _RATER.fullmatch(rater) is not None and ratings.knows(rater)
    return Visitor(str(rater) if is_known else "", chosen if chosen in WORDS else language)


def page_html(words: Words, paragraphs: Sequence[str] = (), now: NextItem | None = None, note: str = "") -> str:
    """Return the body of the page: paragraphs, or the text that is to be rated; the template escapes both."""
    page = TEMPLATES.get_template("judge.page.html")
    return page.render(words=words, paragraphs=paragraphs, now=now, note=note)


def judge_app(test: JudgeTest, ratings: Ratings) -> FastAPI:
    """Return the page as a web application."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # fetched from nowhere
    blocks = _blocks(test, ratings)
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size=1,  # bytes: Gradio accepts uploads from anyone, and this page needs none
        theme=theme,
        css=STYLE,
    )
    return app


def _blocks(test: JudgeTest, ratings: Ratings) -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False, title="Malmoi") as blocks:
        stored = gr.BrowserState({}, storage_key=f"malmoi-judge-{test.id}", secret=test.id)
        language = gr.Radio(LANGUAGES, show_label=False, container=False, elem_id="language")
        body = gr.HTML(elem_classes="judge")
        # The browser says which text its answer is of: a second window, or a restarted server, mixes nothing up.
        shown = gr.Textbox(visible="hidden", elem_id="shown")
        # With its values from the start: a page that is older than the server still sends what is accepted.
        answer = gr.Radio(list(zip(WORDS["en"].scale, SCALE, strict=True)), visible=False, elem_id="answer")
        send = gr.Button(visible=False, variant="primary", elem_id="next")
        start = gr.Button(visible=False, variant="primary", elem_id="start")
        outputs = [stored, language, body, shown, answer, send, start]

        def draw(visitor: Visitor, note: str = "", chosen: Rating | None = None) -> list[Any]:
            words = WORDS[visitor.language]
            choices = list(zip(words.scale, SCALE, strict=True))
            head = [visitor.as_stored(), gr.update(value=visitor.language)]
            hidden = gr.update(visible=False)
            if not visitor.rater:
                button = gr.update(value=words.start, visible=True)
                return [*head, page_html(words, words.introduction), "", hidden, hidden, button]
            now = ratings.next_item(visitor.rater)
            if now.item is None:
                return [*head, page_html(words, [words.thanks]), "", hidden, hidden, hidden]
            kept = chosen.answer if chosen is not None and chosen.item == now.item.id else None
            radio = gr.update(choices=choices, label=words.question, visible=True, value=kept)
            button = gr.update(value=words.next, visible=True)
            return [*head, page_html(words, now=now, note=note), now.item.id, radio, button, hidden]

        def arrive(kept: object, request: gr.Request) -> list[Any]:
            accepted = request.headers.get("accept-language", "")
            return draw(visitor_of(kept, ratings, accepted_language(accepted)))

        def begin(kept: object, chosen: Language) -> list[Any]:
            visitor = visitor_of(kept, ratings, chosen)
            return draw(visitor if visitor.rater else Visitor(ratings.new_rater(), visitor.language))

        def rate(kept: object, chosen: Language, item: str, given: int | None) -> list[Any]:
            visitor = visitor_of(kept, ratings, chosen)
            if visitor.rater and test.item(item) is not None:
                if given is None:
                    return draw(visitor, WORDS[visitor.language].nothing_chosen)
                ratings.write(Rating(visitor.rater, item, given))
            return draw(visitor)

        def translate(kept: object, chosen: Language, item: str, given: int | None) -> list[Any]:
            visitor = Visitor(visitor_of(kept, ratings, chosen).rater, chosen)
            return draw(visitor, chosen=None if given is None else Rating(visitor.rater, item, given))

        common: dict[str, Any] = {"outputs": outputs, "api_visibility": "private", "show_progress": "hidden"}
        blocks.load(arrive, [stored], **common)
        start.click(begin, [stored, language], **common)
        send.click(rate, [stored, language, shown, answer], **common)
        language.input(translate, [stored, language, shown, answer], **common)
    return blocks
