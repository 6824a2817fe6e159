// Draws an answer of the API over the image: masks of run lengths, else boxes, with their names.

// Lengths of COCO's compressed runs, which are outside and inside of the mask in turn, down the columns.
function runsOf(counts) {
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let part = 32;
    while (part & 32) {
      part = counts.charCodeAt(at) - 48;
      value |= (part & 31) << shift;
      shift += 5;
      at += 1;
    }
    if (part & 16) value |= -1 << shift;
    // From the third on it is the difference to the last but one.
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// For each pixel, row by row, the number of its segment from 1, or 0; the first of those that overlap.
function idsOf(segments, width, height) {
  const ids = new Int32Array(width * height);
  for (let id = segments.length; id > 0; id--) {
    const { segmentation } = segments[id - 1];
    let pixel = 0;
    let inside = false;
    for (const run of segmentation ? runsOf(segmentation.counts) : []) {
      for (const end = pixel + run; pixel < end; pixel++) {
        if (inside) ids[(pixel % height) * width + Math.floor(pixel / height)] = id;
      }
      inside = !inside;
    }
  }
  return ids;
}

function drawAnswer(canvas, picture, { width, height, segments }) {
  const view = { columns: width, rows: height };
  const drawn = segments.map(({ area, score }, index) => ({ id: index + 1, label: index, area, score }));
  if (segments.length && segments.every(({ segmentation }) => segmentation)) {
    paintSegments(canvas, picture, view, { ids: idsOf(segments, width, height), segments: drawn }, segments);
  } else {
    sizeCanvas(canvas, picture);
    drawBoxes(canvas.getContext("2d"), picture, width, segments);
  }
  const names = segments.map(({ name }) => name);
  canvas.setAttribute("aria-label", names.length ? `The image with ${names.join(", ")}` : "The image");
}

function drawBoxes(context, picture, width, segments) {
  const { canvas } = context;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const scale = canvas.width / width;
  const size = Math.max(13, Math.round(canvas.width / 36));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { name, score, box, colour } of [...segments].reverse()) { // the best are on top
    const [left, top, across, down] = box.map((side) => side * scale);
    context.lineWidth = size / 5;
    context.strokeStyle = `rgb(${colour})`;
    context.strokeRect(left, top, across, down);
    const text = shortened(context, `${name} ${score.toFixed(2)}`);
    const room = context.measureText(text).width + 8;
    const x = Math.max(0, Math.min(left, canvas.width - room));
    const y = Math.max(0, top - size - 4);
    context.fillStyle = "rgba(0, 0, 0, 0.75)";
    context.fillRect(x, y, room, size + 4);
    context.fillStyle = "white";
    context.fillText(text, x + 4, y + 2);
  }
}
