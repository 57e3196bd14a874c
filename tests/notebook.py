"""The notebooks, read, and run in a local workspace."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from local_workspace.store import Store

ROOT = Path(__file__).parents[1]
BATCH, MLFLOW = "imagenet-classifier-batch", "imagenet-classifier-mlflow"
NOTEBOOKS = [BATCH, MLFLOW]
ARTICLE = ["file", "class", "probabilities", "label"]
CELL_SECONDS, NOTEBOOK_SECONDS = 600, 900  # on a machine that is busy with other things
EXECUTE = f"""
import sys
import nbformat
from nbclient import NotebookClient

source, folder, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
NotebookClient(notebook, timeout={CELL_SECONDS}, resources={{"metadata": {{"path": folder}}}}).execute()
nbformat.write(notebook, target)
"""


def read_notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(name: str) -> list[dict[str, Any]]:
    cells = read_notebook(ROOT / "notebooks" / f"{name}.ipynb")["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(name: str) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in code_cells(name))


class Executed:
    """A notebook that was run in a copy of the sample, and what its cells gave."""

    def __init__(self, folder: Path, name: str, start: str) -> None:
        self.folder = folder
        for part in ("notebooks", "code", "environment"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for path in ROOT.glob("*.yml"):
            shutil.copy(path, folder)
        notebook, target = folder / "notebooks" / f"{name}.ipynb", folder / "executed.ipynb"
        self.done = self.run(sys.executable, "-c", EXECUTE, str(notebook), str(folder / start), str(target))
        assert self.done.returncode == 0, self.done.stderr  # it quotes the cell that failed
        self.cells = {cell["id"]: cell for cell in read_notebook(target)["cells"]}
        self.endpoints_left = self.endpoints()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "local_workspace", "run", "--", *command],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(self.folder / "ipython")},
            text=True,
            capture_output=True,
            timeout=NOTEBOOK_SECONDS,
        )

    def printed(self, cell: str) -> str:
        outputs = self.cells[cell]["outputs"]
        return "".join("".join(one["text"]) for one in outputs if one.get("name") == "stdout")

    def shown(self, cell: str, kind: str) -> str:
        """What a cell displays as `kind`, which has to be there once."""
        (data,) = [one["data"] for one in self.cells[cell]["outputs"] if kind in one.get("data", {})]
        return "".join(data[kind])

    def table(self, cell: str) -> list[dict[str, str]]:
        html = self.shown(cell, "text/html")
        columns, values = re.findall(r"<th>([a-z]+)</th>", html), re.findall(r"<td>(.*?)</td>", html)
        rows = [values[start : start + len(columns)] for start in range(0, len(values), len(columns))]
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def endpoints(self) -> list[str]:
        store = Store(self.folder / ".local_workspace")
        try:
            return [name for name, _ in store.items("batchEndpoints")]
        finally:
            store.close()
