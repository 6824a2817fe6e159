// Begins with the models and images that are in the file.

const read = (element) => JSON.parse(element.textContent);

async function start() {
  requireUnpacking();
  const explorer = new Explorer(read(byId("models")));
  window.explorer = explorer; // for whoever looks from the browser's console
  await explorer.begin();
  const blocks = [...document.querySelectorAll("script.image")];
  const inputs = read(byId("buttons")).map((button, index) => {
    return addImageButton(button, () => explorer.show(read(blocks[index])));
  });
  if (inputs.length === 0) return;
  inputs[0].checked = true;
  await explorer.show(read(blocks[0]));
}

start().catch((error) => {
  byId("status").textContent = error.message;
  throw error;
});
