// Segments of a panoptic model: sliders fuse the scores of generator and CLIP, and masks are merged anew.

const TINT = 0.55; // opacity
const PRESETS = { clip: [1, 1], generator: [0, 0, 0] };

async function unpackSegments(view) {
  if (!view) return null;
  return {
    ...view,
    generator: await unpack(view.generator, Float32Array),
    clip: await unpack(view.clip, Float32Array),
    void: await unpack(view.void, Float32Array),
    valid: await unpack(view.valid, Uint8Array),
    masks: await unpack(view.masks, Int8Array),
  };
}

function listenForFusion(panoptic, changed) {
  const sliders = { alpha: byId("alpha"), beta: byId("beta"), discount: byId("discount"), void: byId("void") };
  const set = (alpha, beta, discount = panoptic.voidDiscount) => {
    sliders.alpha.value = alpha;
    sliders.beta.value = beta;
    sliders.discount.value = discount;
    sliders.void.value = 0;
    changed();
  };
  for (const slider of Object.values(sliders)) slider.oninput = changed;
  for (const button of document.querySelectorAll("[data-fusion]")) {
    button.onclick = () => set(...(PRESETS[button.dataset.fusion] ?? [panoptic.alpha, panoptic.beta]));
  }
  sliders.alpha.value = panoptic.alpha;
  sliders.beta.value = panoptic.beta;
  sliders.discount.value = panoptic.voidDiscount;
}

// A slider moves in hundredths, the model's own exponent may have more digits: where it stands, it counts.
function exponent(slider, own) {
  const value = Number(slider.value);
  return Math.abs(value - own) <= Number(slider.step) / 2 ? own : value;
}

function drawSegments(panoptic, state) {
  const alpha = exponent(byId("alpha"), panoptic.alpha);
  const beta = exponent(byId("beta"), panoptic.beta);
  const discount = exponent(byId("discount"), panoptic.voidDiscount);
  const voidWeight = 2 ** Number(byId("void").value);
  byId("alpha-value").textContent = alpha.toFixed(2);
  byId("beta-value").textContent = beta.toFixed(2);
  byId("discount-value").textContent = discount.toFixed(2);
  byId("void-value").textContent = factorText(voidWeight);
  const view = state.image.panoptic;
  const probs = fuseScores(view, panoptic.classes, alpha, beta, discount, voidWeight);
  const merged = mergePanoptic(view, probs, panoptic.classes, panoptic);
  paintSegments(byId("segments-map"), state.picture, view, merged, panoptic.classes);
  listSegments(merged, view, panoptic.classes);
  return merged;
}

function paintSegments(canvas, picture, view, { ids, segments }, classes) {
  sizeCanvas(canvas, picture);
  const { width, height } = canvas;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const rowOf = (y) => Math.floor((y * view.rows) / height) * view.columns;
  const idAt = (x, y) => ids[rowOf(y) + Math.floor((x * view.columns) / width)];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const id = idAt(x, y);
      const border = id !== idAt(Math.min(width - 1, x + 2), y) || id !== idAt(x, Math.min(height - 1, y + 2));
      const colour = border ? [255, 255, 255] : id ? classes[segments[id - 1].label].colour : [40, 40, 40];
      const opacity = border ? 0.85 : TINT;
      for (let part = 0; part < 3; part++) {
        pixels.data[i + part] = (1 - opacity) * pixels.data[i + part] + opacity * colour[part];
      }
    }
  }
  context.putImageData(pixels, 0, 0);
  nameSegments(context, view, ids, segments, classes);
  const names = segments.map(({ label }) => classes[label].name);
  canvas.setAttribute("aria-label", `Segments: ${names.join(", ") || "none"}`);
}

// Names of segments that have room for them, at the pixel of theirs that is farthest from their border.
function nameSegments(context, view, ids, segments, classes) {
  const scale = context.canvas.width / view.columns;
  const size = Math.max(13, Math.round(context.canvas.width / 32));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  const middles = middlesOf(view, ids, segments.length);
  for (const segment of segments) {
    if (segment.area < 0.01 * ids.length) continue;
    const name = shortened(context, classes[segment.label].name);
    const half = context.measureText(name).width / 2 + 4;
    const column = middles[segment.id] % view.columns;
    const row = Math.floor(middles[segment.id] / view.columns);
    const x = Math.min(context.canvas.width - half, Math.max(half, column * scale));
    const y = Math.min(context.canvas.height - size, Math.max(size, row * scale));
    context.lineWidth = size / 4;
    context.strokeStyle = "rgba(0, 0, 0, 0.75)";
    context.fillStyle = "white";
    context.strokeText(name, x, y);
    context.fillText(name, x, y);
  }
}

function shortened(context, name) {
  const room = context.canvas.width - 16;
  if (context.measureText(name).width <= room) return name;
  const letters = [...name];
  while (letters.length && context.measureText(`${letters.join("")}\u2026`).width > room) letters.pop();
  return `${letters.join("")}\u2026`;
}

// For each id the pixel that is farthest from others, in steps along rows and columns; two passes.
function middlesOf(view, ids, count) {
  const { rows, columns } = view;
  const depths = new Int32Array(ids.length);
  const depth = (pixel, id) => (pixel !== null && ids[pixel] === id ? depths[pixel] : 0);
  const middles = new Int32Array(count + 1).fill(-1);
  for (let pixel = 0; pixel < ids.length; pixel++) {
    const above = pixel >= columns ? pixel - columns : null;
    const left = pixel % columns ? pixel - 1 : null;
    depths[pixel] = 1 + Math.min(depth(above, ids[pixel]), depth(left, ids[pixel]));
  }
  for (let pixel = ids.length - 1; pixel >= 0; pixel--) {
    const below = pixel < (rows - 1) * columns ? pixel + columns : null;
    const right = (pixel + 1) % columns ? pixel + 1 : null;
    const back = 1 + Math.min(depth(below, ids[pixel]), depth(right, ids[pixel]));
    depths[pixel] = Math.min(depths[pixel], back);
    const best = middles[ids[pixel]];
    if (best < 0 || depths[pixel] > depths[best]) middles[ids[pixel]] = pixel;
  }
  return middles;
}

function listSegments({ ids, segments }, view, classes) {
  const rows = [...segments].sort((a, b) => b.area - a.area).map((segment) => {
    const { name, seen, thing, colour } = classes[segment.label];
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    const label = document.createElement("bdi");
    const about = document.createElement("span");
    swatch.style.background = `rgb(${colour})`;
    label.textContent = name;
    const kind = `${thing ? "thing" : "stuff"}${seen ? "" : ", unseen"}`;
    const area = (100 * segment.area) / ids.length;
    about.textContent = `${kind}, score ${segment.score.toFixed(2)}, ${area.toFixed(area < 1 ? 1 : 0)} %`;
    item.append(swatch, label, about);
    return item;
  });
  const drawn = segments.reduce((sum, { area }) => sum + area, 0);
  byId("segments-list").replaceChildren(...rows);
  const left = Math.round(100 * (1 - drawn / ids.length));
  byId("segments-count").textContent = `${segments.length} segments; ${left} % of the image has none`;
}
