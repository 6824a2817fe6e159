// Arrays out of text: base64 of gzip of little-endian numbers, as `content.py` packs them.

function requireUnpacking() {
  if ("DecompressionStream" in window) return;
  throw new Error("This browser is too old: it cannot unpack the features. One of 2023 or later can.");
}

async function unpack(text, Kind) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Kind(await new Response(stream).arrayBuffer());
}
