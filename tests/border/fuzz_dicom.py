"""DICOM for the fuzzer: slices in the encodings of the field, read, compared with pydicom, and written again."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from concordct.errors import ConcordctError
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import write_derived_series
from concordct.volumes.dicom_file import quiet_dicom
from concordct.volumes.find import find_series
from concordct.volumes.series import ALLOWABLE, Series
from volumes_slices import disc_hu, enhanced_dataset, slice_dataset

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_SIDE = 16


class OtherwiseThanPydicom(Exception):
    """Read, but with other HU or in another place than pydicom reads."""


def seeds() -> dict[str, dict[str, bytes]]:
    """Three slices in each encoding, or one multi-frame object; the first file is the one that is named."""
    found = {}
    for name, syntax in (
        ("explicit", ExplicitVRLittleEndian),
        ("implicit", ImplicitVRLittleEndian),
        ("big", ExplicitVRBigEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
        ("rle", RLELossless),
        ("jpegls", JPEGLSLossless),
    ):
        found[name] = {f"{k}.dcm": _encoded(_slice(3.0 * k), syntax) for k in range(3)}
    found["bare"] = {f"{k}.dcm": _bare(_slice(3.0 * k)) for k in range(3)}
    found["jpeg"] = {
        "0.dcm": _by_gdcm(_encoded(_slice(0), ExplicitVRLittleEndian), gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    }
    found["j2k"] = {
        "0.dcm": _by_gdcm(_encoded(_slice(0), ExplicitVRLittleEndian), gdcm.TransferSyntax.JPEG2000Lossless)
    }
    buffer = io.BytesIO()
    enhanced_dataset(3).save_as(buffer, enforce_file_format=True)
    found["enhanced"] = {"0.dcm": buffer.getvalue()}
    return found


def _slice(z: float) -> Dataset:
    dataset = slice_dataset(z=z, hu=disc_hu(z, side=_SIDE), SpecificCharacterSet="ISO_IR 100", PixelPaddingValue=-2000)
    item = Dataset()
    item.CodeMeaning, item.CodeValue, item.CodingSchemeDesignator = "Chest", "1", "99X"
    dataset.ProcedureCodeSequence = Sequence([item])
    return dataset


def _encoded(dataset: Dataset, syntax: pydicom.uid.UID) -> bytes:
    if syntax in (RLELossless, JPEGLSLossless):
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _bare(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = buffer.is_implicit_VR = True
    write_dataset(buffer, Dataset(dataset))
    return bytes(buffer.getvalue())


def _by_gdcm(data: bytes, syntax: int) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "a", Path(place) / "b"
        source.write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return target.read_bytes()


def read_dicom(place: Path) -> None:
    """Every series of a folder: read whatever may pass, compare, write, read again.

    Raises
    ------
    ConcordctError : nothing could be read; the first reason.
    """
    found = find_series(place)
    reasons = [item.reason for item in found.set_aside]
    for reason in reasons:
        if not reason.isprintable() or len(reason) > 600:
            raise OtherwiseThanPydicom(f"a reason that is no line: {reason[:200]!r}")
    done = 0
    for series in found.series:
        try:
            hu = series.read(allow=ALLOWABLE) and series.stored_hu(0, series.shape[0])
        except ConcordctError as error:
            reasons.append(str(error))
            continue
        done += 1
        _compare(series, hu)
        with tempfile.TemporaryDirectory() as out:
            volume = series.read(allow=ALLOWABLE)
            derivation = Derivation("none", "0" * 64, None)
            try:
                written = write_derived_series(series, [volume], Path(out) / "out", derivation, allow=ALLOWABLE)
            except ConcordctError as error:
                reasons.append(str(error))
                continue
            again = find_series(written.directory)
            if sum(one.shape[0] for one in again.series) != series.shape[0]:
                raise OtherwiseThanPydicom(f"written slices are not read again: {again.set_aside[:1]}")
    if not done:
        raise ConcordctError(reasons[0] if reasons else "nothing there")


def _compare(series: Series, hu: np.ndarray) -> None:
    """HU and positions of native single frames as pydicom gives them, where it gives any."""
    for index, ref in enumerate(series.slices):
        expected = _by_pydicom(ref.path)
        if expected is None:
            continue
        values, position = expected
        if not np.allclose(position, ref.origin_lps_mm, rtol=0, atol=0.2):
            raise OtherwiseThanPydicom("another position")
        if values.shape != hu[index].shape or not np.allclose(values, hu[index], rtol=1e-6, atol=0.01):
            raise OtherwiseThanPydicom("other HU")


def _by_pydicom(path: Path) -> tuple[np.ndarray, Any] | None:
    try:
        with quiet_dicom():
            dataset = pydicom.dcmread(path)
            if dataset.file_meta.TransferSyntaxUID not in NATIVE or "NumberOfFrames" in dataset:
                return None
            values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            return values.astype(np.float32), [float(v) for v in dataset.ImagePositionPatient]
    except Exception:
        return None
