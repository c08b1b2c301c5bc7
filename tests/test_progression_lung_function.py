"""The table of lung-function tests: units and ranges are checked, what is missing is said, OSIC's own table is read."""

import pytest

from concordct.errors import ConcordctError
from concordct.progression.lung_function import (
    LungFunction,
    Visit,
    check_weeks,
    first_visit,
    read_table,
    sentence,
    write_table,
)


def table(tmp_path, text):
    path = tmp_path / "tests.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refused(tmp_path, text, *words):
    path = table(tmp_path, text)
    with pytest.raises(ConcordctError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, str(path)):
        assert word in message
    return message


def test_units_by_column_name(tmp_path):
    path = table(tmp_path, "subject,weeks,fvc_l,fev1_ml,pef_l_s\na,0,2.5,2000,5\n")
    (visit,) = read_table(path)["a"]
    assert visit == Visit(0.0, LungFunction(fvc_ml=2500.0, fev1_ml=2000.0, pef_l_min=300.0))


def test_an_fvc_of_2500_litres_is_refused(tmp_path):
    refused(tmp_path, "subject,weeks,fvc_l\na,0,2500\n", "row 2", "fvc_ml of 2.5e+06", "300 to 9000")
    refused(tmp_path, "subject,weeks,fvc_ml\na,0,2.5\n", "row 2", "fvc_ml of 2.5")


def test_osics_own_table(tmp_path):
    path = table(
        tmp_path,
        "Patient,Weeks,FVC,Percent,Age,Sex,SmokingStatus\n"
        "ID1,8,2300,57.1,79,Male,Ex-smoker\nID1,-4,2315,58.3,79,Male,Ex-smoker\n"
        "ID2,0,3660,85.3,69,Female,Never smoked\n",
    )
    visits = read_table(path)
    assert [visit.weeks for visit in visits["ID1"]] == [-4.0, 8.0]
    assert first_visit(visits, "ID1").values == LungFunction(
        fvc_ml=2315.0, fvc_percent=58.3, age_years=79.0, sex="male", smoking="ex"
    )
    assert visits["ID2"][0].values.smoking == "never"


def test_negative_weeks_are_refused_in_a_table_of_our_own(tmp_path):
    refused(tmp_path, "subject,weeks,fvc_ml\na,-3,2500\n", "row 2, column weeks", "-3")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("subject,fvc_ml\na,2500\n", "expected subject, weeks"),
        ("subject,weeks,fvc_mll\na,0,2500\n", "fvc_mll"),
        ("subject,weeks,fvc_ml,FVC\na,0,2500,2500\n", "row 1"),
        ("subject,weeks,fvc_ml\na,0,much\n", "expected a number"),
        ("subject,weeks,fvc_ml\na,0\n", "2 values, expected 3"),
        ("subject,weeks,fvc_ml\n,0,2500\n", "column subject"),
        ("subject,weeks,sex\na,0,x\n", "expected female, male"),
        ("subject,weeks,fvc_ml,fev1_ml\na,0,2000,2600\n", "above fvc_ml"),
        ("subject,weeks,fvc_ml\na,0,2500\na,0,2600\n", "week 0 already"),
        ("subject,weeks,fvc_ml\n", "no rows"),
        ("subject,weeks,fvc_ml\na,nan,2500\n", "expected a number"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, word):
    refused(tmp_path, text, word)


def test_a_missing_table_and_a_missing_subject(tmp_path):
    with pytest.raises(ConcordctError, match="cannot read lung-function table"):
        read_table(tmp_path / "none.csv")
    visits = read_table(table(tmp_path, "subject,weeks,fvc_ml\nsecret,0,2500\n"))
    with pytest.raises(ConcordctError, match="no row of the subject asked for") as caught:
        first_visit(visits, "other")
    assert "secret" not in str(caught.value)


def test_round_trip(tmp_path):
    visits = {
        "a": (Visit(0.0, LungFunction(2510.0, 71.5, None, 310.0, None, 68.0, "male", "ex")),),
        "b": (Visit(0.0, LungFunction()), Visit(51.5, LungFunction(dlco_percent=40.25))),
    }
    path = write_table(tmp_path / "out.csv", visits)
    assert read_table(path) == visits


def test_the_sentence_says_every_value_and_what_is_unknown():
    full = sentence(LungFunction(2512.0, 71.4, 2047.0, 318.0, 44.6, 68.0, "female", "never"), weeks=52)
    for word in (
        "female",
        "68 years",
        "never smoked",
        "2500 ml",
        "71 percent",
        "2050 ml",
        "320 litres",
        "45 percent",
        "52",
    ):
        assert word in full
    assert "unknown" not in full
    assert sentence(LungFunction(), weeks=52).count("unknown") == 8
    assert sentence(LungFunction(fvc_ml=2500.0), weeks=52) != sentence(LungFunction(fvc_ml=2600.0), weeks=52)
    assert LungFunction(fvc_ml=2500.0).missing[0] == "fvc_percent"


@pytest.mark.parametrize("weeks", [-4.0, 0.0, float("nan"), float("inf"), 5000.0])
def test_weeks_that_are_no_interval(weeks):
    with pytest.raises(ConcordctError, match="weeks between the scans, expected above 0"):
        check_weeks(weeks)
    with pytest.raises(ConcordctError):
        sentence(LungFunction(), weeks=weeks)
