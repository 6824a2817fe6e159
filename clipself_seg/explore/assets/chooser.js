// Buttons of images and of words. They are radio buttons, so that arrow keys move among them.

const MANY_WORDS = 24; // then there is a box to look for one

function byId(id) {
  return document.getElementById(id);
}

function addImageButton({ name, jpeg }, choose) {
  const button = byId("image-button").content.cloneNode(true).firstElementChild;
  const input = button.querySelector("input");
  button.querySelector("img").src = jpeg;
  button.querySelector("img").alt = name;
  button.title = name;
  input.addEventListener("change", choose);
  byId("images").append(button);
  byId("images-part").hidden = byId("images").children.length < 2;
  return input;
}

function makeWordButtons(words, state, changed) {
  const inputs = words.map((names, index) => {
    const button = byId("word-button").content.cloneNode(true).firstElementChild;
    const input = button.querySelector("input");
    button.querySelector("bdi").textContent = names[0];
    if (names.length > 1) button.title = names.join(", ");
    input.addEventListener("change", () => {
      state.word = index;
      state.place = null;
      changed();
    });
    return input;
  });
  byId("words").replaceChildren(...inputs.map((input) => input.parentElement));
  byId("word-search").value = ""; // what was looked for among the words before
  byId("word-search").parentElement.hidden = words.length <= MANY_WORDS;
  byId("word-search").oninput = (event) => {
    const wanted = event.target.value.trim().toLocaleLowerCase();
    inputs.forEach((input, index) => {
      const matches = words[index].some((name) => name.toLocaleLowerCase().includes(wanted));
      input.parentElement.hidden = !matches;
    });
  };
  return inputs;
}

function factorText(factor) {
  const text = factor >= 1 ? Number(factor.toPrecision(3)) : factor.toPrecision(2);
  return `\u00d7 ${text}`;
}
