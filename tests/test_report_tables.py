"""Rows of the report: what is said first, and tolerance for what is missing."""

import pytest

from concordct.report.tables import flatten, headline, nps_rows, number, percent, quality_rows, worst_features


def test_numbers_print_with_a_true_minus_and_no_negative_zero():
    assert [number(v) for v in (-1.234, -0.001, None, float("nan"), True)] == ["−1.23", "0.00", "–", "–", "–"]
    assert percent(0.794) == "79 %"


def test_headline_takes_the_weakest_class_and_the_worst_band():
    results = {
        "image_quality": {"source": {"rmse_hu": 10.0}, "standardized": {"rmse_hu": 12.0}},
        "agreement": {
            "per_class": [
                {"class": "first-order", "source_ccc_mean": 0.7, "standardized_ccc_mean": 0.99},
                {"class": "glcm", "source_ccc_mean": 0.4, "standardized_ccc_mean": 0.9, "standardized_re_share": 0.5},
            ]
        },
        "nps": {
            "bands": [
                {"low": 0, "high": 0.05, "target": 100, "source": 90, "ratio": 1.1},
                {"low": 0.05, "high": 0.1, "target": 100, "source": 20, "ratio": 0.8},
            ]
        },
    }
    rmse, ccc, share, noise = headline(results)
    assert (rmse["before"], rmse["after"], rmse["verdict"]) == ("10.0", "12.0", "worse")
    assert (ccc["before"], ccc["after"], ccc["verdict"]) == ("0.40", "0.90", "better")
    assert "glcm" in ccc["note"]
    assert (share["before"], share["after"], share["verdict"]) == ("–", "50 %", "")
    assert (noise["before"], noise["after"], noise["verdict"]) == ("0.20", "0.80", "better")
    assert "1 of 2 bands" in noise["note"]
    assert [row["off"] for row in nps_rows(results)] == [False, True]


@pytest.mark.parametrize("results", [{}, {"image_quality": None, "agreement": None, "nps": None, "warnings": None}])
def test_missing_sections_give_no_rows(results):
    assert headline(results) == []
    assert quality_rows(results) == []
    assert worst_features(results) == []
    assert nps_rows(results) == []


def test_worst_features_come_least_first_and_leave_out_the_undefined():
    features = [
        {"name": n, "standardized_ccc": v} for n, v in (("a", 0.9), ("b", float("nan")), ("c", -0.1), ("d", 0.5))
    ]
    assert [f["name"] for f in worst_features({"agreement": {"features": features}})] == ["c", "d", "a"]


def test_flatten_names_nested_values():
    section = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": True}], "f": None, "g": -0.5}
    assert flatten(section) == [("a.b", "1"), ("a.c", "1, 2"), ("d[0].e", "yes"), ("g", "−0.5")]
