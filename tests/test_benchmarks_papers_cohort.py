"""The cohort of the tables of methods: split by patient, scanned twice where it is judged."""

from __future__ import annotations

from benchmarks import papers_cohort

from concordct.scanner.patients import patient_height_mm


def test_no_patient_lies_in_two_splits_and_the_test_is_large_enough() -> None:
    jobs = papers_cohort.jobs()
    of = {split: {job.subject_name for job in jobs if job.split == split} for split, *_ in papers_cohort.SPLITS}
    assert {split: len(subjects) for split, subjects in of.items()} == {"train": 10, "validation": 3, "test": 12}
    assert len(set().union(*of.values())) == len(jobs) == 25
    for job in jobs:
        (stack,) = job.stacks
        assert stack.z_mm.min() - 0.5 > 0
        assert stack.z_mm.max() + 0.5 < patient_height_mm(job.number, seed=papers_cohort.SEED)
        assert job.kernels == ("Br40", "Bl64")
        # Whole detector rows: slices of one row each.
        assert (stack.z_mm.min() - 0.5) % job.acquisition.row_mm == 0
