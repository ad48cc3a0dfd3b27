"""`malmoi judge make | serve | results`."""

import contextlib
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.command_line import parse_settings
from configs.commands import JudgeMakeOptions, JudgeResultsOptions, JudgeServeOptions
from configs.errors import EXIT_DONE, BadInput, require_argument, require_options
from launch.option_names import bare_names
from launch.subcommands import run_subcommand

RESULTS_PAGE = "results.html"
MISSING = "{name} is not installed; install it with `pip install 'malmoi[judge]'`"


def main(argv: Sequence[str]) -> int:
    """Find the subcommand and run it."""
    return run_subcommand("judge", SUBCOMMANDS, _usage(), argv)


def _usage() -> str:
    return (
        "usage: malmoi judge make | serve | results\n\n"
        "  make     have models continue openings of held-out text, beside what people wrote\n"
        "  serve    show the texts to raters, one at a time, on a page: malmoi judge serve DIR\n"
        "  results  what they found out: malmoi judge results DIR\n\n"
        "`malmoi judge make --help` lists the options."
    )


def make(argv: Sequence[str]) -> int:
    """Make the texts of a test."""
    about = "Make the texts of a blind test: openings of held-out text, continued by people, by models, and badly."
    options = parse_settings(JudgeMakeOptions, argv, "malmoi judge make", about, lists=("model",))
    require_options("judge make", model=bool(options.model), data=bool(options.data), out=bool(options.out))
    from inference.judge_items import check_no_test, count_authors, write_test

    folder = Path(options.out)
    check_no_test(folder)
    from rich.console import Console

    from inference.judge_make import make_test

    with bare_names(JudgeMakeOptions), Console(stderr=True).status("loading") as status:
        test = make_test(options, status.update)
    file = write_test(folder, test)
    print(f"{file}: {len(test.items)} texts, {count_authors(test.items)}; show them with `malmoi judge serve {folder}`")
    return EXIT_DONE


def serve(argv: Sequence[str]) -> int:
    """Serve the page until stopped."""
    about = "Show the texts of a blind test to raters, one at a time, unlabelled, until Ctrl-C."
    options = parse_settings(JudgeServeOptions, argv, "malmoi judge serve", about, positional="path")
    require_argument("judge serve", "PATH", bool(options.path))
    from inference.judge_items import read_test
    from inference.judge_ratings import Ratings

    test = read_test(Path(options.path))
    listening = _listening(options.host, options.port)
    with listening:
        ratings = Ratings(Path(options.path), test)
        try:
            import uvicorn

            from launch.judge_page import judge_app
        except ModuleNotFoundError as error:
            raise BadInput(MISSING.format(name=error.name)) from error
        app = judge_app(test, ratings)
        print(f"{len(test.items)} texts at http://{options.host}:{listening.getsockname()[1]}", flush=True)
        # uvicorn raises Ctrl-C again when it has shut down.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
    return EXIT_DONE


def _listening(host: str, port: int) -> socket.socket:
    """A socket at `host` and `port`; port 0: any that is free."""
    if not 0 <= port < 2**16:
        raise BadInput(f"--port {port}: choose 0 to 65535")
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"--host {host} --port {port}: cannot be listened at ({reason}); choose another") from error


def results(argv: Sequence[str]) -> int:
    """Print what the raters found out, and write it as a page."""
    about = "What the raters of a blind test found out: a table here, and a page with a figure."
    options = parse_settings(JudgeResultsOptions, argv, "malmoi judge results", about, positional="path")
    require_argument("judge results", "PATH", bool(options.path))
    from inference.judge_items import read_test
    from inference.judge_ratings import RATINGS_FILE, Ratings

    folder = Path(options.path)
    test = read_test(folder)
    if not (folder / RATINGS_FILE).is_file():
        raise BadInput(f"{folder}: nobody has answered yet; show the texts with `malmoi judge serve {folder}`")
    try:
        from inference.judge_results import judge_results
    except ModuleNotFoundError as error:
        raise BadInput(MISSING.format(name=error.name)) from error
    from launch.judge_report import print_results, write_page

    found = judge_results(test, Ratings(folder, test).all(), options.least_control)
    file = write_page(found, Path(options.out) if options.out else folder / RESULTS_PAGE)
    if options.json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
        return EXIT_DONE
    print_results(found)
    print(file)
    return EXIT_DONE


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"make": make, "serve": serve, "results": results}
