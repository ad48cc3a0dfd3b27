"""Read few-shot tasks: each a YAML of a few lines beside a file of JSON lines, checked and rendered to prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from malmoi.configs.ranges import PositiveInt
from malmoi.configs.validate import check_settings
from malmoi.errors import UserError, nearest_name_hint
from malmoi.evaluation.fewshot.arithmetic import OPERATIONS, Arithmetic, problems
from malmoi.jsonl import json_rows

OutputType = Literal["multiple_choice", "generate_until", "loglikelihood"]
BUILT_IN = Path(__file__).parent / "tasks"
ALL_TASKS = "all"
METRICS_OF: dict[OutputType, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "macro_f1", "pearson", "spearman"),
    "generate_until": ("exact_match", "f1", "bleu", "chrf"),
    "loglikelihood": ("acc", "perplexity"),
}
CORRELATIONS = {"pearson", "spearman"}


@dataclass(frozen=True)
class TaskFile:
    """The content of a task's YAML; names are those of lm_eval where it has the same field."""

    task: str
    """Name of the task."""
    output_type: OutputType
    """multiple_choice: the most likely of `doc_to_choice`; generate_until: text up to `until`; loglikelihood: whether
    the target is the most likely text."""
    doc_to_text: str
    """The prompt, a Jinja template over the fields of a row."""
    doc_to_target: str
    """The field of a row that holds the answer: an index into the choices or one of them; a text, or a list of texts
    that are all right."""
    metrics: tuple[str, ...]
    """Metrics to compute."""
    data: str = ""
    """JSON lines to evaluate on, relative to the YAML, plain or .gz."""
    examples: str = ""
    """JSON lines that examples are chosen from; none: `data`, without the row that is asked about."""
    arithmetic: str = ""
    """An arithmetic task of GPT-3, generated from a seed in place of `data`, such as 2da."""
    doc_to_choice: tuple[str, ...] | str = ()
    """Choices, or the field of a row that holds them."""
    labels: tuple[Any, ...] = ()
    """Values of the target for the choices, in order, where they are neither indices nor the choices themselves."""
    description: str = ""
    """Text before the first example."""
    group: str = ""
    """Name that several tasks share, to be run together."""
    target_delimiter: str = " "
    """Text between prompt and answer."""
    fewshot_delimiter: str = "\n\n"
    """Text between examples."""
    until: tuple[str, ...] = ("\n",)
    """Strings that end an answer."""
    max_gen_toks: PositiveInt = 32
    """Tokens of an answer at most."""
    bleu_tokenize: Literal["13a", "char"] = "13a"
    """sacrebleu's tokenization: 13a for English, char for Korean."""
    license: str = ""
    """License of the data, kept with the results."""


@dataclass(frozen=True)
class Document:
    """A row with its prompt."""

    prompt: str
    choices: tuple[str, ...]
    """Empty for tasks without choices."""
    gold: int
    """Index of the right choice."""
    answers: tuple[str, ...]
    """Texts that are all right; examples show the first."""
    value: float = 0.0
    """The target as a number, for correlations."""


@dataclass(frozen=True)
class FewshotTask:
    """A task and its documents."""

    settings: TaskFile
    documents: tuple[Document, ...]
    examples: tuple[Document, ...]
    shares_examples: bool
    """Whether examples are chosen from the documents themselves."""


