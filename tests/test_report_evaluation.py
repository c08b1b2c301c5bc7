"""The evaluation report in a real headless Chromium: what is shown is what was given, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chromium import Page, chromium, find_chromium
from concordct.report.evaluation import Curve
from evaluation_report import DEPTH, HEIGHT, RESULTS, WIDTH, random_volumes, write


@pytest.fixture(scope="module")
def volumes() -> dict[str, np.ndarray]:
    return random_volumes()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium found (apt package chromium): the report was not opened in a browser")
    with chromium(executable) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, volumes: dict[str, np.ndarray]) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(path, volumes)
    return path


def open_report(page: Page, path: Path, **how) -> None:
    page.requests.clear()
    page.messages.clear()
    page.open(path, **how)


def open_viewer(page: Page, path: Path, **how) -> None:
    open_report(page, path, **how)
    page.wait("document.getElementById('viewer').dataset.slice")


def quiet(page: Page, path: Path) -> None:
    assert page.messages == []
    assert page.requests == [path.resolve().as_uri()]


def box(page: Page, pane: str = "source") -> tuple[float, float, float, float]:
    return page.run(
        f"""(() => {{ const e = document.querySelector('[data-pane="{pane}"] canvas');
        e.scrollIntoView({{block: "center"}}); const b = e.getBoundingClientRect();
        return [b.left, b.top, b.width, b.height]; }})()"""
    )


def frames(page: Page) -> None:
    page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")


def shown(page: Page) -> dict[str, str]:
    """The text over each pane and the readout below."""
    frames(page)
    return page.run(
        """Object.fromEntries([["voxel", document.getElementById("voxel").textContent],
        ...[...document.querySelectorAll("figure.pane")].map(
            p => [p.dataset.pane, p.querySelector(".hu").textContent])])"""
    )


def hu(text: str) -> int:
    return int(re.search(r"([+−]?\d+) HU", text)[1].replace("−", "-"))


def voxel(text: str) -> tuple[int, int, int]:
    return tuple(int(n) for n in re.search(r"z (\d+), y (\d+), x (\d+)", text).groups())


def point(page: Page, y: int, x: int, pane: str = "source") -> None:
    """Move the mouse to the centre of a voxel of an unzoomed pane; computed here, not by the page."""
    left, top, width, height = box(page, pane)
    scale = min(width / WIDTH, height / HEIGHT)
    page.mouse(
        "mouseMoved",
        left + width / 2 + (x + 0.5 - WIDTH / 2) * scale,
        top + height / 2 + (y + 0.5 - HEIGHT / 2) * scale,
    )


def wait_slice(page: Page, index: int) -> None:
    page.wait(f"document.getElementById('viewer').dataset.slice === '{index}'")


def check_voxel(page: Page, volumes: dict[str, np.ndarray], z: int, y: int, x: int) -> None:
    seen = shown(page)
    assert voxel(seen["voxel"]) == (z, y, x)
    whole = {name: int(np.rint(volume[z, y, x])) for name, volume in volumes.items()}
    assert {name: hu(seen[name]) for name in whole} == whole
    assert hu(seen["difference"]) == whole["standardized"] - whole["target"]


def test_wheel_keys_and_slider_scroll_and_every_pane_shows_its_hu(browser, report, volumes, tmp_path):
    open_viewer(browser, report)
    wait_slice(browser, DEPTH // 2)
    for y, x in ((0, 0), (17, 31), (HEIGHT - 1, WIDTH - 1)):
        point(browser, y, x)
        check_voxel(browser, volumes, DEPTH // 2, y, x)
    point(browser, 30, 40, "difference")
    check_voxel(browser, volumes, DEPTH // 2, 30, 40)

    left, top, width, height = box(browser)
    point(browser, 21, 22)
    browser.mouse("mouseWheel", left + width / 2, top + height / 2, deltaX=0, deltaY=120)
    wait_slice(browser, DEPTH // 2 + 1)
    point(browser, 21, 22)
    check_voxel(browser, volumes, DEPTH // 2 + 1, 21, 22)

    browser.run("document.getElementById('viewer').focus()")
    for key, index in (("ArrowDown", 6), ("End", 8), ("PageUp", 3), ("ArrowUp", 2), ("Home", 0)):
        browser.key(key)
        wait_slice(browser, index)
    check_voxel(browser, volumes, 0, 21, 22)

    browser.run("document.getElementById('slice').focus()")
    browser.key("ArrowRight")
    wait_slice(browser, 1)
    check_voxel(browser, volumes, 1, 21, 22)
    assert browser.run("document.getElementById('where').textContent") == "Slice 2 of 9, z = −97.50 mm"

    browser.screenshot(tmp_path / "viewer.png")
    assert (tmp_path / "viewer.png").stat().st_size > 10_000
    quiet(browser, report)


def test_every_voxel_arrives(browser, report, volumes):
    open_viewer(browser, report)
    for stack, volume in enumerate(volumes.values()):
        for z in (0, DEPTH - 1):
            got = browser.run(
                f"""(async () => {{
                const text = document.getElementById("voxels-{stack}").textContent.trim().split("\\n");
                return Array.from(await new SliceStore([text], {WIDTH}, {HEIGHT}, 4).slice(0, {z})); }})()"""
            )
            np.testing.assert_array_equal(np.reshape(got, (HEIGHT, WIDTH)), np.rint(volume[z]))


def test_positions_and_sides_are_lps(browser, report):
    open_viewer(browser, report)
    point(browser, 10, 20)
    assert "LPS (−14.0, −142.0, −90.0) mm" in shown(browser)["voxel"]
    sides = json.loads(browser.run("document.getElementById('viewer-data').textContent"))["sides"]
    assert sides == {"left": "R", "right": "L", "top": "A", "bottom": "P"}


def test_difference_toggles_and_is_minuend_minus_subtrahend(browser, report, volumes):
    open_viewer(browser, report)
    point(browser, 5, 6)
    browser.run("document.getElementById('viewer').focus()")
    names = {"After": "standardized", "Before": "source", "target": "target", "before": "source"}
    for _ in range(3):
        label = browser.run("document.querySelector('[data-pane=difference] .name').textContent")
        a, b = label.split(" − ")
        expected = np.subtract(*(int(np.rint(volumes[names[n]][DEPTH // 2, 5, 6])) for n in (a, b)))
        assert hu(shown(browser)["difference"]) == expected
        browser.key("d")
    assert label == "After − before"


def test_window_presets_and_right_drag(browser, report):
    open_viewer(browser, report)
    browser.run("document.getElementById('viewer').focus()")
    read = "[Number(document.getElementById('centre').value), Number(document.getElementById('width').value)]"
    for key, expected in (("1", [-600, 1500]), ("2", [40, 400])):
        browser.key(key)
        assert browser.run(read) == expected
    left, top, *_ = box(browser)
    browser.drag((left + 50, top + 50), (left + 110, top + 80), button="right")
    centre, wide = browser.run(read)
    assert centre > 40
    assert wide > 400
    browser.key("1")
    frames(browser)
    # The pixel on screen follows the window: black at its foot, white at its head.
    grey = """(() => { const c = document.querySelector('[data-pane="standardized"] canvas');
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let sum = 0; for (let i = 0; i < d.length; i += 4) sum += d[i]; return sum / (d.length / 4); })()"""
    lung = browser.run(grey)
    browser.key("3")
    frames(browser)
    assert browser.run(grey) < lung


def test_zoom_keeps_the_point_under_the_cursor_and_the_values(browser, report, volumes):
    open_viewer(browser, report)
    point(browser, 14, 50)
    left, top, width, height = box(browser)
    scale = min(width / WIDTH, height / HEIGHT)
    at = (left + width / 2 + (50.5 - WIDTH / 2) * scale, top + height / 2 + (14.5 - HEIGHT / 2) * scale)
    for _ in range(3):
        browser.mouse("mouseWheel", *at, deltaX=0, deltaY=-120, modifiers=2)
    browser.mouse("mouseMoved", *at)
    check_voxel(browser, volumes, DEPTH // 2, 14, 50)
    # One voxel now covers more than twice the screen: a step of one old voxel stays within the next one.
    browser.mouse("mouseMoved", at[0] + scale, at[1])
    assert voxel(shown(browser)["voxel"])[1:] == (14, 50)
    browser.run("document.getElementById('viewer').focus()")
    browser.key("ArrowRight", shift=True)
    check_voxel(browser, volumes, DEPTH // 2, 14, 51)


def test_region_shows_mean_and_standard_deviation(browser, report, volumes):
    open_viewer(browser, report)
    left, top, width, height = box(browser, "target")
    scale = min(width / WIDTH, height / HEIGHT)
    corners = [
        (left + width / 2 + (x + 0.5 - WIDTH / 2) * scale, top + height / 2 + (y + 0.5 - HEIGHT / 2) * scale)
        for y, x in ((10, 12), (29, 41))
    ]
    browser.drag(corners[0], corners[1], shift=True)
    text = shown(browser)["target"].split("|")[0].replace("−", "-")
    mean, deviation = (float(v) for v in text.split("±"))
    inside = np.rint(volumes["target"][DEPTH // 2, 10:30, 12:42])
    assert mean == pytest.approx(inside.mean(), abs=0.051)
    assert deviation == pytest.approx(inside.std(ddof=1), abs=0.051)


def test_compare_shows_left_and_right_of_the_divider(browser, report):
    open_viewer(browser, report)
    browser.run("document.getElementById('viewer').focus()")
    browser.key("c")
    assert browser.run("document.querySelectorAll('figure.pane:not([hidden])').length") == 1
    pixel = """(() => { const c = document.querySelector('[data-pane="swipe"] canvas');
        return Array.from(c.getContext("2d").getImageData(c.width / 2 + %d, c.height / 2, 40, 20).data).join(); })()"""
    values = []
    for divider in (0, 100):
        browser.run(f"document.getElementById('divider').value = {divider}")
        browser.run("document.getElementById('divider').dispatchEvent(new Event('input'))")
        frames(browser)
        values.append(browser.run(pixel % 4))
    assert values[0] != values[1]
    browser.key("b")
    frames(browser)
    assert browser.run(pixel % 4) == values[0]


def test_curves_read_out_under_the_cursor(browser, report):
    open_report(browser, report)
    left, top, width, height = browser.run(
        """(() => { const s = document.querySelector("figure.chart > svg"); s.scrollIntoView({block: "center"});
        const b = s.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"""
    )
    browser.mouse("mouseMoved", left + width * 448 / 460, top + height / 2)
    text = browser.run("document.querySelector('figure.chart .values').textContent")
    assert text == "lp/cm 6.25  ·  cycles/pixel 0.5  ·  H(f) 7.25"


@pytest.mark.parametrize("how", [{"dark": True}, {"width": 390, "height": 844, "phone": True}])
def test_dark_and_phone_fit_the_screen(browser, report, how):
    open_viewer(browser, report, **how)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    quiet(browser, report)


def test_one_finger_scrolls_two_fingers_zoom(browser, report, volumes):
    open_viewer(browser, report, width=390, height=844, phone=True)
    left, top, width, height = box(browser)
    x, y = left + width / 2, top + height / 2

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    touch("touchStart", (x, y))
    touch("touchMove", (x, y + 10))
    touch("touchMove", (x, y + 30))
    touch("touchEnd")
    wait_slice(browser, DEPTH // 2 + 2)
    seen = shown(browser)
    where = voxel(seen["voxel"])
    assert hu(seen["source"]) == volumes["source"][where]

    touch("touchStart", (x, y))
    across = voxel(shown(browser)["voxel"])[2]
    touch("touchStart", (x - 10, y), (x + 10, y))
    touch("touchMove", (x - 40, y), (x + 40, y))
    touch("touchEnd")
    # Four times larger: half the way to the edge now spans an eighth of the slice.
    browser.mouse("mouseMoved", x + width / 4, y)
    assert voxel(shown(browser)["voxel"])[2] - across == pytest.approx(WIDTH / 16, abs=2)


def test_controls_have_names_and_the_keyboard_reaches_them(browser, report):
    open_viewer(browser, report)
    unnamed = browser.run(
        """[...document.querySelectorAll("button, input, select, canvas")].filter(e => !(e.getAttribute("aria-label")
        || e.title || e.textContent.trim() || e.closest("label")?.textContent.trim())).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    assert browser.run("document.getElementById('viewer').tabIndex") == 0


def test_tables_say_what_results_say(browser, report):
    open_report(browser, report)
    text = browser.run("document.body.innerText")
    for part in (
        "The coherence is below 0.5 above 7 lp/cm.", "simulated data", "45.3", "14.6", "0.54 ± 0.20", "0.95 ± 0.03",
        "[−1000, −500]", "−0.25", "12,345", "0.98", "glcm_contrast", "Undefined and left out: glcm_idm",
        "Research use, not for diagnosis", "All 9 slices shown",
    ):  # fmt: skip
        assert part in text


def test_real_pair(browser, shared_data, tmp_path):
    """The Philips pair at full size: within the limit, complete, exact under the cursor."""
    import pydicom

    def read(kernel: str) -> np.ndarray:
        files = [pydicom.dcmread(p) for p in (shared_data / "philips_head_phantom" / kernel).iterdir()]
        files.sort(key=lambda d: float(d.ImagePositionPatient[2]))
        return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files])

    real = {"source": read("UB_1mm"), "target": read("YA_1mm")}
    path = tmp_path / "real.html"
    size = write(path, real, spacing_mm=(1, 0.451, 0.451), slice_positions_mm=list(range(12)), results={}, affine=None)
    assert size == path.stat().st_size <= 15_000_000
    open_viewer(browser, path)
    left, top, width, height = box(browser)
    for fraction in (0.2, 0.37, 0.5, 0.81):
        browser.mouse("mouseMoved", left + fraction * width, top + fraction * height)
        seen = shown(browser)
        z, y, x = voxel(seen["voxel"])
        assert abs(y - 512 * fraction) <= 2
        assert (hu(seen["source"]), hu(seen["target"])) == (real["source"][z, y, x], real["target"][z, y, x])
        assert hu(seen["difference"]) == real["source"][z, y, x] - real["target"][z, y, x]
    quiet(browser, path)


