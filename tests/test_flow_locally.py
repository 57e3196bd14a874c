"""deploy-and-run.sh in a local workspace."""

import os
import subprocess
import sys
from pathlib import Path

from flow_script import (  # noqa: F401  # make_...: fixtures
    ROOT,
    SCORING_SCRIPT,
    make_folder,
)


def run_in_local_workspace(folder: Path, *command: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "local_workspace", "run", "--", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_whole_flow_twice_in_the_local_workspace(folder: Path) -> None:
    results = [run_in_local_workspace(folder, "./deploy-and-run.sh") for _ in range(2)]
    for result in results:
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\n12 rows\n") == 2  # of the two tables
        assert "n01.JPEG                                 1    0.500000  tench, Tinca tinca" in result.stdout
        assert "\nCompleted\n" in result.stdout
        assert " 0 refused" in result.stderr
    for place in (folder, folder / "outputs/high-throughput"):
        rows = (place / "named-outputs/score/predictions.csv").read_text(encoding="utf-8").splitlines()
        assert len(rows) == 12
    left = run_in_local_workspace(folder, "az", "ml", "batch-endpoint", "list", "--query", "[].name")
    assert left.stdout == "[]\n"


def test_a_failing_scoring_script_in_the_local_workspace(folder: Path) -> None:
    script = folder / "code/score-by-file/batch_driver.py"
    script.write_text('def init():\n    raise ValueError("the weights are gone")\n\ndef run(paths): ...\n')
    left = "az ml batch-endpoint list --query '[].name' -o tsv; az ml job list --query '[].status' -o tsv"
    result = run_in_local_workspace(folder, "bash", "-c", f"./deploy-and-run.sh; echo exit $?; {left}")
    assert result.stdout.endswith("exit 1\nFailed\n")
    assert "ValueError: the weights are gone" in result.stderr
    assert "Traceback" in result.stderr
    assert "while scoring with the default deployment" in result.stderr


def test_ended_in_the_local_workspace_it_leaves_what_others_made_and_a_second_run_succeeds(
    folder: Path,
) -> None:
    script = folder / "code/score-by-file/batch_driver.py"
    started = folder / "started"
    slow = f"\nimport time\nopen({str(started)!r}, 'w').close()\ntime.sleep(500)\n"
    script.write_text(SCORING_SCRIPT + slow, encoding="utf-8")
    (folder / "working.py").write_text(SCORING_SCRIPT, encoding="utf-8")
    (folder / "flow.sh").write_text(
        """
        az ml batch-endpoint create --file endpoint.yml --name another-endpoint --output none
        ./deploy-and-run.sh my-endpoint > interrupted.txt 2>&1 &
        until [ -e started ]; do sleep 0.1; kill -0 $! || break; done
        kill -TERM $!
        wait $!
        echo "exit $?"
        az ml job list --query '[].status' --output tsv
        cp working.py code/score-by-file/batch_driver.py
        ./deploy-and-run.sh my-endpoint
        echo "exit $?"
        az ml batch-endpoint list --query '[].name' --output tsv
        """,
        encoding="utf-8",
    )
    result = run_in_local_workspace(folder, "bash", "flow.sh")
    assert result.stdout.startswith("exit 143\nCanceled\n"), result.stderr
    assert result.stdout.count("\n12 rows\n") == 2
    assert result.stdout.endswith("exit 0\nanother-endpoint\n"), result.stderr
