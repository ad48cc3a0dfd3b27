"""What `pip install` puts on a machine: one importable name, and every file that the code reads."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import malmoi
from tests.launching import ROOT, environment

ROOMS = sorted(link.name for link in (ROOT / "malmoi").iterdir() if link.is_symlink())
CACHES = shutil.ignore_patterns("__pycache__", "*.pyc", "*.nbi", "*.nbc")
SMALL = (
    "--model.n_layer=1",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--data.val_fraction=0.001",
    "--train.max_steps=2",
    "--schedule.warmup_steps=0",
    "--corpus.input=[package:data_prep/demo_text/film_reviews.jsonl.gz]",
    "--generate.max_new_tokens=4",
)


def shipped_files(checkout: Path) -> dict[str, bytes]:
    """Each file of the package by its path in a wheel."""
    files = [*(checkout / "malmoi").glob("*.py"), checkout / "malmoi" / "py.typed"]
    names = {f"malmoi/{file.name}": file.read_bytes() for file in files}
    for room in ROOMS:
        for file in (checkout / room).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                names[f"malmoi/{file.relative_to(checkout).as_posix()}"] = file.read_bytes()
    return names


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, since setuptools leaves folders behind that a later build would take files from."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("malmoi", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=CACHES)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def built_wheel(source: Path, out: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(out), str(source)], env=environment(), check=True)
    [wheel] = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return built_wheel(source, tmp_path_factory.mktemp("wheel"))


def test_malmoi_is_the_only_name_that_a_wheel_adds(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {"malmoi", f"malmoi-{malmoi.__version__}.dist-info"}


def test_a_wheel_holds_every_file_of_the_package_and_no_other(source: Path, wheel: zipfile.ZipFile) -> None:
    expected = shipped_files(source)
    assert {"malmoi/configs/demo.yaml", "malmoi/launch/templates/train_job.sh"} <= set(expected)
    packed = {name for name in wheel.namelist() if name.startswith("malmoi/")}
    assert packed == set(expected)
    # No link is left, and each file is the one of the checkout.
    assert all(wheel.read(name) == expected[name] for name in packed)


def test_a_source_archive_makes_the_same_wheel(source: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    program = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=source, env=environment(), check=True, capture_output=True)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    again = built_wheel(next(tmp_path.glob("malmoi-*/")), tmp_path / "wheel")
    assert sorted(again.namelist()) == sorted(wheel.namelist())


def test_an_installed_wheel_trains_from_an_empty_folder_beside_a_train_py_of_the_user(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    installed, folder = tmp_path / "site", tmp_path / "mine"
    wheel.extractall(installed)
    folder.mkdir()
    (folder / "train.py").write_text("raise SystemExit('the user\\'s own')\n", encoding="utf-8")
    env = {**environment(), "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "malmoi.train", "--config", "demo", "--run", "r", *SMALL]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "r" / "model" / "model.safetensors").is_file()


def canonical(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_names() -> dict[str, str]:
    """Top-level name of each import of another package -> a file that has it."""
    names: dict[str, str] = {}
    for name, content in shipped_files(ROOT).items():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}:{node.lineno}: a relative import"
                found = [node.module or ""]
            else:
                continue
            names |= {each.split(".")[0]: f"{name}:{node.lineno}" for each in found}
    return {name: place for name, place in names.items() if name not in sys.stdlib_module_names and name != "malmoi"}


NOT_DECLARED = {
    "triton": "comes with torch's builds for CUDA, and is used on GPUs only",
    "compression": "of Python 3.14's standard library",
    "_typeshed": "of type checkers",
}


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name, of in extras.items() if name != "dev" for line in of)]
    declared = {canonical(Requirement(line).name) for line in lines}
    distributions = packages_distributions()
    missing = {
        name: place
        for name, place in imported_names().items()
        if name not in NOT_DECLARED and not declared & set(map(canonical, distributions.get(name, [name])))
    }
    assert not missing


def test_no_package_is_declared_in_vain() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    distributions = packages_distributions()
    used = {canonical(each) for name in imported_names() for each in distributions.get(name, [name])}
    declared = {canonical(Requirement(line).name) for line in project["dependencies"]}
    assert declared - used == {"tensorboard"}  # by Accelerate's tracker
