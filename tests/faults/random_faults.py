"""Hours of random faults on one run: `python -m tests.faults.random_faults FOLDER --hours 3`.

Processes that train are killed, signaled, stopped and started twice, and the files of the run are damaged between two
starts, never more than the newest checkpoint and the small files. When the hours are over the run is trained to its
next checkpoint undisturbed, whose weights and optimizer state are compared with those of a run that nothing happened
to. A second call continues: what has happened is in FOLDER/faults.jsonl, a line each.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from malmoi.checked_json import checked_json
from malmoi.train.checkpoint.format import MODEL_FILE, OPTIMIZER_FILE, checkpoint_errors, checkpoint_names
from malmoi.train.checkpoint.storage import LocalStorage, checkpoint_name
from tests.conftest import small_corpus
from tests.launching import ROOT, environment

STEPS = 60_000
"""More than the hours last."""
COMPARED_EVERY = 500
"""Steps between the checkpoints of an undisturbed run."""
LONGEST_LIFE = 25.0
"""Seconds after its first step within which a process meets its fault."""
START_LIMIT = 600.0
"""Seconds after which a process without a new step hangs."""
SETTINGS = f"""
corpus: {{input: [TEXT]}}
tokenizer: {{vocab_size: 2000}}
data: {{val_fraction: 0.1}}
model: {{n_layer: 2, n_head: 2, n_embd: 32, block_size: 32, dropout: 0.1}}
train: {{global_batch_size: 8, micro_batch_size: 4, max_steps: {STEPS}, precision: fp32}}
optim: {{lr: 0.001}}
eval: {{tokens: 2000, sample_tokens: 8}}
generate: {{max_new_tokens: 8}}
"""
DISTURBED = (
    *("--checkpoint.every=2", "--checkpoint.keep_last=4", "--eval.every=50", "--log.every=1", "--log.trackers=[]"),
    "--plugins=[tests.faults.slow_step]",
)
UNDISTURBED = (
    *(f"--checkpoint.every={COMPARED_EVERY}", "--checkpoint.keep_last=4", "--eval.every=2000", "--log.every=50"),
    *("--log.trackers=[]", "--plugins=[]"),
)


@dataclass(frozen=True)
class Happened:
    """One fault and what came of it."""

    fault: str
    seconds: float
    exit_code: int | None
    """Of the process that met it."""
    step: int
    """Of the newest checkpoint afterwards."""
    wrong: str
    """What should not have happened; empty: nothing."""
    said: str
    """The last line on stderr."""


class Scene:
    """The run, the chance, and the processes that train it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.run = folder, folder / "run"
        self.config = folder / "settings.yaml"
        self.chance = random.Random(seed)
        self.exposed: set[Path] = set()
        """Checkpoints that faults may have damaged: the newest when one happened."""

    def command(self, run: Path, words: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "malmoi.train", "--config", str(self.config), "--run", str(run), *words]

    def start(self, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / "stderr.txt").open("wb") as stderr:
            return subprocess.Popen(
                self.command(self.run, DISTURBED),
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=before,
            )

    @property
    def said(self) -> str:
        return (self.folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def checkpoints(self) -> list[Path]:
        """The newest first."""
        storage = LocalStorage(str(self.run / "checkpoints"))
        return [storage.root / name for name in checkpoint_names(storage)]

    @property
    def step(self) -> int:
        return max((int(path.name.removeprefix("step-")) for path in self.checkpoints), default=0)

    def live(self, process: subprocess.Popen[bytes]) -> None:
        """Let a process reach a step of its own, and then live for a random time."""
        before, end = len(self.log_lines()), time.monotonic() + START_LIMIT
        while process.poll() is None and len(self.log_lines()) <= before + 1:
            if time.monotonic() > end:
                raise TimeoutError("no step")
            time.sleep(0.05)
        end = time.monotonic() + self.chance.uniform(0, LONGEST_LIFE) ** 2 / LONGEST_LIFE
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)

    def log_lines(self) -> list[bytes]:
        file = self.run / "metrics.jsonl"
        return file.read_bytes().splitlines() if file.is_file() else []


def signaled(number: signal.Signals, times: int, expected: int) -> Callable[[Scene], int]:
    def fault(scene: Scene) -> int:
        process = scene.start()
        # Often while libraries are imported, text is read or the run is resumed.
        if scene.chance.random() < 0.7:
            scene.live(process)
        else:
            time.sleep(scene.chance.uniform(0, 6))
        for _ in range(times):
            if process.poll() is None:
                os.kill(process.pid, number)
                time.sleep(scene.chance.uniform(0, 0.02))
        code = process.wait(timeout=START_LIMIT)
        early = "steps of" not in scene.said
        if code not in (expected, -number) or (code == -number and number != signal.SIGKILL and not early):
            raise AssertionError(f"exit code {code} after {number.name}")
        return code

    return fault


