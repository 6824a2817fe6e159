// Sends an image and words to the server's API, and shows what comes back.

const SIDE_OF_UPLOAD = 1600; // a larger image is made smaller before it is sent, as the server would
const LEAST_DRAG = 6; // pixels, below which it is a click

function addressOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

async function encoded(blob) {
  const address = await addressOf(blob);
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
  // With the token of the page's own address, which is out of addresses that are kept in logs.
  const token = new URLSearchParams(location.search).get("token");
  const answer = await fetch(`/api/${task}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) },
    body,
  }).catch(() => {
    throw new Error("The server does not answer.");
  });
  const value = await answer.json().catch(() => ({ error: `The server answers ${answer.status}.` }));
  if (!answer.ok) throw new Error(value.error);
  return value;
}

// `answer` gives the answer to a task, of the server or of the page.
async function show(answer, tasks, name, file) {
  const maps = answer("maps");
  // A format that the browser does not know is drawn as the server shows it.
  const picture = addressOf(file).then(pictureOf).catch(async () => pictureOf((await maps).image.jpeg));
  const asked = tasks.map((task) => showResult(task, answer(task), picture));
  byId("results")?.toggleAttribute("hidden", false);
  await Promise.all([maps.then((said) => showMaps(said, name)), picture, ...asked]);
}

async function showMaps({ models, image }, name) {
  const explorer = new Explorer(models);
  window.explorer = explorer;
  await explorer.begin();
  byId("exploring").hidden = false;
  byId("maps-title").hidden = false;
  await explorer.show({ ...image, name });
}

async function showResult(task, asked, picture) {
  const part = document.querySelector(`.result[data-task="${task}"]`);
  const [note, canvas, table] = ["p", "canvas", "table"].map((kind) => part.querySelector(kind));
  note.textContent = "The model is running ...";
  canvas.hidden = true;
  table.hidden = true;
  try {
    const answer = await asked;
    drawAnswer(canvas, await picture, answer);
    canvas.hidden = false;
    const absent = answer.absent.length ? `Not in the image: ${answer.absent.join(", ")}` : "";
    const nothing = answer.segments.length ? "" : "Nothing was found";
    note.textContent = [answer.warning, nothing, absent].filter(Boolean).join(". ");
    table.hidden = answer.segments.length === 0;
    table.tBodies[0].replaceChildren(...answer.segments.map((segment) => rowOf(task, segment, answer)));
  } catch (error) {
    note.textContent = error.message;
  }
}

function rowOf(task, { name, colour, score, area, thing, seen }, { width, height }) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  const swatch = document.createElement("i");
  const label = document.createElement("bdi");
  swatch.style.background = `rgb(${colour})`;
  label.textContent = name;
  head.scope = "row";
  head.append(swatch, label);
  const kind = thing ? "thing" : "stuff";
  const about = [task === "panoptic" && kind, seen === false && "unseen"].filter(Boolean).join(", ");
  const percent = (100 * area) / (width * height);
  const cells = [score.toFixed(2), `${percent.toFixed(percent < 10 ? 1 : 0)} %`, about].map((text) => {
    const cell = document.createElement("td");
    cell.textContent = text;
    return cell;
  });
  row.append(head, ...cells);
  return row;
}

// Boxes that are drawn in the image or a map, as fractions of it: by a mouse at any time, by a finger after a press on
// the button, since it scrolls the page otherwise.
function listenForBoxes(drawn) {
  let from = null;
  let box = null;
  const button = byId("draw");
  const setDrawing = (on) => {
    button.setAttribute("aria-pressed", on);
    document.body.classList.toggle("drawing", on);
  };
  const isDrawing = () => document.body.classList.contains("drawing");
  button.onclick = () => setDrawing(!isDrawing());
  const fraction = (at, start, length) => Math.min(1, Math.max(0, (at - start) / length));
  document.addEventListener("pointerdown", (event) => {
    const place = event.target.closest?.(".place");
    const draws = event.pointerType !== "touch" || isDrawing();
    if (place && event.button === 0 && draws) from = { place, x: event.clientX, y: event.clientY };
  });
  document.addEventListener("pointercancel", () => (from = box = null));
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
      setDrawing(false);
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
    absent: byId("absent").checked ? "mark" : null,
    examples,
  });
  if (body.length > limits.size) throw new Error(`The image is larger than ${limits.size / 1e6} MB.`);
  await show((task) => ask(task, body), tasks, name, file);
}

function serve() {
  requireUnpacking();
  const server = JSON.parse(byId("server").textContent);
  let last = null;
  const examples = makeExamples(() => last?.file);
  // One question at a time: answers of two would stand side by side as if they were of one image.
  const askers = [byId("look"), byId("file"), byId("camera"), ...document.querySelectorAll(".example")];
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
      byId("exploring").hidden = true;
      byId("maps-title").hidden = true; // the maps of an earlier question are no answer to this one
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
  const goWithout = (file, name) => {
    byId("file").value = "";
    go(file, name);
  };
  byId("camera").addEventListener("change", () => {
    const [file] = byId("camera").files;
    if (file) goWithout(file, file.name);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (file && !byId("look").disabled) goWithout(file, "pasted image");
  });
  byId("api").search = location.search;
  for (const image of document.querySelectorAll(".example img")) {
    const { src, alt } = image;
    image.parentElement.addEventListener("click", () => goWithout(bytesOf(src), alt));
    // The first one is answered in the page.
    if (!last) go(bytesOf(src), alt, show(async (task) => server.first[task], server.tasks, alt, bytesOf(src)));
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
