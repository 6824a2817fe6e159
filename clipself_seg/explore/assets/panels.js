// The heat map of each model, and below it what the numbers are.

const NEAREST = 5; // words below a map
const STEEPNESS = 3 / 100; // of contrasts, for each unit of sharpness
const LONGEST = 512; // pixels of a map that are at least drawn, so that it is smooth

function makePanels(models) {
  byId("panels").querySelectorAll(".panel:not(:first-child)").forEach((panel) => panel.remove());
  const template = byId("panel");
  return models.map((model) => {
    const panel = template.content.cloneNode(true).firstElementChild;
    panel.querySelector(".title").textContent = model.title;
    panel.querySelector(".title").title = `${model.architecture}, weights ${model.weights}, at ${model.side} pixels`;
    byId("panels").append(panel);
    return {
      canvas: panel.querySelector("canvas"),
      note: panel.querySelector(".note"),
      nearest: panel.querySelector(".nearest"),
    };
  });
}

async function drawPanels(panels, models, words, heat, state) {
  const asked = state.count;
  for (const [index, panel] of panels.entries()) {
    const model = models[index];
    const map = state.image.maps[index];
    const ofWords = await wordCosines(map, model, words.length);
    if (asked !== state.count) return; // something else was chosen meanwhile
    const view = state.place === null
      ? wordView(map, ofWords, words, state)
      : await placeView(map, state);
    sizeCanvas(panel.canvas, state.picture);
    drawHeat(panel.canvas, state.picture, map, view.levels, heat);
    panel.canvas.setAttribute("aria-label", `${model.title}: ${view.text}, ${brightest(map, view.levels)}`);
    panel.note.textContent = view.note;
    panel.nearest.hidden = state.place === null;
    if (state.place !== null) listNearest(panel.nearest, map, ofWords, words, state.place);
  }
}

function wordView(map, ofWords, words, state) {
  const places = map.rows * map.columns;
  const own = ofWords.subarray(state.word * places, (state.word + 1) * places);
  // One word alone has nothing to be compared with but the rest of the image.
  const levels = words.length > 1
    ? probabilities(ofWords, places, state.word, words.length, state.sharpness)
    : contrasts(own, STEEPNESS * state.sharpness);
  return { levels, note: rangeText(own), text: `heat map of the word ${words[state.word][0]}` };
}

async function placeView(map, state) {
  const feature = featureAt(map, placeAt(map, state.place.x, state.place.y));
  const own = await cosines(map, feature, 1);
  const text = `heat map of likeness to the place ${placeText(state.place)}`;
  return { levels: contrasts(own, STEEPNESS * state.sharpness), note: rangeText(own), text };
}

function rangeText(values) {
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  return `cosines ${signed(low)} to ${signed(high)}`;
}

function signed(value) {
  return value.toFixed(2).replace("-", "\u2212");
}

function brightest(map, levels) {
  const place = levels.indexOf(levels.reduce((a, b) => Math.max(a, b)));
  const x = Math.min(1, ((place % map.columns) + 0.5) / map.across);
  const y = Math.min(1, (Math.floor(place / map.columns) + 0.5) / map.down);
  return `brightest ${placeText({ x, y })}`;
}

function listNearest(list, map, ofWords, words, { x, y }) {
  const places = map.rows * map.columns;
  const nearest = nearestWords(ofWords, places, placeAt(map, x, y), words.length, NEAREST);
  const highest = Math.max(nearest[0][1], 1e-6);
  list.replaceChildren(...nearest.map(([word, score]) => {
    const item = document.createElement("li");
    const name = document.createElement("bdi");
    const value = document.createElement("span");
    const bar = document.createElement("i");
    name.textContent = words[word][0];
    value.textContent = signed(score);
    bar.style.width = `calc((100% - 3.2rem) * ${Math.max(0, score / highest)})`;
    item.append(name, value, bar);
    return item;
  }));
}

// As many pixels as the picture has, and more where it is small.
function sizeCanvas(canvas, picture) {
  const scale = Math.max(1, LONGEST / Math.max(picture.naturalWidth, picture.naturalHeight));
  canvas.width = Math.round(picture.naturalWidth * scale);
  canvas.height = Math.round(picture.naturalHeight * scale);
}