def killed_while_it_writes(scene: Scene) -> int:
    """SIGKILL while a checkpoint is being written, moved or deleted."""
    process = scene.start()
    scene.live(process)
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        if any(entry.name.startswith(".step") for entry in os.scandir(scene.run / "checkpoints")):
            time.sleep(scene.chance.uniform(0, 0.01))
            break
    process.kill()
    return process.wait()


def paused(scene: Scene) -> int:
    """SIGSTOP for seconds, then SIGCONT, as a laptop that sleeps; then killed."""
    process = scene.start()
    scene.live(process)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(scene.chance.uniform(0, 3))
        os.kill(process.pid, signal.SIGCONT)
        scene.live(process)
    process.kill()
    return process.wait()


def started_twice(scene: Scene) -> int:
    """A second start while the first trains."""
    process = scene.start()
    scene.live(process)
    words = scene.command(scene.run, DISTURBED)
    alive = process.poll() is None
    second = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=START_LIMIT, check=False
    )
    still_alive = process.poll() is None
    process.kill()
    code = process.wait()
    if alive and still_alive and (second.returncode != 2 or "another process trains here" not in second.stderr):
        raise AssertionError(f"the second start ended with {second.returncode}: {second.stderr[-300:]}")
    if second.stderr.count("Traceback"):
        raise AssertionError("a traceback of the second start")
    return code


def full_disk(scene: Scene) -> int:
    """No file may grow beyond some size, as on a full disk: checkpoints fail, and sometimes a line of metrics."""
    limit = scene.chance.choice([4096, 100_000, 500_000])

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = scene.start(before)
    scene.live(process)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=START_LIMIT)
    if code not in (1, 75, 2, -signal.SIGTERM):
        raise AssertionError(f"exit code {code} on a full disk")
    return code


def then_killed(damage: Callable[[Scene], None]) -> Callable[[Scene], int]:
    """Damage a file between two starts; the next start lives with it, and is killed."""

    def fault(scene: Scene) -> int:
        damage(scene)
        process = scene.start()
        scene.live(process)
        code = process.poll()
        if code is not None:
            raise AssertionError(f"the start after the damage ended with {code}")
        process.kill()
        return process.wait()

    return fault


def flipped_bit(scene: Scene) -> None:
    """One bit of any file of the newest checkpoint."""
    if not scene.checkpoints:
        return
    file = scene.chance.choice(sorted(scene.checkpoints[0].iterdir()))
    content = bytearray(file.read_bytes())
    bit = scene.chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def cut_file(scene: Scene) -> None:
    """Any file of the newest checkpoint loses its end."""
    if not scene.checkpoints:
        return
    file = scene.chance.choice(sorted(scene.checkpoints[0].iterdir()))
    os.truncate(file, scene.chance.randrange(file.stat().st_size))


def lost_file(scene: Scene) -> None:
    """Any file of the newest checkpoint is gone, or the whole checkpoint."""
    if not scene.checkpoints:
        return
    file = scene.chance.choice([*sorted(scene.checkpoints[0].iterdir()), None])
    if file is None:
        shutil.rmtree(scene.checkpoints[0])
    else:
        file.unlink()


def damaged_log(scene: Scene) -> None:
    """Bytes of a log are overwritten, or it loses its end."""
    file = scene.run / scene.chance.choice(["metrics.jsonl", "samples.jsonl"])
    if not file.is_file() or not file.stat().st_size:
        return
    content = bytearray(file.read_bytes())
    place = scene.chance.randrange(len(content))
    content[place : place + 20] = scene.chance.randbytes(20)
    file.write_bytes(content if scene.chance.random() < 0.5 else content[:place])


