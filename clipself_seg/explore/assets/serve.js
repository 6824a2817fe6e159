// Sends an image and words to the server, and shows what comes back.

const SIDE_OF_UPLOAD = 1600; // a larger image is made smaller before it is sent, as the server would
const LEAST_DRAG = 6; // pixels, below which it is a click

async function encoded(blob) {
  const address = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
  return address.slice(address.indexOf(",") + 1);
}

// Smaller where that is needed; a format that the browser does not know goes as it is.
async function fitted(blob) {
  const image = await createImageBitmap(blob).catch(() => null);
  const longest = image ? Math.max(image.width, image.height) : 0;
  if (longest <= SIDE_OF_UPLOAD) return blob;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round((image.width * SIDE_OF_UPLOAD) / longest);
  canvas.height = Math.round((image.height * SIDE_OF_UPLOAD) / longest);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

async function ask(task, body) {
  // With the token of the page's own address.
  const answer = await fetch(`/api/${task}${location.search}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body,
  }).catch(() => {
    throw new Error("The server does not answer.");
  });
  const value = await answer.json().catch(() => ({ error: `The server answers ${answer.status}.` }));
  if (!answer.ok) throw new Error(value.error);
  return value;
}

// `answer` gives the answer to a task, of the server or of the page.
async function show(answer, tasks, name) {
  if (tasks.length) byId("results").hidden = false;
  const asked = Promise.all(tasks.map((task) => showResult(task, answer)));
  await showMaps(answer, tasks, name);
  await asked;
}

async function showMaps(answer, tasks, name) {
  const wanted = tasks.includes("panoptic") ? ["maps", "view"] : ["maps"];
  const [maps, view] = await Promise.all(wanted.map(answer));
  const explorer = new Explorer({ ...maps.models, panoptic: view?.model ?? null });
  window.explorer = explorer;
  await explorer.begin();
  byId("exploring").hidden = false;
  await explorer.show({ ...maps.image, name, panoptic: view?.image ?? null });
}

async function showResult(task, answer) {
  const part = document.querySelector(`.result[data-task="${task}"]`);
  const [note, image, table] = ["p", "img", "table"].map((kind) => part.querySelector(kind));
  note.textContent = "The model is running ...";
  image.hidden = true;
  table.hidden = true;
  try {
    const { warning, overlay, columns, rows, more } = await answer(task);
    image.src = overlay;
    image.alt = rows.length ? `The image with ${rows.map(([name]) => name).join(", ")}` : "The image";
    image.hidden = false;
    const count = rows.length ? (more ? `${more} more are not listed` : "") : "Nothing was found.";
    note.textContent = [warning, count].filter(Boolean).join(". ");
    table.hidden = rows.length === 0;
    table.tHead.rows[0].replaceChildren(...columns.map((text) => cellOf("th", "col", text)));
    table.tBodies[0].replaceChildren(...rows.map(rowOf));
  } catch (error) {
    note.textContent = error.message;
  }
}

function rowOf(cells) {
  const row = document.createElement("tr");
  row.append(...cells.map((text, index) => (index ? cellOf("td", "", text) : cellOf("th", "row", text))));
  return row;
}

function cellOf(kind, scope, text) {
  const cell = document.createElement(kind);
  if (scope) cell.scope = scope;
  cell.dir = "auto";
  cell.textContent = text;
  return cell;
}

// Boxes that are drawn with the mouse in the image or a map, as fractions of it.
function listenForBoxes(drawn) {
  let from = null;
  let box = null;
  const fraction = (at, start, length) => Math.min(1, Math.max(0, (at - start) / length));
  document.addEventListener("pointerdown", (event) => {
    const place = event.target.closest?.(".place");
    if (place && event.button === 0 && event.pointerType !== "touch") from = { place, x: event.clientX, y: event.clientY };
  });
  document.addEventListener("dragstart", (event) => event.target.closest?.(".place") && event.preventDefault());
  document.addEventListener("pointermove", (event) => {
    if (!from || (!box && Math.hypot(event.clientX - from.x, event.clientY - from.y) < LEAST_DRAG)) return;
    const { left, top, width, height } = from.place.getBoundingClientRect();
    const [xs, ys] = [[from.x, event.clientX].map((x) => fraction(x, left, width)), [from.y, event.clientY].map((y) => fraction(y, top, height))];
    box = [Math.min(...xs), Math.min(...ys), Math.abs(xs[0] - xs[1]), Math.abs(ys[0] - ys[1])];
    let shown = document.querySelector(".drawn");
    if (shown?.parentElement !== from.place) {
      shown?.remove();
      shown = document.createElement("span");
      shown.className = "drawn";
      from.place.append(shown);
    }
    ["left", "top", "width", "height"].forEach((side, index) => (shown.style[side] = `${100 * box[index]}%`));
  });
  document.addEventListener("pointerup", () => {
    if (box) {
      // The click that follows chooses no place.
      const swallow = (event) => event.stopPropagation();
      document.addEventListener("click", swallow, { capture: true, once: true });
      setTimeout(() => document.removeEventListener("click", swallow, true));
      drawn(box);
    }
    from = box = null;
  });
}

// The examples that were drawn, and the controls that add and remove them.
function makeExamples(image) {
  const examples = [];
  let box = null;
  listenForBoxes((drawn) => {
    box = drawn;
    byId("example").hidden = false;
    byId("example-name").focus();
  });
  const list = () => {
    byId("examples").replaceChildren(...examples.map((example) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dir = "auto";
      button.textContent = `\u2715 ${example.name}`;
      button.title = "Remove this example";
      button.onclick = () => {
        examples.splice(examples.indexOf(example), 1);
        list();
      };
      return button;
    }));
  };
  const add = async () => {
    const name = byId("example-name").value.trim();
    if (!name || !box || !image()) return;
    examples.push({ name, image: await encoded(await fitted(image())), box });
    box = null;
    byId("example").hidden = true;
    document.querySelector(".drawn")?.remove();
    list();
    byId("ask").requestSubmit();
  };
  byId("add-example").onclick = add;
  byId("example-name").onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    add();
  };
  return examples;
}

async function look(file, name, { tasks, limits }, examples) {
  const image = await encoded(await fitted(file));
  const body = JSON.stringify({
    image,
    words: byId("typed-words").value,
    stuff: byId("typed-stuff")?.value ?? "",
    examples,
  });
  if (body.length > limits.size) throw new Error(`The image is larger than ${limits.size / 1e6} MB.`);
  await show((task) => ask(task, body), tasks, name);
}

function serve() {
  requireUnpacking();
  const server = JSON.parse(byId("server").textContent);
  let last = null;
  const examples = makeExamples(() => last?.file);
  // One question at a time: answers of two would stand side by side as if they were of one image.
  const askers = [byId("look"), byId("file"), ...document.querySelectorAll(".example")];
  const setBusy = (busy) => askers.forEach((control) => (control.disabled = busy));
  const go = async (file, name, work = look(file, name, server, examples)) => {
    last = { file, name };
    setBusy(true);
    byId("asking").textContent = "The models are running ...";
    try {
      await work;
      byId("asking").textContent = "";
    } catch (error) {
      byId("asking").textContent = error.message;
      byId("exploring").hidden = true; // the maps of an earlier question are no answer to this one
    }
    setBusy(false);
    document.body.dataset.answered = Number(document.body.dataset.answered ?? 0) + 1;
  };
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const [file] = byId("file").files;
    if (file) go(file, file.name);
    else if (last) go(last.file, last.name);
    else byId("asking").textContent = "Choose an image first.";
  });
  byId("file").addEventListener("change", () => {
    if (byId("file").files.length) byId("ask").requestSubmit();
  });
  for (const image of document.querySelectorAll(".example img")) {
    const { src, alt } = image;
    image.parentElement.addEventListener("click", () => {
      byId("file").value = "";
      go(bytesOf(src), alt);
    });
    // The first one is answered in the page.
    if (!last) go(bytesOf(src), alt, show((task) => server.first[task], server.tasks, alt));
  }
}

// The content of an address that has it inside; fetch may only ask the server.
function bytesOf(address) {
  const letters = atob(address.slice(address.indexOf(",") + 1));
  return new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))], { type: "image/jpeg" });
}

try {
  serve();
} catch (error) {
  byId("asking").textContent = error.message;
  throw error;
}
