// Ties the parts of the page together: what is chosen, and what is drawn when it changes.

const SHARPNESS = 100; // what official CLIPs multiply cosines by

async function pictureOf(address) {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  return picture;
}

class Explorer {
  // Another one takes the place of the one before.
  constructor(content) {
    this.content = content;
    this.asked = 0; // for how many images
    this.state = { image: null, picture: null, word: null, place: null, sharpness: SHARPNESS, count: 0 };
    this.panels = makePanels(content.models);
    this.words = makeWordButtons(content.words, this.state, () => this.draw());
    listenForPlaces(byId("panels"), byId("first-place"), this.state, () => this.draw());
    byId("sharpness").oninput = () => this.draw();
    byId("segments").hidden = content.panoptic === null;
    if (content.panoptic) listenForFusion(content.panoptic, () => this.drawSegments());
  }

  async begin() {
    const words = this.content.words.length;
    this.models = await Promise.all(this.content.models.map((model) => unpackModel(model, words)));
  }

  async show(image) {
    const asked = ++this.asked;
    byId("status").textContent = "Unpacking the features ...";
    const maps = await Promise.all(image.maps.map(unpackMap));
    const panoptic = await unpackSegments(image.panoptic);
    const picture = await pictureOf(image.jpeg); // the page shows the image before until all is here
    if (asked !== this.asked) return; // another image was chosen meanwhile
    byId("picture").src = image.jpeg;
    byId("picture").alt = image.name;
    this.state.image = { ...image, maps, panoptic };
    this.state.picture = picture;
    byId("picture-name").textContent = image.name;
    byId("picture-size").textContent = `${image.width} \u00d7 ${image.height} pixels`;
    byId("warning").textContent = image.warning || image.panoptic?.warning || "";
    if (this.state.word === null && this.state.place === null) this.state.word = await this.telling();
    await this.draw();
    this.drawSegments();
  }

  // What to look at first: the word whose mean probability changes most from the first to the last model.
  async telling() {
    const words = this.content.words.length;
    const [first, last] = await Promise.all([0, this.models.length - 1].map(async (index) => {
      const map = this.state.image.maps[index];
      const ofWords = await wordCosines(map, this.models[index], words);
      return meanProbabilities(ofWords, map.rows * map.columns, words, this.state.sharpness);
    }));
    const gains = last.map((value, word) => (this.models.length > 1 ? value - first[word] : value));
    return gains.indexOf(Math.max(...gains));
  }

  async draw() {
    if (!this.state.image) return;
    this.state.count++;
    this.state.sharpness = SHARPNESS * 2 ** Number(byId("sharpness").value);
    byId("sharpness-value").textContent = Math.round(this.state.sharpness);
    this.words.forEach((input, index) => (input.checked = index === this.state.word));
    showCrosses(this.state.place);
    byId("status").textContent = this.statusText();
    await drawPanels(this.panels, this.models, this.content.words, this.content.heat, this.state);
    document.body.dataset.drawn = this.state.count;
  }

  statusText() {
    const { words } = this.content;
    if (this.state.place) return `Bright areas match the place ${placeText(this.state.place)}.`;
    const word = `\u201c\u2068${words[this.state.word][0]}\u2069\u201d`;
    if (words.length === 1) return `Bright areas match ${word}.`;
    return `Bright areas match ${word} best of the ${words.length} words.`;
  }

  drawSegments() {
    if (this.state.image?.panoptic) drawSegments(this.content.panoptic, this.state);
  }
}

