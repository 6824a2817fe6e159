// Merges the masks of queries into segments, as `merge_panoptic` of `heads/panoptic/panoptic_merge.py` does.

const MASK_STEPS = 16; // as in content.py

// Probability of each value of an int8 mask, in float32; a value v is at v + 128.
const MASK_PROBABILITIES = Float32Array.from({ length: 256 }, (_, i) => {
  return 1 / (1 + Math.exp(-(i - 128) / MASK_STEPS));
});

// Segment ids of pixels, 0 for none, and the segments: id (from 1), thing, label, score and area.
function mergePanoptic(view, probs, classes, thresholds) {
  const kept = takingPart(view, probs, classes.length, thresholds.objectThreshold);
  const ids = new Int32Array(view.rows * view.columns);
  if (kept.length === 0) return { ids, segments: [] };
  const contest = contestOf(view, kept);
  const { segmentOf, segments } = segmentsOf(kept, contest, classes, thresholds.overlapThreshold);
  for (let pixel = 0; pixel < ids.length; pixel++) {
    const winner = contest.winner[pixel];
    if (!inside(view, kept[winner].query, pixel)) continue;
    ids[pixel] = segmentOf[winner];
    if (ids[pixel]) segments[ids[pixel] - 1].area++;
  }
  return { ids, segments };
}

// Queries whose best class is not void, and has more than some probability.
function takingPart(view, probs, classes, objectThreshold) {
  const kept = [];
  for (let query = 0; query < view.queries; query++) {
    const row = probs.subarray(query * (classes + 1), (query + 1) * (classes + 1));
    let label = 0;
    for (let i = 1; i <= classes; i++) {
      if (row[i] > row[label]) label = i;
    }
    if (label !== classes && row[label] > objectThreshold) kept.push({ query, label, score: row[label] });
  }
  return kept;
}

// The query that wins each pixel, the first of equal ones, and for each query the pixels that it won, those
// inside its mask, and those that are both.
function contestOf(view, kept) {
  const pixels = view.rows * view.columns;
  const winner = new Int32Array(pixels);
  const best = new Float32Array(pixels).fill(-1);
  const won = new Int32Array(kept.length);
  const half = new Int32Array(kept.length);
  const both = new Int32Array(kept.length);
  kept.forEach(({ query, score }, place) => {
    const scores = MASK_PROBABILITIES.map((probability) => probability * score);
    const mask = view.masks.subarray(query * pixels, (query + 1) * pixels);
    for (let pixel = 0; pixel < pixels; pixel++) {
      const product = scores[mask[pixel] + 128];
      if (product > best[pixel]) {
        best[pixel] = product;
        winner[pixel] = place;
      }
      if (mask[pixel] >= 0) half[place]++;
    }
  });
  for (let pixel = 0; pixel < pixels; pixel++) {
    won[winner[pixel]]++;
    if (inside(view, kept[winner[pixel]].query, pixel)) both[winner[pixel]]++;
  }
  return { winner, won, half, both };
}

function inside(view, query, pixel) {
  return view.masks[query * view.rows * view.columns + pixel] >= 0;
}

// The segment of each query, 0 where it is dropped; stuff of one class is one segment.
function segmentsOf(kept, { won, half, both }, classes, overlapThreshold) {
  const segmentOf = new Int32Array(kept.length);
  const segments = [];
  const stuff = new Map();
  kept.forEach(({ label, score }, place) => {
    if (!(won[place] && half[place] && both[place])) return;
    if (won[place] / half[place] < overlapThreshold) return;
    const { thing } = classes[label];
    if (!thing && stuff.has(label)) {
      segmentOf[place] = stuff.get(label);
      const segment = segments[stuff.get(label) - 1];
      segment.score = Math.max(segment.score, score);
      return;
    }
    segments.push({ id: segments.length + 1, thing, label, score, area: 0 });
    segmentOf[place] = segments.length;
    if (!thing) stuff.set(label, segments.length);
  });
  return { segmentOf, segments };
}