def test_300_slices_stay_under_the_limit_and_the_page_says_what_was_kept(browser, tmp_path):
    rng = np.random.default_rng(5)
    hu_values = np.full((300, 256, 256), -1000, dtype=np.int16)
    hu_values[:, 40:216, 30:226] = rng.normal(40, 30, (300, 176, 196)).astype(np.int16)
    path = tmp_path / "long.html"
    limit = 4_000_000
    size = write(
        path, {"source": hu_values, "standardized": hu_values + 3}, slice_positions_mm=np.arange(300.0), max_bytes=limit
    )
    assert 0.9 * limit < size <= limit
    open_viewer(browser, path)
    data = json.loads(browser.run("document.getElementById('viewer-data').textContent"))
    kept = data["slices"]
    assert kept[0] == 0
    assert kept[-1] == 299
    text = browser.run("document.body.innerText")
    assert f"{len(kept)} of 300 slices shown" in text
    assert "cropped to the body: rows 32–223 of 256, columns 22–233 of 256" in text
    left, top, width, height = box(browser)
    browser.mouse("mouseMoved", left + width / 2, top + height / 2)
    seen = shown(browser)
    z, y, x = voxel(seen["voxel"])
    assert z in kept
    assert hu(seen["source"]) == hu_values[z, y, x]
    assert hu(seen["difference"]) == 3


