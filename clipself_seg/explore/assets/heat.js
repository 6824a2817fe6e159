// Draws levels of cells in [0, 1] as colours over a grey image, as `visualization.dense_maps.heat_map` does.

const HEAT = 0.7; // opacity

function drawHeat(canvas, image, map, levels, colours) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const large = enlarged(map, levels, width, height);
  const data = pixels.data;
  for (let i = 0, pixel = 0; pixel < large.length; i += 4, pixel++) {
    const grey = (1 - HEAT) * (0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]);
    const colour = 3 * Math.round(255 * Math.min(1, Math.max(0, large[pixel])));
    data[i] = grey + HEAT * colours[colour];
    data[i + 1] = grey + HEAT * colours[colour + 1];
    data[i + 2] = grey + HEAT * colours[colour + 2];
  }
  context.putImageData(pixels, 0, 0);
}

// Levels of pixels, bilinear between the middles of cells; the last cells may go beyond the image.
function enlarged(map, levels, width, height) {
  const columns = steps(width, map.across, map.columns);
  const rows = steps(height, map.down, map.rows);
  const large = new Float32Array(width * height);
  for (let y = 0, pixel = 0; y < height; y++) {
    const above = rows.first[y] * map.columns;
    const below = rows.second[y] * map.columns;
    const down = rows.part[y];
    for (let x = 0; x < width; x++, pixel++) {
      const left = columns.first[x];
      const right = columns.second[x];
      const part = columns.part[x];
      const top = levels[above + left] * (1 - part) + levels[above + right] * part;
      const bottom = levels[below + left] * (1 - part) + levels[below + right] * part;
      large[pixel] = top * (1 - down) + bottom * down;
    }
  }
  return large;
}

// For each pixel of a side the two cells that it lies between, and how far it is from the first.
function steps(pixels, across, cells) {
  const first = new Int32Array(pixels);
  const second = new Int32Array(pixels);
  const part = new Float32Array(pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const place = Math.min(cells - 1, Math.max(0, ((pixel + 0.5) * across) / pixels - 0.5));
    first[pixel] = Math.floor(place);
    second[pixel] = Math.min(cells - 1, first[pixel] + 1);
    part[pixel] = place - first[pixel];
  }
  return { first, second, part };
}
