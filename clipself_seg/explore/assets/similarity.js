// Cosines of dense features with words and with each other.
//
// A feature is int8 times the scale of its place times the scale of its channel. The scales of channels
// are multiplied into what the features are compared with, so that the long sums are over plain numbers.

const PLACES_AT_ONCE = 256; // then the page may answer clicks

async function unpackModel(model, words) {
  const values = await unpack(model.texts, Int16Array);
  const scales = await unpack(model.textScales, Float32Array);
  const channels = words === 0 ? 0 : values.length / words;
  const texts = Float32Array.from(values, (value, i) => value * scales[Math.floor(i / channels)]);
  return { ...model, texts, channels };
}

async function unpackMap(map) {
  return {
    ...map,
    values: await unpack(map.values, Int8Array),
    ofPlace: await unpack(map.ofPlace, Float32Array),
    ofChannel: await unpack(map.ofChannel, Float32Array),
    ofWords: null, // cosines with every word, once they are asked for
  };
}

// Cosine of every place with each of the vectors, vector after vector.
async function cosines(map, vectors, count) {
  const { channels, values, ofPlace, ofChannel } = map;
  const places = map.rows * map.columns;
  // Zeros fill the last four.
  const scaled = new Float32Array(4 * Math.ceil(count / 4) * channels);
  vectors.forEach((value, i) => (scaled[i] = value * ofChannel[i % channels]));
  const results = new Float32Array(count * places);
  const sums = new Float64Array(4);
  for (let place = 0; place < places; place++) {
    if (count > 1 && place % PLACES_AT_ONCE === PLACES_AT_ONCE - 1) {
      await new Promise((go) => setTimeout(go, 0));
    }
    const feature = new Float32Array(values.subarray(place * channels, (place + 1) * channels));
    for (let vector = 0; vector < count; vector += 4) {
      fourDots(feature, scaled, vector * channels, sums);
      for (let i = 0; i < 4 && vector + i < count; i++) {
        results[(vector + i) * places + place] = sums[i] * ofPlace[place];
      }
    }
  }
  return results;
}

// A feature with four vectors: none of the sums waits for the one before it, which halves the time.
function fourDots(feature, vectors, start, sums) {
  const length = feature.length;
  const second = start + length;
  const third = second + length;
  const fourth = third + length;
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  for (let i = 0; i < length; i++) {
    const value = feature[i];
    a += value * vectors[start + i];
    b += value * vectors[second + i];
    c += value * vectors[third + i];
    d += value * vectors[fourth + i];
  }
  sums[0] = a;
  sums[1] = b;
  sums[2] = c;
  sums[3] = d;
}

// The same promise for everybody who asks meanwhile.
function wordCosines(map, model, words) {
  map.ofWords ??= cosines(map, model.texts, words);
  return map.ofWords;
}

function featureAt(map, place) {
  const start = place * map.channels;
  return Float32Array.from(map.ofChannel, (scale, i) => map.values[start + i] * scale * map.ofPlace[place]);
}

// The cell that holds a point of the image, x and y in [0, 1].
function placeAt(map, x, y) {
  const column = Math.min(map.columns - 1, Math.floor(x * map.across));
  const row = Math.min(map.rows - 1, Math.floor(y * map.down));
  return row * map.columns + column;
}

// The words nearest to a place, the nearest first: [index of the word, cosine].
function nearestWords(ofWords, places, place, words, most) {
  const scores = Array.from({ length: words }, (_, word) => [word, ofWords[word * places + place]]);
  return scores.sort((a, b) => b[1] - a[1]).slice(0, most);
}

// Probability of one word among all at every place: softmax of cosines times the sharpness.
function probabilities(ofWords, places, word, words, sharpness) {
  const levels = new Float32Array(places);
  for (let place = 0; place < places; place++) {
    const own = ofWords[word * places + place];
    let sum = 0;
    for (let other = 0; other < words; other++) {
      sum += Math.exp(sharpness * (ofWords[other * places + place] - own));
    }
    levels[place] = 1 / sum;
  }
  return levels;
}

// Mean of each word's probability over the image.
function meanProbabilities(ofWords, places, words, sharpness) {
  const sums = new Array(words).fill(0);
  for (let place = 0; place < places; place++) {
    const logits = sums.map((_, word) => sharpness * ofWords[word * places + place]);
    const highest = logits.reduce((a, b) => Math.max(a, b));
    const parts = logits.map((value) => Math.exp(value - highest));
    const total = parts.reduce((a, b) => a + b);
    parts.forEach((part, word) => (sums[word] += part / total / places));
  }
  return sums;
}

// 1 for the highest cosines, and falling from there; the mean of the image is at exp(-steepness). A place is
// always most alike to itself, by far for some models: the highest are those of one cell in fifty.
function contrasts(values, steepness) {
  const sorted = Float32Array.from(values).sort();
  const highest = sorted[Math.floor(0.98 * (sorted.length - 1))];
  const mean = sorted.reduce((a, b) => a + b) / sorted.length;
  const range = Math.max(highest - mean, 1e-6);
  return values.map((value) => Math.min(1, Math.exp((steepness * (value - highest)) / range)));
}
