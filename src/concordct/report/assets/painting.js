"use strict";
// HU to colours, and what is drawn over an image. Knows nothing of the viewer's state.
const Painting = (() => {
  // Blue below, black at zero, orange above: told apart by every kind of colour vision, and quiet beside grey images.
  const STOPS = [[178, 224, 255], [30, 120, 200], [10, 10, 12], [205, 92, 10], [255, 222, 150]];
  function diverging(t) {
    const at = Math.min(Math.max(t, 0), 1) * (STOPS.length - 1);
    const i = Math.min(Math.floor(at), STOPS.length - 2), f = at - i;
    return STOPS[i].map((c, k) => Math.round(c + f * (STOPS[i + 1][k] - c)));
  }
  const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
  const packed = (r, g, b) => (little ? (255 << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | 255) >>> 0;
  const PALETTE = Uint32Array.from({ length: 511 }, (_, i) => packed(...diverging(i / 510)));
  const GREY = Uint32Array.from({ length: 256 }, (_, v) => packed(v, v, v));
  const minus = (text) => String(text).replace("-", "−");

  function stack(buffer, hu, centre, width) {
    const out = new Uint32Array(buffer.pixels.data.buffer);
    const low = centre - width / 2, gain = 255 / width;
    for (let i = 0; i < out.length; i++) {
      const v = (hu[i] - low) * gain;
      out[i] = GREY[v < 0 ? 0 : v > 255 ? 255 : v | 0];
    }
    buffer.context.putImageData(buffer.pixels, 0, 0);
  }
  function difference(buffer, minuend, subtrahend, scale) {
    const out = new Uint32Array(buffer.pixels.data.buffer);
    const gain = 255 / scale;
    for (let i = 0; i < out.length; i++) {
      const v = (minuend[i] - subtrahend[i]) * gain;
      out[i] = PALETTE[255 + (v < -255 ? -255 : v > 255 ? 255 : Math.round(v))];
    }
    buffer.context.putImageData(buffer.pixels, 0, 0);
  }
  function tag(context, text, x, y, align, visible) {
    if (!visible) return;
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = align;
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0,0,0,.75)";
    context.strokeText(text, x, y);
    context.fillStyle = "#f3e9c8";
    context.fillText(text, x, y);
  }
  function outline(context, t, r, pitchX, pitchY) {
    context.strokeStyle = "#ffd166";
    context.lineWidth = 1.25;
    context.strokeRect(
      t.left + r.x0 * pitchX * t.mm, t.top + r.y0 * pitchY * t.mm,
      (r.x1 - r.x0 + 1) * pitchX * t.mm, (r.y1 - r.y0 + 1) * pitchY * t.mm);
  }
  function cross(context, t, cursor, pitchX, pitchY) {
    const x = t.left + (cursor.x + 0.5) * pitchX * t.mm, y = t.top + (cursor.y + 0.5) * pitchY * t.mm;
    context.strokeStyle = "rgba(120,230,160,.9)";
    context.lineWidth = 1;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 5 * dx, y + 5 * dy);
      context.lineTo(x + 12 * dx, y + 12 * dy);
    }
    context.stroke();
  }
  function colourBar(context, t, scale) {
    const w = Math.min(160, t.w * 0.5), x = (t.w - w) / 2, y = t.h - 24;
    context.fillStyle = "rgba(0,0,0,.7)";
    context.fillRect(x - 34, y - 5, w + 68, 27);
    const bar = context.createLinearGradient(x, 0, x + w, 0);
    for (let i = 0; i <= 16; i++) bar.addColorStop(i / 16, `rgb(${diverging(i / 16).join(",")})`);
    context.fillStyle = bar;
    context.fillRect(x, y, w, 7);
    context.strokeStyle = "rgba(255,255,255,.5)";
    context.lineWidth = 0.5;
    context.strokeRect(x, y, w, 7);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = "#fff";
    context.textAlign = "center";
    [[0, minus(-scale)], [0.5, "0 HU"], [1, "+" + scale]].forEach(([f, text]) => context.fillText(text, x + f * w, y + 18));
  }
  return { stack, difference, tag, outline, cross, colourBar, minus };
})();