def damaged_settings(scene: Scene) -> None:
    """`config.yaml` or `environment.json` is empty, torn or no text."""
    file = scene.run / scene.chance.choice(["config.yaml", "environment.json"])
    content = file.read_bytes() if file.is_file() else b""
    file.write_bytes(scene.chance.choice([b"", content[: len(content) // 3] + b'"', scene.chance.randbytes(200)]))


def foreign_result(scene: Scene) -> None:
    """A `result.json` that a run of other settings, or a torn write, has left."""
    other = checked_json({"settings": {}, "steps": 1, "samples": []})
    (scene.run / "result.json").write_bytes(scene.chance.choice([other, other[:30], b""]))


def leftovers(scene: Scene) -> None:
    """What a killed process leaves beside checkpoints and model."""
    folder = scene.run / "checkpoints" / f".step-{scene.step:06d}.{scene.chance.choice(['writing', 'deleted'])}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"half")
    (scene.run / ".model.writing").mkdir(exist_ok=True)


FAULTS: dict[str, tuple[int, Callable[[Scene], int]]] = {
    "SIGKILL": (6, signaled(signal.SIGKILL, 1, -9)),
    "SIGKILL while a checkpoint is written": (4, killed_while_it_writes),
    "SIGTERM": (3, signaled(signal.SIGTERM, 1, 75)),
    "SIGUSR1": (2, signaled(signal.SIGUSR1, 1, 75)),
    "SIGTERM five times": (2, signaled(signal.SIGTERM, 5, 75)),
    "SIGSTOP, SIGCONT, SIGKILL": (1, paused),
    "a second start": (1, started_twice),
    "a full disk": (2, full_disk),
    "a flipped bit in a checkpoint": (3, then_killed(flipped_bit)),
    "a cut file in a checkpoint": (2, then_killed(cut_file)),
    "a lost file or checkpoint": (2, then_killed(lost_file)),
    "a damaged log": (2, then_killed(damaged_log)),
    "damaged settings": (2, then_killed(damaged_settings)),
    "a foreign or torn result": (1, then_killed(foreign_result)),
    "leftovers of a killed process": (1, then_killed(leftovers)),
}
"""Weight and injection by name."""


def one_fault(scene: Scene) -> Happened:
    """Have one fault happen, and look at what it left."""
    names = list(FAULTS)
    [name] = scene.chance.choices(names, [FAULTS[each][0] for each in names])
    began, wrong, code = time.monotonic(), "", None
    scene.exposed.update(scene.checkpoints[:1])
    try:
        code = FAULTS[name][1](scene)
    except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
        wrong = str(error) or type(error).__name__
    said = scene.said
    if "Traceback" in said:
        wrong = wrong or "a traceback"
    for path in scene.checkpoints[1:]:
        if path not in scene.exposed:
            wrong = wrong or "; ".join(checkpoint_errors(path))
    last = said.strip().splitlines()[-1:] or [""]
    return Happened(name, round(time.monotonic() - began, 2), code, scene.step, wrong, last[0][-200:])


def prepare_scene(folder: Path, seed: int) -> Scene:
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.jsonl"
    if not text.is_file():
        text.write_text("".join(json.dumps({"text": each}) + "\n" for each in small_corpus()), encoding="utf-8")
    scene = Scene(folder, seed)
    scene.config.write_text(SETTINGS.replace("TEXT", str(text)), encoding="utf-8")
    return scene


def happened(folder: Path) -> list[Happened]:
    file = folder / "faults.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [Happened(**json.loads(line)) for line in lines]


def checkpoint_at(scene: Scene, run: Path, step: int) -> Path:
    """Train a run undisturbed until it has the checkpoint of `step`, and return that."""
    folder = run / "checkpoints" / checkpoint_name(step)
    with subprocess.Popen(scene.command(run, UNDISTURBED), cwd=ROOT, env=environment()) as process:
        while not folder.is_dir():
            if process.poll() is not None:
                raise RuntimeError(f"{run}: ended with {process.returncode} before step {step}")
            time.sleep(0.1)
        process.terminate()
    return folder


def main() -> int:
    """Return 0 where the run ended in the undisturbed run's bytes and nothing wrong was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=3.0, help="of faults, earlier calls on this folder included")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of this call")
    parser.add_argument("--compare", action="store_true", help="compare now, however many hours there were")
    given = parser.parse_args()
    before = happened(given.folder)
    scene = prepare_scene(given.folder, seed=len(before))
    spent, end = sum(each.seconds for each in before), time.monotonic() + 60 * given.minutes
    while spent < 3600 * given.hours and time.monotonic() < end and not given.compare:
        result = one_fault(scene)
        spent += result.seconds
        with (given.folder / "faults.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
        if result.wrong:
            print(result, flush=True)
            shutil.copy(given.folder / "stderr.txt", given.folder / f"wrong-{int(time.time())}.txt")
    seen = happened(given.folder)
    wrong = [each for each in seen if each.wrong]
    print(f"{len(seen)} faults in {spent / 3600:.2f} hours, {len(wrong)} wrong", flush=True)
    for name, count in Counter(each.fault for each in seen).most_common():
        print(f"  {count:5}  {name}", flush=True)
    if spent < 3600 * given.hours and not given.compare:
        return 0 if not wrong else 1
    step = (scene.step // COMPARED_EVERY + 1) * COMPARED_EVERY
    ours, theirs = (checkpoint_at(scene, run, step) for run in (scene.run, given.folder / "undisturbed"))
    files = (MODEL_FILE, OPTIMIZER_FILE)
    is_same = all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in files)
    print(f"step {step}: {'the' if is_same else 'OTHER BYTES than the'} undisturbed run's bytes", flush=True)
    return 0 if is_same and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
