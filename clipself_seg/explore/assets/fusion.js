// Fuses the scores of generator and CLIP, as `fuse_scores` of `heads/fusion.py` does: a weighted geometric
// mean of two softmaxes, in log space. Rows are queries, and void is the last of their columns.

const LIMIT = 3.4028234663852886e38 / 8; // of float32: a product of two stays finite

// Probabilities (Q, K + 1) float32. `voidDiscount` is the weight by which CLIP's best class lowers void. `voidWeight`
// multiplies the odds of what is left of it; 1 leaves it as it is.
function fuseScores(view, classes, alpha, beta, voidDiscount, voidWeight) {
  const count = classes.length;
  const probs = new Float32Array(view.queries * (count + 1));
  for (let query = 0; query < view.queries; query++) {
    const start = query * count;
    const generator = logProbabilities(view.generator.subarray(start, start + count));
    let mixed = generator;
    let left = view.void[query];
    if (view.valid[query]) {
      const clip = logProbabilities(view.clip.subarray(start, start + count));
      left *= 1 - voidDiscount * Math.exp(clip.reduce((a, b) => Math.max(a, b), -Infinity));
      mixed = generator.map((value, i) => {
        const exponent = classes[i].seen ? alpha : beta;
        return (1 - exponent) * value + exponent * clip[i];
      });
    }
    const nothing = weighted(left, voidWeight);
    const fused = logProbabilities(mixed);
    const row = query * (count + 1);
    for (let i = 0; i < count; i++) {
      probs[row + i] = Math.exp(fused[i]) * (1 - nothing);
    }
    probs[row + count] = nothing;
  }
  return probs;
}

function logProbabilities(logits) {
  const finite = Array.from(logits, (value) => Math.min(LIMIT, Math.max(-LIMIT, value)));
  const highest = finite.reduce((a, b) => Math.max(a, b), -Infinity);
  const sum = finite.reduce((total, value) => total + Math.exp(value - highest), 0);
  return finite.map((value) => value - highest - Math.log(sum));
}

function weighted(probability, weight) {
  return weight === 1 ? probability : (probability * weight) / (probability * weight + 1 - probability);
}
