"""A scripted module of 3D Slicer: the selected CT volume through `concordct standardize`, result and difference loaded.

Add this folder under Edit, Application settings, Modules, Additional module paths. concordct runs in its own Python
environment: name its command in the module's panel.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import qt
import slicer
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)


class ConcordctStandardize(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "Standardize CT kernel (concordct)"
        parent.categories = ["Filtering"]
        parent.dependencies = []
        parent.contributors = ["concordct"]
        parent.helpText = "Turns a CT volume of a model's source kernel into its target kernel. Research use only."


class ConcordctStandardizeWidget(ScriptedLoadableModuleWidget):
    """The panel: volume, model, mode, command, and a button."""

    def setup(self):
        super().setup()
        form = qt.QFormLayout()
        self.layout.addLayout(form)
        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.setMRMLScene(slicer.mrmlScene)
        form.addRow("CT volume", self.volume)
        self.model = qt.QLineEdit()
        self.model.placeholderText = "folder that concordct calibrate wrote"
        form.addRow("Model", self.model)
        self.mode = qt.QComboBox()
        self.mode.addItems(["sample", "mean"])
        form.addRow("Mode", self.mode)
        self.command = qt.QLineEdit("concordct")
        form.addRow("Command", self.command)
        button = qt.QPushButton("Standardize")
        button.clicked.connect(self.on_standardize)
        self.layout.addWidget(button)
        self.layout.addStretch(1)

    def on_standardize(self):
        with slicer.util.tryWithErrorDisplay("concordct did not standardize the volume.", waitCursor=True):
            ConcordctStandardizeLogic().standardize(
                self.volume.currentNode(), self.model.text, self.mode.currentText, self.command.text
            )


class ConcordctStandardizeLogic(ScriptedLoadableModuleLogic):
    """The work, without a panel."""

    def standardize(self, volume, model: str, mode: str, command: str):
        """Standardize one volume.

        Returns
        -------
        The nodes of the result and of result minus source, in HU.
        """
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "ct.nrrd", Path(folder) / "standardized.nrrd"
            if not slicer.util.saveNode(volume, str(source)):
                raise RuntimeError("the volume could not be written")
            words = [command, "standardize", str(source), "-m", model, "-o", str(target), "--mode", mode]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines()
                raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
            result = slicer.util.loadVolume(str(target), {"name": f"{volume.GetName()} standardized"})
        difference = slicer.modules.volumes.logic().CloneVolume(
            slicer.mrmlScene, result, f"{result.GetName()} - source"
        )
        after, before = (slicer.util.arrayFromVolume(node).astype("int32") for node in (result, volume))
        slicer.util.updateVolumeFromArray(difference, (after - before).astype("int16"))
        slicer.util.setSliceViewerLayers(background=result, foreground=difference, foregroundOpacity=0.3)
        return result, difference
