"use strict";
// Slices back from text: the inverse of report/voxels.py.
class SliceStore {
  constructor(texts, width, height, capacity) {
    this.texts = texts; // [stack][slice] base64
    this.width = width;
    this.height = height;
    this.capacity = capacity;
    this.cache = new Map(); // insertion order is age
  }

  // Promise of Int16Array [y * x] in HU.
  slice(stack, index) {
    const key = stack + ":" + index;
    let promise = this.cache.get(key);
    if (promise) this.cache.delete(key);
    else promise = this.decode(this.texts[stack][index]);
    this.cache.set(key, promise);
    if (this.cache.size > this.capacity) this.cache.delete(this.cache.keys().next().value);
    return promise;
  }

  async decode(text) {
    const packed = atob(text);
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = packed.charCodeAt(i);
    const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(inflated).arrayBuffer());
    return this.predict(planes);
  }

  predict(planes) {
    const width = this.width, count = width * this.height;
    const hu = new Int16Array(count);
    for (let i = 0; i < count; i++) {
      const folded = planes[i] | (planes[count + i] << 8);
      const residual = (folded >>> 1) ^ -(folded & 1);
      const first = i % width === 0, top = i < width;
      let predicted;
      if (top) predicted = first ? 0 : hu[i - 1];
      else if (first) predicted = hu[i - width];
      else {
        const west = hu[i - 1], north = hu[i - width], corner = hu[i - width - 1];
        const low = west < north ? west : north, high = west < north ? north : west;
        predicted = corner >= high ? low : corner <= low ? high : west + north - corner;
      }
      hu[i] = predicted + residual;
    }
    return hu;
  }
}
