"""`configs/accelerate/multi_node.yaml`: two machines, simulated by two launchers on this one."""

import subprocess
from pathlib import Path

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from tests.launch.cluster.cluster import free_ports
from tests.launching import ACCELERATE, ROOT, environment, step_losses
from tests.time_limits import seconds

CONFIG = str(ROOT / "configs" / "accelerate" / "multi_node.yaml")


def test_two_machines_under_accelerate_log_the_losses_of_one(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(settings_as_yaml(tiny_settings), encoding="utf-8")
    port = str(free_ports(1)[0])
    # One process a machine, and no GPU: the rest is as the file says.
    here = ("--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    machines = [
        subprocess.Popen(
            [
                *(ACCELERATE, "launch", "--config_file", CONFIG, *here, "--machine_rank", str(number)),
                *("-m", "malmoi.train", "--config", str(file), "--run", str(tmp_path / "run")),
            ],
            env={**environment(), "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        said = [machine.communicate(timeout=seconds(180))[1] for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    assert "2 ranks" in said[0]
    pairs = zip(step_losses(finished_run), step_losses(tmp_path / "run"), strict=True)
    assert max(abs(one - other) for one, other in pairs) < 5e-6