def built_in_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that come with Malmoi."""
    return tuple(sorted(file.stem for file in BUILT_IN.glob("*.yaml")))


def load_tasks(names: Sequence[str]) -> tuple[FewshotTask, ...]:
    """Return the tasks that `names` select: built-in names, patterns with `*`, groups, `all`, or paths of YAML files.

    Raises:
        UserError: a name is unknown, or a file cannot be used.
    """
    files: dict[Path, None] = {}
    for name in names:
        files |= dict.fromkeys(_files_of(name))
    tasks = tuple(_load(file) for file in files)
    seen: set[str] = set()
    for task in tasks:
        if task.settings.task in seen:
            raise UserError(f"two tasks are called '{task.settings.task}'; rename one in its YAML")
        seen.add(task.settings.task)
    return tasks


def _files_of(name: str) -> list[Path]:
    if name.endswith((".yaml", ".yml")):
        return [Path(name)]
    known = built_in_tasks()
    groups = _groups(known) if name not in known else {}
    if name == ALL_TASKS:
        found: Sequence[str] = known
    else:
        found = groups.get(name) or [task for task in known if fnmatchcase(task, name)]
    if not found:
        hint = nearest_name_hint(name, [*known, *groups, ALL_TASKS])
        raise UserError(f"no task '{name}'{hint} Tasks: {', '.join(known)}; or the path of a .yaml")
    return [BUILT_IN / f"{task}.yaml" for task in found]


def _groups(known: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in known:
        group = _read_yaml(BUILT_IN / f"{name}.yaml").get("group")
        if group:
            groups.setdefault(str(group), []).append(name)
    return groups


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such task file; give a .yaml as docs/fewshot.md shows") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: no valid YAML ({' '.join(str(error).split())}); fix it") from error
    if not isinstance(read, dict):
        raise UserError(f"{file}: not a task: write `name: value` lines as docs/fewshot.md shows")
    return read


def read_task_file(file: Path) -> TaskFile:
    """Return the content of a task's YAML, checked.

    Raises:
        UserError: a field is missing, unknown, or of a wrong value.
    """
    read = _read_yaml(file)
    known = {entry.name: entry for entry in fields(TaskFile)}
    for name in read:
        if name not in known:
            raise UserError(f"{file}: unknown field '{name}'{nearest_name_hint(str(name), known)}")
    missing = [name for name, entry in known.items() if entry.default is MISSING and name not in read]
    if missing:
        raise UserError(f"{file}: no '{missing[0]}'; add it, see docs/fewshot.md")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    settings = TaskFile(**values)
    try:
        check_settings(settings)
    except UserError as error:
        raise UserError(f"{file}: {str(error).removesuffix('; see --help')}; see docs/fewshot.md") from error
    _check(file, settings)
    return settings


def _check(file: Path, settings: TaskFile) -> None:
    for name in ("metrics", "until"):
        if not all(getattr(settings, name) or [""]):
            raise UserError(f"{file}: {name} is empty, or holds an empty text; give one or more")
    allowed = METRICS_OF[settings.output_type]
    for metric in settings.metrics:
        if metric not in allowed:
            raise UserError(
                f"{file}: no metric '{metric}' for {settings.output_type}{nearest_name_hint(metric, allowed)} "
                f"Choose of {', '.join(allowed)}"
            )
    has_choices = settings.output_type == "multiple_choice"
    if has_choices and not settings.doc_to_choice:
        raise UserError(f"{file}: no 'doc_to_choice'; multiple_choice needs the choices, or the field that holds them")
    listed = isinstance(settings.doc_to_choice, tuple)
    if settings.labels and listed and len(settings.labels) != len(settings.doc_to_choice):
        raise UserError(
            f"{file}: {len(settings.labels)} labels for {len(settings.doc_to_choice)} choices; name each once"
        )
    if not settings.data and not settings.arithmetic:
        raise UserError(f"{file}: no 'data'; name the file of JSON lines that is scored")
    if settings.arithmetic and settings.arithmetic not in OPERATIONS:
        raise UserError(
            f"{file}: no arithmetic '{settings.arithmetic}'{nearest_name_hint(settings.arithmetic, OPERATIONS)} "
            f"Choose of {', '.join(OPERATIONS)}"
        )


def _load(file: Path) -> FewshotTask:
    settings = read_task_file(file)
    template = _Template(file, settings)
    if settings.arithmetic:
        rows = problems(Arithmetic(settings.arithmetic))
        documents = [template.document(row, "") for row in rows.documents]
        examples = [template.document(row, "") for row in rows.examples]
        return FewshotTask(settings, tuple(documents), tuple(examples), False)
    data = file.parent / settings.data
    documents = [template.document(row, place) for row, place in _rows(data)]
    if not settings.examples:
        return FewshotTask(settings, tuple(documents), tuple(documents), True)
    examples = [template.document(row, place) for row, place in _rows(file.parent / settings.examples)]
    return FewshotTask(settings, tuple(documents), tuple(examples), False)


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    return json_rows(file, "name the task's JSON lines, relative to its YAML")


class _Template:
    """Renders the rows of one task, sandboxed, since a task file may come from anyone."""

    def __init__(self, file: Path, settings: TaskFile) -> None:
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
        try:
            self._names = meta.find_undeclared_variables(environment.parse(settings.doc_to_text))
            self._template = environment.from_string(settings.doc_to_text)
        except TemplateError as error:
            raise UserError(f"{file}: doc_to_text is no valid template ({error}); fix it") from error
        self._file = file
        self._settings = settings

    def document(self, row: Mapping[str, Any], place: str) -> Document:
        for name in sorted(self._names):
            value = self._field(row, name, place)
            if isinstance(value, str) and not value.strip():
                raise UserError(f"{place}: the text of '{name}' is empty; fill it, or leave the row out")
        try:
            prompt = self._template.render(**row)
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(f"{place}: doc_to_text of {self._file} cannot be filled ({error})") from error
        if not prompt.strip():
            raise UserError(f"{place}: the prompt is empty; fill the row's text")
        target = self._field(row, self._settings.doc_to_target, place)
        if self._settings.output_type == "multiple_choice":
            choices = self._choices(row, place)
            if CORRELATIONS & set(self._settings.metrics):
                return self._graded(prompt, choices, target, place)
            return Document(prompt, choices, self._gold(target, choices, place), ())
        answers = target if isinstance(target, list) else [target]
        texts = tuple(str(answer) for answer in answers)
        if not texts or not all(text.strip() for text in texts):
            raise UserError(f"{place}: the answer in '{self._settings.doc_to_target}' is empty; fill it")
        return Document(prompt, (), 0, texts)

    def _field(self, row: Mapping[str, Any], name: str, place: str) -> Any:
        if name not in row or row[name] is None:
            raise UserError(f"{place}: no field '{name}'{nearest_name_hint(name, row)} {self._file} needs it")
        return row[name]

    def _choices(self, row: Mapping[str, Any], place: str) -> tuple[str, ...]:
        named = self._settings.doc_to_choice
        choices = self._field(row, named, place) if isinstance(named, str) else list(named)
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise UserError(f"{place}: the choices are {choices!r}; give two texts or more")
        return tuple(choices)

    def _graded(self, prompt: str, choices: tuple[str, ...], target: Any, place: str) -> Document:
        """Return a document whose answer is a number; examples show the nearest choice."""
        try:
            values = [float(choice) for choice in choices]
            value = float(target)
        except (TypeError, ValueError):
            shown = f"{target!r} among {', '.join(choices)}"
            raise UserError(f"{place}: a correlation needs numbers, not {shown}") from None
        gold = min(range(len(values)), key=lambda index: abs(values[index] - value))
        return Document(prompt, choices, gold, (), value)

    def _gold(self, target: Any, choices: tuple[str, ...], place: str) -> int:
        values: tuple[Any, ...] = self._settings.labels or choices
        if target in values:
            return values.index(target)
        if not self._settings.labels and isinstance(target, int) and 0 <= target < len(choices):
            return int(target)
        raise UserError(
            f"{place}: the answer {target!r} is none of {', '.join(map(repr, values))}, nor the index of one"
        )
