"""Pairs: real reconstructions of one scan pass, everything else is refused with the measured value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.volumes.files import open_volume_file
from concordct.volumes.find import find_series
from concordct.volumes.pairing import check_pair, pair_series
from concordct.volumes.series import Series
from volumes_slices import disc_hu, write_slice


def test_real_pairs_agree(shared_data: Path) -> None:
    phantom = shared_data / "philips_head_phantom"
    ub, ya = (find_series(phantom / name).series[0] for name in ("UB_1mm", "YA_1mm"))
    agreement = check_pair(ub, ya)
    assert agreement.correlation > 0.998
    assert agreement.offset_mm == 0
    back = check_pair(ya, ub)
    assert back.bias_hu == pytest.approx(-agreement.bias_hu, abs=1e-3)
    assert pair_series([ub], [ya]) == ((ub, ya),)


def test_neighbouring_slices_are_another_content(shared_data: Path) -> None:
    series = find_series(shared_data / "chest_B40f").series[0]
    shape = (27, *series.shape[1:])
    moved = replace(series, slices=series.slices[1:], shape=shape)
    here = replace(series, slices=series.slices[:-1], shape=shape)
    with pytest.raises(ConcordctError, match=r"lies 3 mm apart, expected at most 0\.11 mm"):
        check_pair(here, moved)
    # The same content with the positions of its neighbour, as a wrong export would have it.
    relabelled = replace(
        moved,
        slices=tuple(replace(m, origin_lps_mm=h.origin_lps_mm) for m, h in zip(moved.slices, here.slices, strict=True)),
    )
    with pytest.raises(ConcordctError, match=r"low-passed body correlates 0\.98\d, expected at least 0\.99"):
        check_pair(here, relabelled)


def test_several_volume_files_are_matched_by_content(shared_data: Path) -> None:
    folder = shared_data / "mayo_L067_kernel_pairs"
    sharp = [open_volume_file(path) for path in sorted(folder.glob("sharp*"))]
    smooth = [open_volume_file(path) for path in sorted(folder.glob("smooth*"), reverse=True)]
    for source, target in pair_series(sharp, smooth):
        assert source.path.name.split("_")[1] == target.path.name.split("_")[1]  # type: ignore[union-attr]
    with pytest.raises(ConcordctError, match=r"different content|both fit"):
        pair_series(sharp, smooth[:2])


def stack(folder: Path, *, offset_hu: float = 0.0, seed: float = 0.0, moved: int = 0, **tags: object) -> Series:
    for z in range(4):
        hu = np.roll(disc_hu(seed, side=96), moved, axis=0) + offset_hu
        write_slice(folder / str(z), z=z, hu=hu, SOPInstanceUID=f"1.5.{z}", **tags)
    return find_series(folder).series[0]


def test_refusals_say_by_how_much(tmp_path: Path) -> None:
    source = stack(tmp_path / "a")
    assert check_pair(source, stack(tmp_path / "b", offset_hu=4)).bias_hu == pytest.approx(4, abs=0.1)
    with pytest.raises(ConcordctError, match=r"differs by \+25\.0 HU in uniform body regions, expected at most 10 HU"):
        check_pair(source, stack(tmp_path / "c", offset_hu=25))
    with pytest.raises(ConcordctError, match="two frames of reference"):
        check_pair(source, stack(tmp_path / "d", FrameOfReferenceUID="1.2.9"))
    with pytest.raises(ConcordctError, match="mm apart"):
        check_pair(source, stack(tmp_path / "e", PixelSpacing=[0.8, 0.71]))
    (tmp_path / "b" / "3").unlink()
    shorter = find_series(tmp_path / "b").series[0]
    with pytest.raises(ConcordctError, match=r"shapes \(4, 96, 96\) and \(3, 96, 96\)"):
        check_pair(source, shorter)


def test_series_anonymized_one_by_one_are_paired_by_content_where_that_is_allowed(tmp_path: Path) -> None:
    source, target = stack(tmp_path / "a"), stack(tmp_path / "b", FrameOfReferenceUID="1.2.9")
    agreement = check_pair(source, target, allow={"frames"})
    assert agreement.frames_differ
    assert pair_series([source], [target], allow={"frames"}) == ((source, target),)
    with pytest.raises(ConcordctError, match="different content"):
        check_pair(source, stack(tmp_path / "c", moved=6, FrameOfReferenceUID="1.2.9"), allow={"frames"})
    assert not check_pair(source, stack(tmp_path / "d"), allow={"frames"}).frames_differ


def test_real_pairs_of_two_frames(shared_data: Path) -> None:
    phantom = shared_data / "canon_chest_phantom"
    sharp, soft = (find_series(phantom / name).series[0] for name in ("FC51", "FC13"))
    with pytest.raises(ConcordctError, match="frames"):
        check_pair(sharp, soft)
    assert check_pair(sharp, soft, allow={"frames"}).correlation > 0.99


def test_pairing_refuses_ambiguity_and_strangers(tmp_path: Path) -> None:
    source, target = stack(tmp_path / "a"), stack(tmp_path / "b")
    with pytest.raises(ConcordctError, match="both fit"):
        pair_series([source, stack(tmp_path / "c")], [target])
    with pytest.raises(ConcordctError, match="none of 1 targets fits: the pair has two frames"):
        pair_series([stack(tmp_path / "d", FrameOfReferenceUID="1.2.9")], [target])
    assert np.array_equal(source.read().hu, target.read().hu)
