"use strict";
// The viewer: panes that share slice, zoom, pan, window and cursor.
(() => {
  const source = document.getElementById("viewer-data");
  const root = document.getElementById("viewer");
  if (!source || !root || !document.getElementById("panes")) return;
  const data = JSON.parse(source.textContent);
  const $ = (id) => document.getElementById(id);
  const [y0, x0] = [data.rows[0], data.columns[0]];
  const height = data.rows[1] - y0, width = data.columns[1] - x0;
  const [, pitchY, pitchX] = data.spacing;
  const texts = data.stacks.map((_, i) => $("voxels-" + i).textContent.trim().split("\n"));
  const store = new SliceStore(texts, width, height, Math.max(24, 8 * data.stacks.length));

  const state = {
    slice: Math.floor(data.slices.length / 2), // asked for
    shown: -1, // decoded and on screen
    images: [], // [stack] Int16Array of the shown slice
    centre: 0, width: 1, preset: data.window,
    difference: 0, scale: data.scale,
    zoom: 1, cx: (width * pitchX) / 2, cy: (height * pitchY) / 2, // centre of view, mm in the cropped slice
    cursor: null, // {x, y} voxel in the cropped slice
    region: null, // {x0, y0, x1, y1} voxels, ends included
    layout: "panes",
  };

  const { minus } = Painting;
  const fixed = (value, digits) => minus(value.toFixed(digits));

  // ---- panes -------------------------------------------------------------------------------------------------
  const panes = [];
  function addPane(kind, index, label) {
    const figure = document.createElement("figure");
    figure.className = "pane " + kind;
    figure.dataset.pane = kind === "stack" ? data.stacks[index].name : kind;
    const caption = document.createElement("figcaption");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = label;
    const value = document.createElement("output");
    value.className = "hu";
    value.setAttribute("aria-live", "off");
    caption.append(name, value);
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    figure.append(caption, canvas);
    $("panes").append(figure);
    const pane = { kind, index, label, figure, name, value, canvas, context: canvas.getContext("2d") };
    panes.push(pane);
    return pane;
  }
  const offscreen = () => {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    return { canvas, context, pixels: context.createImageData(width, height) };
  };
  data.stacks.forEach((stack, i) => addPane("stack", i, stack.label));
  const differencePane = data.differences.length ? addPane("difference", 0, data.differences[0].label) : null;
  const swipePane = addPane("swipe", 0, "Compare");
  const stackBuffers = data.stacks.map(offscreen);
  const differenceBuffer = differencePane ? offscreen() : null;
  $("panes").dataset.count = panes.length - 1;

  // ---- drawing -----------------------------------------------------------------------------------------------
  function transform(canvas) {
    const w = canvas.clientWidth, h = canvas.clientHeight;
    const mm = Math.min(w / (width * pitchX), h / (height * pitchY)) * state.zoom; // CSS pixels per mm
    return { mm, left: w / 2 - state.cx * mm, top: h / 2 - state.cy * mm, w, h };
  }
  function voxelAt(canvas, clientX, clientY) {
    const box = canvas.getBoundingClientRect(), t = transform(canvas);
    const x = Math.floor((clientX - box.left - t.left) / (t.mm * pitchX));
    const y = Math.floor((clientY - box.top - t.top) / (t.mm * pitchY));
    return x >= 0 && y >= 0 && x < width && y < height ? { x, y } : null;
  }
  let dirtyPixels = false, scheduled = false;
  function refresh(pixels) {
    dirtyPixels = dirtyPixels || pixels;
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      if (!state.images.length) return;
      if (dirtyPixels) {
        stackBuffers.forEach((buffer, i) => Painting.stack(buffer, state.images[i], state.centre, state.width));
        if (differencePane) {
          const { a, b } = data.differences[state.difference];
          Painting.difference(differenceBuffer, state.images[a], state.images[b], state.scale);
        }
        dirtyPixels = false;
      }
      for (const pane of panes) if (!pane.figure.hidden) drawPane(pane);
      readout();
    });
  }
  function drawPane(pane) {
    const { canvas, context } = pane;
    const ratio = window.devicePixelRatio || 1, t = transform(canvas);
    const w = Math.round(t.w * ratio), h = Math.round(t.h * ratio);
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, w, h);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    // Large voxels are shown as they are; only what is made smaller or barely larger is interpolated.
    context.imageSmoothingEnabled = t.mm * ratio * Math.min(pitchX, pitchY) < 3;
    context.imageSmoothingQuality = "high";
    const place = (buffer) => context.drawImage(buffer.canvas, t.left, t.top, width * pitchX * t.mm, height * pitchY * t.mm);
    if (pane.kind === "swipe") {
      const at = (t.w * $("divider").value) / 100;
      for (const [id, from, to] of [["left", 0, at], ["right", at, t.w]]) {
        context.save();
        context.beginPath();
        context.rect(from, 0, to - from, t.h);
        context.clip();
        place(stackBuffers[$(id).value]);
        context.restore();
      }
      context.fillStyle = "#ffd166";
      context.fillRect(at - 0.75, 0, 1.5, t.h);
      Painting.tag(context, data.stacks[$("left").value].label, 24, t.h - 10, "left", at > 60);
      Painting.tag(context, data.stacks[$("right").value].label, t.w - 24, t.h - 10, "right", t.w - at > 60);
    } else place(pane.kind === "difference" ? differenceBuffer : stackBuffers[pane.index]);
    if (data.sides) {
      Painting.tag(context, data.sides.left, 6, t.h / 2, "left", true);
      Painting.tag(context, data.sides.right, t.w - 6, t.h / 2, "right", true);
      Painting.tag(context, data.sides.top, t.w / 2, 14, "center", true);
      Painting.tag(context, data.sides.bottom, t.w / 2, t.h - 6, "center", pane.kind !== "difference");
    }
    if (pane.kind === "difference") Painting.colourBar(context, t, state.scale);
    if (state.region) Painting.outline(context, t, state.region, pitchX, pitchY);
    if (state.cursor) Painting.cross(context, t, state.cursor, pitchX, pitchY);
  }

  // ---- numbers -----------------------------------------------------------------------------------------------
  function valuesOf(pane) {
    if (pane.kind === "stack") return state.images[pane.index];
    const { a, b } = data.differences[state.difference];
    const after = state.images[a], before = state.images[b];
    return { at: (i) => after[i] - before[i] };
  }
  const pick = (values, i) => (values.at ? values.at(i) : values[i]);
  function statistics(values, r) {
    let n = 0, mean = 0, m2 = 0; // Welford
    for (let y = r.y0; y <= r.y1; y++)
      for (let x = r.x0; x <= r.x1; x++) {
        const v = pick(values, y * width + x), d = v - mean;
        n++;
        mean += d / n;
        m2 += d * (v - mean);
      }
    return [mean, n > 1 ? Math.sqrt(m2 / (n - 1)) : 0];
  }
  function readout() {
    const { cursor, region } = state;
    root.dataset.slice = state.shown;
    for (const pane of panes) {
      if (pane.kind === "swipe") continue;
      const values = valuesOf(pane);
      const sign = (text, v) => (pane.kind === "difference" && v > 0 ? "+" + text : text);
      const parts = [];
      if (region) {
        const [mean, sd] = statistics(values, region);
        parts.push(`${sign(fixed(mean, 1), mean)} ± ${fixed(sd, 1)}`);
      }
      if (cursor) {
        const v = pick(values, cursor.y * width + cursor.x);
        parts.push(`${sign(minus(v), v)} HU`);
      }
      pane.value.textContent = parts.join("  |  ");
    }
    swipePane.value.textContent = cursor || region
      ? panes.filter((p) => p.kind === "stack").map((p) => `${p.label} ${p.value.textContent}`).join("   ") : "";
    if (cursor) {
      const z = data.slices[state.shown], y = cursor.y + y0, x = cursor.x + x0;
      let place;
      if (data.affine) {
        const mm = [0, 1, 2].map((r) => data.affine[r][0] * z + data.affine[r][1] * y + data.affine[r][2] * x + data.affine[r][3]);
        place = `LPS (${mm.map((v) => fixed(v, 1)).join(", ")}) mm`;
      } else place = `x ${fixed(x * pitchX, 1)}, y ${fixed(y * pitchY, 1)}, z ${fixed(data.positions[state.shown], 1)} mm`;
      $("voxel").textContent = `Voxel (z ${z}, y ${y}, x ${x})  ·  ${place}` + regionText(region);
    } else $("voxel").textContent = region ? regionText(region).slice(5).replace("r", "R") : "Point at or touch a pane for HU and position.";
  }
  const regionText = (r) => (r ? `  ·  region ${r.x1 - r.x0 + 1} × ${r.y1 - r.y0 + 1} voxels, mean ± SD, HU` : "");

  // ---- state changes -----------------------------------------------------------------------------------------
  async function show(index) {
    state.slice = Math.min(Math.max(index, 0), data.slices.length - 1);
    const k = state.slice;
    $("slice").value = k;
    const ordinal = data.slices.length === data.shape[0] ? "" : ` (${k + 1} of ${data.slices.length} kept)`;
    const text = `Slice ${data.slices[k] + 1} of ${data.shape[0]}${ordinal}, z = ${fixed(data.positions[k], 2)} mm`;
    $("where").textContent = text;
    $("slice").setAttribute("aria-valuetext", text);
    const images = await Promise.all(data.stacks.map((_, i) => store.slice(i, k)));
    if (k !== state.slice) return; // scrolled on meanwhile
    state.images = images;
    state.shown = k;
    refresh(true);
    for (const near of [k + 1, k - 1])
      if (near >= 0 && near < data.slices.length) data.stacks.forEach((_, i) => store.slice(i, near));
  }
  function setWindow(centre, windowWidth, preset) {
    state.centre = Math.round(centre);
    state.width = Math.max(1, Math.round(windowWidth));
    state.preset = preset || null;
    $("centre").value = state.centre;
    $("width").value = state.width;
    root.querySelectorAll("[data-window]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.window === state.preset)));
    refresh(true);
  }
  const usePreset = (name) => setWindow(...data.windows[name], name);
  function setDifference(index) {
    if (!differencePane) return;
    state.difference = index % data.differences.length;
    $("difference").value = state.difference;
    const label = data.differences[state.difference].label;
    differencePane.name.textContent = label;
    differencePane.canvas.setAttribute("aria-label", label);
    refresh(true);
  }
  function zoomBy(factor, canvas, clientX, clientY) {
    const zoom = Math.min(Math.max(state.zoom * factor, 1), 40);
    if (canvas) { // the point under the cursor stays
      const box = canvas.getBoundingClientRect(), before = transform(canvas);
      const mmX = (clientX - box.left - before.left) / before.mm, mmY = (clientY - box.top - before.top) / before.mm;
      state.cx = mmX + ((state.cx - mmX) * state.zoom) / zoom;
      state.cy = mmY + ((state.cy - mmY) * state.zoom) / zoom;
    }
    state.zoom = zoom;
    confine();
    refresh(false);
  }
  function confine() {
    if (state.zoom === 1) [state.cx, state.cy] = [(width * pitchX) / 2, (height * pitchY) / 2];
    state.cx = Math.min(Math.max(state.cx, 0), width * pitchX);
    state.cy = Math.min(Math.max(state.cy, 0), height * pitchY);
  }
  function setLayout(layout) {
    state.layout = layout;
    root.dataset.layout = layout;
    root.querySelectorAll("[data-layout]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.layout === layout)));
    root.querySelectorAll(".only-swipe").forEach((e) => (e.hidden = layout !== "swipe"));
    root.querySelectorAll(".only-panes").forEach((e) => (e.hidden = layout !== "panes"));
    for (const pane of panes) pane.figure.hidden = (pane.kind === "swipe") !== (layout === "swipe");
    if (layout === "swipe") root.scrollIntoView({ block: "start" });
    refresh(false);
  }
  function blink() {
    if (state.layout !== "swipe") {
      setLayout("swipe");
      $("divider").value = 100;
    } else [$("left").value, $("right").value] = [$("right").value, $("left").value];
    refresh(false);
  }
  function moveCursor(dx, dy) {
    const c = state.cursor || { x: width >> 1, y: height >> 1 };
    state.cursor = { x: Math.min(Math.max(c.x + dx, 0), width - 1), y: Math.min(Math.max(c.y + dy, 0), height - 1) };
    $("voxel").setAttribute("aria-live", "polite");
    refresh(false);
  }

  // ---- input -------------------------------------------------------------------------------------------------
  let wheelRest = 0;
  function onWheel(event, canvas) {
    event.preventDefault();
    if (event.ctrlKey) return zoomBy(Math.exp(-event.deltaY / 300), canvas, event.clientX, event.clientY);
    // A notch of a wheel is one slice; a touchpad's small steps add up to one.
    const pixels = event.deltaY * [1, 40, 100][event.deltaMode];
    wheelRest = wheelRest * pixels < 0 ? pixels : wheelRest + pixels;
    const steps = Math.abs(pixels) >= 100 ? Math.sign(pixels) : Math.trunc(wheelRest / 40);
    if (steps) {
      wheelRest = 0;
      show(state.slice + steps);
    }
  }
  function bindPane(pane) {
    const { canvas } = pane;
    const touches = new Map();
    let drag = null;
    canvas.addEventListener("wheel", (e) => onWheel(e, canvas), { passive: false });
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
    canvas.addEventListener("pointerdown", (e) => {
      canvas.setPointerCapture(e.pointerId);
      root.focus({ preventScroll: true });
      touches.set(e.pointerId, { x: e.clientX, y: e.clientY });
      const at = voxelAt(canvas, e.clientX, e.clientY);
      const base = { x: e.clientX, y: e.clientY, cx: state.cx, cy: state.cy, slice: state.slice, centre: state.centre, width: state.width, at };
      if (touches.size === 2) {
        const [p, q] = [...touches.values()];
        drag = { ...base, mode: "pinch", span: Math.hypot(p.x - q.x, p.y - q.y), mx: (p.x + q.x) / 2, my: (p.y + q.y) / 2 };
      } else if (e.pointerType === "touch") drag = { ...base, mode: state.zoom > 1 ? "pan" : "scroll" };
      else if (e.button === 2) drag = { ...base, mode: "window" };
      else if (e.shiftKey && at) drag = { ...base, mode: "region" };
      else if (pane.kind === "swipe" && Math.abs(dividerX(canvas) - e.clientX) < 10) drag = { ...base, mode: "divider" };
      else if (e.button === 0) drag = { ...base, mode: "pan" };
      if (e.pointerType === "touch") { state.cursor = at; refresh(false); }
    });
    canvas.addEventListener("pointermove", (e) => {
      if (touches.has(e.pointerId)) touches.set(e.pointerId, { x: e.clientX, y: e.clientY });
      if (!drag || drag.mode === "region" || drag.mode === "scroll") state.cursor = voxelAt(canvas, e.clientX, e.clientY);
      if (drag) onDrag(e);
      else canvas.classList.toggle("split", pane.kind === "swipe" && Math.abs(dividerX(canvas) - e.clientX) < 10);
      $("voxel").setAttribute("aria-live", "off");
      refresh(false);
    });
    function onDrag(e) {
      const dx = e.clientX - drag.x, dy = e.clientY - drag.y;
      if (drag.mode === "pan") {
        const { mm } = transform(canvas);
        [state.cx, state.cy] = [drag.cx - dx / mm, drag.cy - dy / mm];
        confine();
      } else if (drag.mode === "window") {
        const gain = Math.max(1, drag.width / 300);
        setWindow(drag.centre + dy * gain, drag.width + dx * gain);
      } else if (drag.mode === "region") {
        const to = state.cursor;
        if (to) state.region = { x0: Math.min(drag.at.x, to.x), y0: Math.min(drag.at.y, to.y), x1: Math.max(drag.at.x, to.x), y1: Math.max(drag.at.y, to.y) };
      } else if (drag.mode === "divider") {
        const box = canvas.getBoundingClientRect();
        $("divider").value = (100 * (e.clientX - box.left)) / box.width;
      } else if (drag.mode === "scroll") {
        const target = drag.slice + Math.trunc(dy / 14);
        if (target !== state.slice) show(target);
      } else if (drag.mode === "pinch" && touches.size === 2) {
        const [p, q] = [...touches.values()];
        const span = Math.hypot(p.x - q.x, p.y - q.y), mx = (p.x + q.x) / 2, my = (p.y + q.y) / 2;
        const { mm } = transform(canvas);
        state.cx -= (mx - drag.mx) / mm;
        state.cy -= (my - drag.my) / mm;
        zoomBy(span / drag.span, canvas, mx, my);
        [drag.span, drag.mx, drag.my] = [span, mx, my];
      }
    }
    const release = (e) => {
      touches.delete(e.pointerId);
      drag = null;
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", (e) => {
      if (drag || e.pointerType === "touch") return;
      state.cursor = null;
      refresh(false);
    });
    canvas.addEventListener("dblclick", () => zoomBy(1 / state.zoom));
  }
  const dividerX = (canvas) => {
    const box = canvas.getBoundingClientRect();
    return box.left + (box.width * $("divider").value) / 100;
  };
  panes.forEach(bindPane);

  root.addEventListener("keydown", (e) => {
    const inField = e.target.matches("input, select");
    if (e.altKey || e.metaKey || e.ctrlKey || (inField && e.key !== "Escape")) return;
    const arrows = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -5, PageDown: 5, Home: -1e9, End: 1e9 };
    const windows = ["lung", "soft", "bone", "full"];
    if (e.shiftKey && arrows[e.key]) moveCursor(...arrows[e.key]);
    else if (steps[e.key]) show(state.slice + steps[e.key]);
    else if (windows[e.key - 1]) usePreset(windows[e.key - 1]);
    else if (e.key === "+" || e.key === "=") zoomBy(1.25);
    else if (e.key === "-") zoomBy(0.8);
    else if (e.key === "0") zoomBy(1 / state.zoom);
    else if (e.key === "d") setDifference(state.difference + 1);
    else if (e.key === "b") blink();
    else if (e.key === "c") setLayout(state.layout === "swipe" ? "panes" : "swipe");
    else if (e.key === "Escape") { state.region = null; refresh(false); }
    else return;
    e.preventDefault();
  });
  $("slice").addEventListener("input", (e) => show(Number(e.target.value)));
  for (const id of ["centre", "width"])
    $(id).addEventListener("input", () => {
      const c = Number($("centre").value), w = Number($("width").value);
      if (Number.isFinite(c) && w >= 1) { [state.centre, state.width, state.preset] = [c, w, null]; refresh(true); }
    });
  root.querySelectorAll("[data-window]").forEach((b) => b.addEventListener("click", () => usePreset(b.dataset.window)));
  root.querySelectorAll("[data-layout]").forEach((b) => b.addEventListener("click", () => setLayout(b.dataset.layout)));
  root.querySelectorAll("[data-zoom]").forEach((b) => b.addEventListener("click", () =>
    zoomBy({ in: 1.25, out: 0.8, reset: 1 / state.zoom }[b.dataset.zoom])));
  if (differencePane) {
    $("difference").addEventListener("change", (e) => setDifference(Number(e.target.value)));
    $("scale").addEventListener("input", (e) => {
      if (Number(e.target.value) >= 1) { state.scale = Number(e.target.value); refresh(true); }
    });
  }
  for (const id of ["left", "right", "divider"]) $(id).addEventListener("input", () => refresh(false));
  $("blink").addEventListener("click", blink);
  new ResizeObserver(() => refresh(false)).observe($("panes"));
  window.addEventListener("beforeprint", () => panes.forEach((p) => p.figure.hidden || drawPane(p)));

  $("panes").style.setProperty("--aspect", Math.min(Math.max((width * pitchX) / (height * pitchY), 0.75), 1.6).toFixed(3));
  setLayout("panes");
  setWindow(...data.windows[data.window], data.window);
  show(state.slice).catch(() => {
    $("voxel").textContent = "This browser cannot unpack the images (it lacks DecompressionStream); any of 2023 or later can.";
  });
})();