def test_hostile_text_stays_text(browser, tmp_path, volumes):
    attack = "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>\u2028"
    path = tmp_path / "hostile.html"
    write(
        path,
        {attack: volumes["source"]},
        title=attack,
        results={"warnings": [attack], "inputs": {attack: attack}, "agreement": {"undefined": [attack]}},
        curves=[Curve(attack, attack, attack, [(attack, [0, 1], [0, 1])], markers=[(0.5, attack)], note=attack)],
    )
    open_viewer(browser, path)
    assert browser.run("typeof window.broken") == "undefined"
    assert browser.run("document.title") == attack
    assert browser.run("document.querySelectorAll('img').length") == 0
    quiet(browser, path)


@pytest.mark.parametrize(
    "results", [{}, {"warnings": []}, {k: v for k, v in RESULTS.items() if k not in ("nps", "image_quality")}]
)
def test_missing_sections_and_no_images(browser, tmp_path, results):
    path = tmp_path / "empty.html"
    write(path, {}, results=results, slice_positions_mm=[], curves=[], affine=None)
    open_report(browser, path)
    text = browser.run("document.body.innerText")
    assert "Soft to sharp" in text
    assert "Noise power by band" not in text
    assert browser.run("document.getElementById('viewer')") is None
    quiet(browser, path)


def test_without_a_target_only_before_and_after_are_shown(browser, tmp_path, volumes):
    path = tmp_path / "two.html"
    write(path, {k: volumes[k] for k in ("source", "standardized")}, results={}, affine=None)
    open_viewer(browser, path)
    names = browser.run("[...document.querySelectorAll('figure.pane:not([hidden]) .name')].map(e => e.textContent)")
    assert names == ["Before", "After", "After − before"]
    point(browser, 3, 4)
    assert "x 3.2, y 2.4, z −90.0 mm" in shown(browser)["voxel"]
    quiet(browser, path)


def test_no_room_for_a_slice_leaves_the_images_out(browser, tmp_path, volumes):
    path = tmp_path / "small.html"
    bare = write(path, {}, slice_positions_mm=[])
    write(path, volumes, max_bytes=bare + 12_000)
    open_report(browser, path)
    assert "No slice fits" in browser.run("document.body.innerText")
    quiet(browser, path)
