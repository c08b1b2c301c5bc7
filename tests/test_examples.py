"""The examples: linted where a linter is there, and run where what they need can stand in for itself."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from concordct.volumes.files import write_volume_file
from serving_parts import series, write_model
from synthetic import pair, volume

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = [EXAMPLES / "slurm" / "standardize.sbatch", Path(__file__).parents[1] / "container" / "entry.sh"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`concordct` as a program of its own."""
    path = tmp_path_factory.mktemp("bin") / "concordct"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m concordct.cli "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; the shell itself found no mistake")
    subprocess.run(["shellcheck", "--shell=sh", str(script)], check=True)


@pytest.mark.slow
def test_slurm_tasks_share_the_exams(tmp_path: Path, model: Path, command: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "exams" / name).mkdir(parents=True)
        for index, one in enumerate(series(seed=ord(name), slices=2)):
            one.save_as(tmp_path / "exams" / name / f"{index}.dcm", enforce_file_format=True)
    script = str(EXAMPLES / "slurm" / "standardize.sbatch")
    made = []
    for task in ("0", "1"):
        given = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2", "PATH": f"{command.parent}:/usr/bin:/bin"}
        words = [script, tmp_path / "exams", model, tmp_path / "out"]
        done = subprocess.run(words, env=os.environ | given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
    assert made == [["a"], ["a", "b"]]


def test_the_nextflow_process_names_what_the_command_has(tmp_path: Path) -> None:
    text = (EXAMPLES / "nextflow" / "main.nf").read_text()
    assert text.count("{") == text.count("}")
    (line,) = re.findall(r"concordct standardize .*", text)
    options = set(re.findall(r" (--?[a-z-]+)", line))
    shown = subprocess.run(
        [sys.executable, "-m", "concordct.cli", "standardize", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert options == {"-m", "-o", "--mode", "--seed"}
    assert all(option in shown for option in options)
    if shutil.which("nextflow") is None:
        pytest.skip("nextflow is not installed; its process was read and not run")
    subprocess.run(["nextflow", "lint", str(EXAMPLES / "nextflow" / "main.nf")], check=True, cwd=tmp_path)


class _Node:
    """A volume node that knows its file."""

    def __init__(self, path: Path, name: str) -> None:
        self.array, self._name = sitk.GetArrayFromImage(sitk.ReadImage(str(path))), name

    def GetName(self) -> str:
        return self._name


@pytest.mark.slow
def test_the_slicer_module_loads_result_and_difference(
    tmp_path: Path, model: Path, command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slicer itself is no test machine's: its calls are answered by files, the command is the real one."""
    path = EXAMPLES / "slicer" / "ConcordctStandardize" / "ConcordctStandardize.py"
    ast.parse(path.read_text())
    source = tmp_path / "ct.nrrd"
    write_volume_file(source, volume(pair(seed=3, size=96, slices=2)[0]))

    class _Util:
        @staticmethod
        def saveNode(node: _Node, to: str) -> bool:
            shutil.copy(source, to)
            return True

        @staticmethod
        def loadVolume(found: str, properties: dict[str, str]) -> _Node:
            return _Node(Path(found), properties["name"])

        @staticmethod
        def arrayFromVolume(node: _Node) -> Any:
            return node.array

        @staticmethod
        def updateVolumeFromArray(node: _Node, array: Any) -> None:
            node.array = array

        @staticmethod
        def setSliceViewerLayers(**_: Any) -> None:
            return

    class _Logic:
        def CloneVolume(self, scene: Any, node: _Node, name: str) -> _Node:
            made = _Node.__new__(_Node)
            made.array, made._name = node.array.copy(), name
            return made

    slicer, qt, loadable = ModuleType("slicer"), ModuleType("qt"), ModuleType("slicer.ScriptedLoadableModule")
    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleWidget", "ScriptedLoadableModuleLogic"):
        setattr(loadable, name, type(name, (), {}))
    volumes = type("volumes", (), {"logic": staticmethod(_Logic)})
    slicer.util, slicer.mrmlScene = _Util, None  # type: ignore[attr-defined]
    slicer.modules = type("modules", (), {"volumes": volumes})  # type: ignore[attr-defined]
    for name, module in (("slicer", slicer), ("qt", qt), ("slicer.ScriptedLoadableModule", loadable)):
        monkeypatch.setitem(sys.modules, name, module)
    scope: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    node = _Node(source, "CT")
    result, difference = scope["ConcordctStandardizeLogic"]().standardize(node, str(model), "mean", str(command))
    assert result.GetName() == "CT standardized"
    assert np.abs(difference.array).max() > 10
    assert np.array_equal(difference.array, result.array.astype(int) - node.array)
    with pytest.raises(RuntimeError, match="expected"):
        scope["ConcordctStandardizeLogic"]().standardize(node, str(tmp_path / "nowhere"), "mean", str(command))
