"""`malmoi judge make`, `serve` and `results`."""

import contextlib
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from malmoi.configs.commands import JudgeMakeOptions, JudgeResultsOptions, JudgeServeOptions
from malmoi.configs.parser import parse_settings
from malmoi.errors import EXIT_DONE, UserError, require_argument, require_options
from malmoi.launch.commands import run_subcommand
from malmoi.launch.commands.options import errors_name_options, optional_packages, parse_with_plugins

RESULTS_PAGE = "results.html"
EXTRA = "judge"
PACKAGES = ("gradio", "fastapi", "uvicorn", "scipy", "sklearn")
"""What the extra installs that is imported here."""


def main(argv: Sequence[str]) -> int:
    """Run the subcommand that the first word names."""
    return run_subcommand("judge", SUBCOMMANDS, _usage(), argv)


def _usage() -> str:
    return (
        "usage: malmoi judge make | serve | results\n\n"
        "  make     make the texts: openings of documents, continued by people and by models\n"
        "  serve    show the texts to raters, one at a time, on a page: malmoi judge serve DIR\n"
        "  results  compute what the raters recognized: malmoi judge results DIR\n\n"
        "`malmoi judge make --help` lists the options."
    )


def make(argv: Sequence[str]) -> int:
    """Make the texts of a test."""
    about = "Make the texts of a blind test: openings continued by people, by models, and badly as a control."
    options = parse_with_plugins(JudgeMakeOptions, argv, "malmoi judge make", about, lists=("model",))
    require_options("judge make", model=bool(options.model), data=bool(options.data), out=bool(options.out))
    from malmoi.evaluation.human_eval.items import check_no_test, count_authors, write_test

    folder = Path(options.out)
    check_no_test(folder)
    from rich.console import Console

    from malmoi.evaluation.human_eval.make import make_test

    with errors_name_options(JudgeMakeOptions), Console(stderr=True).status("loading") as status:
        test = make_test(options, status.update)
    file = write_test(folder, test)
    print(f"{file}: {len(test.items)} texts, {count_authors(test.items)}; show them with `malmoi judge serve {folder}`")
    return EXIT_DONE


def serve(argv: Sequence[str]) -> int:
    """Serve the page until stopped."""
    about = "Show the texts of a blind test to raters, one at a time and without their authors, until Ctrl-C."
    options = parse_settings(JudgeServeOptions, argv, "malmoi judge serve", about, positional="path")
    require_argument("judge serve", "PATH", bool(options.path))
    from malmoi.evaluation.human_eval.items import read_test
    from malmoi.evaluation.human_eval.ratings import Ratings

    test = read_test(Path(options.path))
    listening = _listening_socket(options.host, options.port)
    with listening:
        ratings = Ratings(Path(options.path), test)
        with optional_packages(EXTRA, *PACKAGES):
            import uvicorn

            from malmoi.launch.human_eval.page import judge_app
        app = judge_app(test, ratings)
        print(f"{len(test.items)} texts at http://{options.host}:{listening.getsockname()[1]}", flush=True)
        # uvicorn raises Ctrl-C again when it has shut down.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
    return EXIT_DONE


def _listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`; port 0: any free one."""
    if port >= 2**16:
        raise UserError(f"--port {port}: choose 0 to 65535")
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); choose another") from error


def results(argv: Sequence[str]) -> int:
    """Print the results, and write them as a page."""
    about = "Compute the results of a blind test: a table here, and a page with a figure."
    options = parse_settings(JudgeResultsOptions, argv, "malmoi judge results", about, positional="path")
    require_argument("judge results", "PATH", bool(options.path))
    from malmoi.evaluation.human_eval.items import read_test
    from malmoi.evaluation.human_eval.ratings import RATINGS_FILE, Ratings

    folder = Path(options.path)
    test = read_test(folder)
    if not (folder / RATINGS_FILE).is_file():
        raise UserError(f"{folder}: nobody has answered yet; show the texts with `malmoi judge serve {folder}`")
    with optional_packages(EXTRA, *PACKAGES):
        from malmoi.evaluation.human_eval.results import judge_results
    from malmoi.launch.human_eval.report import print_results, write_page

    computed = judge_results(test, Ratings(folder, test).all(), options.min_control_accuracy)
    file = write_page(computed, Path(options.out) if options.out else folder / RESULTS_PAGE)
    if options.json:
        print(json.dumps(computed.as_dict(), ensure_ascii=False))
        return EXIT_DONE
    print_results(computed)
    print(file)
    return EXIT_DONE


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"make": make, "serve": serve, "results": results}
