"""Pages of the site of the documentation beside docs/: a hook of mkdocs, which mkdocs.yml names.

Pages of the repository that lie elsewhere (README.md, CHANGELOG.md ...), with links that fit the site; the
reference of the package, a page a room, which mkdocstrings fills from the docstrings without importing anything; and
a page of heat maps to click, which `clipself-seg explore` writes of the shipped models and scenes.
"""

from __future__ import annotations

import functools
import json
import posixpath
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent

# Pages elsewhere in the repository -> their names in the site.
ELSEWHERE = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "clipself_seg/mini/CARD.md": "card.md",
    "tests/parity/README.md": "parity.md",
}
# Pages of the reference -> title and modules, below clipself_seg.
REFERENCE = {
    "features": (
        "Features and texts",
        "clip.model clip.text_bank clip.region_pooling clip.tower clip.tower_kind clip.find_kind clip.vision_language "
        "clip.backbone",
    ),
    "predictors": (
        "Predictors and results",
        "prediction.load prediction.predictor prediction.task_predictors prediction.results "
        "prediction.writers prediction.pretrained prediction.dense_maps "
        "prediction.onnx.export prediction.onnx.graph prediction.onnx.towers",
    ),
    "data": (
        "Class names, images, data sets",
        "data.vocabulary data.images data.regions data.datasets.table "
        "data.datasets.records data.shards",
    ),
    "heads": (
        "Mathematics of the heads",
        "heads.fusion heads.distillation_losses heads.text_scores heads.windows "
        "heads.cat_seg.cost_aggregator "
        "heads.panoptic.clip_branches heads.panoptic.feature_sources heads.panoptic.panoptic_merge "
        "heads.panoptic.generator heads.panoptic.plain_decoder "
        "heads.fvit.boxes heads.fvit.pyramid heads.fvit.rpn heads.fvit.roi_heads",
    ),
    "models": (
        "Models",
        "models.build models.model_protocols models.clipself models.region_reader models.cat_seg.cat_seg "
        "models.zero_shot models.panoptic.open_panoptic models.fvit.fvit models.distillation",
    ),
    "training": (
        "Training and evaluation",
        "training.run training.tasks training.trainer training.optimizer evaluation.evaluation_base "
        "evaluation.region_accuracy evaluation.mean_iou evaluation.panoptic.quality "
        "evaluation.coco_ap",
    ),
    "ground": (
        "Configuration, weights, errors",
        "config.load config.other_projects checkpoints.read checkpoints.locate checkpoints.zoo "
        "errors extend provenance register",
    ),
}
# The page to click, what it is written of, and where a page has a link to it: a comment, since it is in the site alone.
LIVE = "explore_mini.html"
WORLD = "clipself_seg/mini/world/mini/val"
# Broad ones, whose maps are above the fold.
SCENES = [f"{WORLD}/{number:06d}.jpg" for number in (9, 12, 10, 11, 4, 8, 6)]
MODELS = ("original=mini", "CLIPSelf=mini-clipself")
LIVE_MARK = "<!-- the live page -->"
LIVE_TEXT = "**Try it in your browser: heat maps of generated scenes, before and after CLIPSelf**"
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def added_pages() -> dict[str, str]:
    """Name in the site -> Markdown, of the pages of `ELSEWHERE` and `REFERENCE`, and of the notebooks."""
    pages = {name: (ROOT / source).read_text() for source, name in ELSEWHERE.items()}
    for path in (ROOT / "docs/notebooks").glob("*.ipynb"):
        pages[f"notebooks/{path.stem}.md"] = notebook_page(path.read_text())
    for name, (title, modules) in REFERENCE.items():
        directives = [f"::: clipself_seg.{module}" for module in modules.split()]
        pages[f"api/{name}.md"] = "\n\n".join([f"# {title}", *directives])
    return pages


def notebook_page(content: str) -> str:
    """A notebook with its outputs as Markdown; images are in the page itself.

    Args:
        content: JSON of the notebook, of version 4.
    """
    blocks = []
    for cell in json.loads(content)["cells"]:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
            images = [kind for kind in data if kind.startswith("image/")]
            blocks += [f"![output](data:{kind};base64,{data[kind].strip()})" for kind in images]
            text = "".join(output.get("text", "")) or data.get("text/plain", "")
            if text and not images:
                blocks.append(f"```text\n{text}\n```")
    return "\n\n".join(blocks)


@functools.cache
def live_page() -> str:
    """The page to click, of `MODELS` on `SCENES`."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, LIVE)
        words = ["explore", *SCENES, "--words", "mini", "--model", *MODELS, "--output", str(page)]
        subprocess.run([sys.executable, "-m", "clipself_seg", *words], cwd=ROOT, check=True)
        return page.read_text()


def on_files(files: Any, config: Any) -> Any:
    """Adds `added_pages` and `live_page`; mkdocs calls it with the files of docs/."""
    for name, content in {**added_pages(), LIVE: live_page()}.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page as the site needs it: links between files of the repository and to `LIVE`, Markdown inside of HTML."""
    names = {name: source for source, name in ELSEWHERE.items()}
    source = names.get(page.file.src_uri, posixpath.join("docs", page.file.src_uri))
    folder = posixpath.dirname(page.file.src_uri)

    def relinked(match: re.Match[str]) -> str:
        begin, target, anchor, end = match.groups(default="")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = ELSEWHERE.get(file, file.removeprefix("docs/"))
        if place.endswith(".ipynb"):
            place = place.removesuffix("ipynb") + "md"
        return begin + posixpath.relpath(place, folder or ".") + anchor + end

    live = f"[{LIVE_TEXT}]({posixpath.relpath(LIVE, folder or '.')})"
    markdown = LINK.sub(relinked, markdown).replace(LIVE_MARK, live)
    return markdown.replace("<details>", '<details markdown="1">')
