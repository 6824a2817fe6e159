"""Segment images, or detect objects in them, with your own class names.

    clipself-seg predict --vocabulary "red star, blue ring, grass" --input photo.jpg
    clipself-seg predict --config-file configs/semseg/catseg_cvpr_vitb16.yaml --weights model_base.pth \\
        --vocabulary "dog|puppy, grass, sky" --background --input photo.jpg folder/ --output out/
    clipself-seg predict --panoptic --vocabulary "red star, blue ring, grass" --stuff grass --input photo.jpg
    clipself-seg predict --panoptic --masks masks/ --vocabulary "red star, blue ring, grass" --input photo.jpg
    clipself-seg predict --boxes --weights output/mini/detection/model_final.pth \\
        --vocabulary "red star, blue ring" --input photo.jpg

Commas separate classes, bars synonyms. Every pixel gets its best class. With --background, a pixel becomes
background where no class scores at least --threshold. "--background background|wall|floor" adds
names that compete for pixels, all of which are background. With --panoptic every thing is a segment of
its own; classes that are not in --stuff are things, unless a built-in vocabulary says otherwise.
With --masks nothing is searched for: masks that somebody made, masks/photo.json in COCO's run lengths or polygons,
masks/photo.png with a value for each, or PNGs in masks/photo/, get names.
With --boxes objects get boxes, and masks where the model has them.

Writes overlays/*.png with a legend, labels/*.png (8 bits, or 16 for more than 255 classes), with
--scores scores/*.npz (float32), and classes.json: the class of each label, the
fraction of each image that every class covers, and the images that failed.
With --panoptic overlays/*.png, and panoptic/*.png and panoptic.json in COCO's format. With --boxes
overlays/*.png, where classes that training has not shown are red, dashed and marked *, and
detections.json, with scores, in COCO's format.
--save says what is written instead: label maps as palette PNGs, a binary mask of every class, segment or object
(masks), every region with its run-length encoding in COCO's format (coco), polygons of YOLO (yolo).
A video becomes overlays/*.mp4, frame by frame, with its rate and size and without a legend, and with --save labels
labels/NAME.mp4/NUMBER.png too; --every 5 takes every fifth frame.
Interrupted, a call goes on with --skip-existing and its other options as they were: images whose files have not
changed and whose results are there are not done again. Without it all are done, and replace what is there.
With --ray the images go to the workers of a Ray cluster, or of this machine, which write Parquet files.
Exit status: 0, 1 if an image failed and the others were done, 2 if nothing was done.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipself_seg.commands.options import (
    Options,
    command,
    flag,
    further_keys,
    required,
    value,
)
from clipself_seg.errors import GOES_ON, InputError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from clipself_seg.data.vocabulary import Vocabulary
    from clipself_seg.prediction.files import InputFiles
    from clipself_seg.prediction.journal import Json
    from clipself_seg.prediction.predictor import ImagePredictor
    from clipself_seg.prediction.results import TaskResults

# Results of a task, and what they depend on beside the image.
Made = tuple["TaskResults[Any]", "Json"]
P = TypeVar("P", bound="ImagePredictor[Any]")
# Default configuration and its shipped weights of each task.
SEMANTIC = ("configs/mini/semseg.yaml", "mini-cat-seg")
PANOPTIC = ("configs/mini/panoptic.yaml", "mini-open-panoptic")
# Of --masks: no generator, so no weights but CLIP's.
MASKS = ("configs/mini/panoptic_masks.yaml", None)
DETECTION = ("configs/mini/detection.yaml", "mini-fvit")
# The default of --score-threshold, for boxes to look at: evaluation wants those of the lowest scores too.
SCORE_THRESHOLD = 0.5
# Option -> key of the configuration that it sets.
PANOPTIC_KEYS = {
    "clip_weights": "MODEL.CLIP_BRANCH.WEIGHTS",
    "mode": "MODEL.FUSION.MODE",
    "alpha": "MODEL.FUSION.ALPHA",
    "beta": "MODEL.FUSION.BETA",
    "void_discount": "MODEL.FUSION.VOID_DISCOUNT",
    "masks": "MODEL.MASK_GENERATOR.OUTPUTS",
}
# Options that only one of the tasks has.
SEMANTIC_ONLY = ("background", "threshold", "scores")
PANOPTIC_ONLY = ("stuff", "trained", *PANOPTIC_KEYS)
# What --masks sets beside its folder: CLIP's scores are the only ones.
OF_MASKS = ("MODEL.MASK_GENERATOR.SOURCE", "masks", "MODEL.FUSION.MODE", "clip")
DETECTION_ONLY = ("score_threshold",)
# What --save may name with each task; the first two (of boxes the first one) are written by default.
SAVE = {
    "--semantic": ("overlays", "labels", "palette", "masks", "coco", "yolo"),
    "--panoptic": ("overlays", "panoptic", "labels", "palette", "masks", "coco", "yolo"),
    "--boxes": ("overlays", "masks", "yolo"),
}
SAVED = {"--semantic": 2, "--panoptic": 2, "--boxes": 1}
ONLY = {"--semantic": SEMANTIC_ONLY, "--panoptic": PANOPTIC_ONLY, "--boxes": DETECTION_ONLY}
# Keys that no result depends on.
INDIFFERENT = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "INPUT.MAX_PIXELS")
# Options of --ray, and those that do not go with it.
RAY_ONLY = ("workers", "column")
NOT_RAY = ("save", "scores", "skip_existing", "masks")
SHOWN = 8  # names in a message
# The package's folder, which holds configs/ too (in a checkout as a link).
PACKAGE = Path(__file__).resolve().parent.parent


def _options(parser: argparse.ArgumentParser) -> None:
    task = parser.add_mutually_exclusive_group()
    flag(task, "--semantic", "give every pixel a class (default)")
    flag(task, "--panoptic", "find things and stuff")
    flag(task, "--boxes", "find boxes of objects")
    value(
        parser,
        "--config-file",
        f"of a CATSeg ({SEMANTIC[0]}) or a ZeroShotSegmenter, "
        f"an OpenPanoptic ({PANOPTIC[0]}) or an FViT ({DETECTION[0]})",
    )
    value(
        parser,
        "--weights",
        "checkpoint: a file, an official one's name such as catseg-base, or an address; or a folder of "
        "save_pretrained, or hf-hub:org/name (MODEL.WEIGHTS of the configuration, of a "
        "ZeroShotSegmenter MODEL.CLIP.WEIGHTS; of the mini ones what is shipped)",
    )
    required(
        parser,
        "--vocabulary",
        "class names, a .txt with a class a line, a .json, or a built-in one such as ade20k_150",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="images, folders of them, and videos (.mp4 .mov .avi .mkv .webm)",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        choices=sorted({name for names in SAVE.values() for name in names}),
        help="what to write beside the JSON (overlays and labels; with --panoptic overlays and panoptic; with --boxes "
        "overlays)",
    )
    value(parser, "--output", default="output/predict")
    resumed = "go on where an interrupted call with the same settings stopped"
    flag(parser, "--skip-existing", resumed)
    value(parser, "--every", "take one of N frames of a video", 1, metavar="N")
    value(parser, "--batch-size", "images at once", 1)
    value(parser, "--device", '"cpu", "cuda" or "cuda:0" (cuda where there is one)')
    further_keys(parser)
    _semantic_options(parser.add_argument_group("with --semantic"))
    _panoptic_options(parser.add_argument_group("with --panoptic"))
    boxes = parser.add_argument_group("with --boxes")
    # Its default is set where it is read: None tells that nothing was typed.
    exceeded = f"score that a detection has to exceed, 0 to 1 ({SCORE_THRESHOLD})"
    value(boxes, "--score-threshold", exceeded, kind=float)
    cluster = parser.add_argument_group("over a cluster")
    flag(cluster, "--ray", "--input takes .txt lists and .parquet files as well")
    value(cluster, "--workers", "models at once (one a GPU, or else a core)", kind=int)
    value(cluster, "--column", "of .parquet files: paths, or bytes of image files")


def _semantic_options(group: Options) -> None:
    group.add_argument(
        "--background",
        nargs="?",
        const="background",
        metavar="NAME|NAME...",
        help="for what is none of the classes (background)",
    )
    threshold = "score that a class needs against the background (TEST.BACKGROUND.THRESHOLD or 0.5; 0 if names compete)"
    value(group, "--threshold", threshold, kind=float)
    group.add_argument(
        "--scores", action="store_true", default=None, help="write the scores of all classes"
    )


def _panoptic_options(group: Options) -> None:
    value(group, "--stuff", 'classes that are stuff, as --vocabulary; "" for none')
    clip = "file, name or tag of the CLIP that scores masks, such as a distilled one"
    value(group, "--clip-weights", clip)
    trained = "its classes are the seen ones (the vocabulary of DATASETS.TRAIN)"
    value(group, "--trained", trained, metavar="VOCABULARY")
    masks = "folder of masks made elsewhere, which get names: NAME.json, NAME.png, or PNGs in NAME/"
    value(group, "--masks", masks, metavar="FOLDER")
    value(group, "--mode", "whose scores count: fused, clip or generator (fused)")
    for name, of in (("alpha", "seen classes"), ("beta", "unseen classes")):
        text = f"CLIP's exponent for {of} ({PANOPTIC_KEYS[name]})"
        value(group, f"--{name}", text, kind=float)
    key = PANOPTIC_KEYS["void_discount"]
    discount = f"how much a confident CLIP lowers the score of void, 0 to 1 ({key})"
    value(group, "--void-discount", discount, kind=float)


@command(_options, __doc__, again=f"{GOES_ON} with --skip-existing, and begins anew without")
def main(args: argparse.Namespace) -> int:
    """Segment or detect, and say where the results are."""
    task = "--boxes" if args.boxes else "--panoptic" if args.panoptic else "--semantic"
    _refuse(args, task)
    video_save = tuple(args.save or ("overlays",))
    args.save = list(dict.fromkeys(args.save or SAVE[task][: SAVED[task]]))
    make = _detection if args.boxes else _panoptic if args.panoptic else _semantic
    if args.ray:
        return _over_ray(args, make)
    from clipself_seg.prediction.files import find_images
    from clipself_seg.prediction.journal import Journal
    from clipself_seg.prediction.loop import predict_files
    from clipself_seg.prediction.video import predict_video

    files = find_images(args.input, args.output, videos=True)
    if files.others:
        named = ", ".join(path.name for path in files.others[:5])
        sys.stderr.write(f"{len(files.others)} file(s) are no images by their endings: {named}\n")
    if files.videos:
        _require_video_formats(video_save)
    if args.device is not None:
        _require_device(args.device)
        args.opts = [*args.opts, "MODEL.DEVICE", args.device]
    results, settings = make(args, files)
    settings["frames"] = {"every": args.every, "save": sorted(video_save)}
    journal = Journal(args.output, settings, resume=args.skip_existing)
    video = functools.partial(predict_video, results, save=video_save, every=args.every)
    failed = predict_files(results, files, journal, args.batch_size, video)
    total = len(files.images) + len(files.videos) + len(files.failed)
    done = "searched for objects" if args.boxes else "segmented"
    sys.stdout.write(f"{total - len(failed)} of {total} {done}, in {args.output}\n")
    return 2 if len(failed) == total else 1 if failed else 0


def _refuse(args: argparse.Namespace, task: str) -> None:
    """Raises an error for an option or a format of another task, batches of no images, and unknown weights."""
    for name in args.save or ():
        if name not in SAVE[task]:
            raise InputError(
                f"--save {name} does not go with {task}, which has {', '.join(SAVE[task])}"
                + ("; detections.json is in COCO's format" if name == "coco" else "")
            )
    for option, number in (("--batch-size", args.batch_size), ("--every", args.every)):
        if number < 1:
            raise InputError(f"{option} has to be at least 1, got {number}")
    for other, options in ONLY.items():
        for name in options:
            if other != task and getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                given = args.semantic or task != "--semantic"
                why = f"does not go with {task}" if given else f"needs {other}"
                raise InputError(f"{option} {why}")
    if args.weights and not (args.config_file or args.opts or Path(args.weights).exists()):
        from clipself_seg.checkpoints.locate import is_remote, no_checkpoint
        from clipself_seg.checkpoints.zoo import SHIPPED_MODELS, zoo

        if not is_remote(args.weights) and args.weights not in {*zoo(), *SHIPPED_MODELS}:
            raise no_checkpoint(args.weights)
    for name in NOT_RAY if args.ray else RAY_ONLY:
        if getattr(args, name):
            why = "does not go with" if args.ray else "needs"
            raise InputError(f"--{name.replace('_', '-')} {why} --ray")


def _over_ray(
    args: argparse.Namespace, make: Callable[[argparse.Namespace, InputFiles], Made]
) -> int:
    from clipself_seg.prediction.files import InputFiles
    from clipself_seg.prediction.ray_predict import Workers, predict_over_ray

    def on(device: str) -> Made:
        moved = {**vars(args), "opts": [*args.opts, "MODEL.DEVICE", device]}
        return make(argparse.Namespace(**moved), InputFiles([], {}, []))

    workers = Workers(args.workers, args.device, args.batch_size)
    failed, total = predict_over_ray(on, args.input, args.output, workers, args.column)
    sys.stdout.write(f"{total - failed} of {total} predicted, in {args.output}\n")
    return 2 if failed == total else 1 if failed else 0


def _require_video_formats(save: Sequence[str]) -> None:
    """Refuse formats that nobody has for videos."""
    from clipself_seg.prediction.video import OF_VIDEOS

    if others := [name for name in save if name not in OF_VIDEOS]:
        raise InputError(
            f"--save {' '.join(others)} does not go with a video, which has {', '.join(OF_VIDEOS)}: "
            "leave it out, or do videos in a call of their own"
        )


def _require_device(name: str) -> None:
    """Refuse a device that is not there; what is no device at all the configuration refuses."""
    import torch

    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number if number.isdecimal() else 0) >= count:
        raise InputError(
            f"--device {name}: torch {torch.__version__} sees {count} CUDA device(s) here, which count from 0: "
            "give another one, or --device cpu"
        )


def _settings(
    args: argparse.Namespace, results: TaskResults[Any], words: Vocabulary, **more: object
) -> Json:
    """What results depend on beside the image, by name; weights count by their content.

    Args:
        args: what was typed.
        results: those of a task, with predictor and provenance.
        words: classes that were asked for.
        more: what only the task has.
    """
    from clipself_seg import __version__
    from clipself_seg.config.load import values_and_defaults
    from clipself_seg.config.weights import WEIGHTS

    cfg = results.predictor.config
    assert cfg is not None
    values = {
        key: value
        for key, (value, _) in values_and_defaults(cfg).items()
        if key not in INDIFFERENT and key not in WEIGHTS
    }
    return {
        "version": __version__,
        "weights": results.provenance["weights_hash"],
        "save": sorted(args.save),
        "vocabulary": [dataclasses.asdict(entry) for entry in words.classes],
        **more,
        **values,
    }


def _model(
    args: argparse.Namespace, default: tuple[str, str | None]
) -> tuple[str | Path, str | None]:
    """Configuration and weights; None for those that the configuration names.

    Official weights bring their configuration.
    """
    if args.config_file:
        return args.config_file, args.weights
    from clipself_seg.checkpoints.zoo import zoo

    entry = zoo().get(args.weights or "")
    if entry and entry.key == "MODEL.WEIGHTS":
        return f"{entry.configs[0]}.yaml", entry.name
    return PACKAGE / default[0], args.weights or default[1]


def predictor_of(
    args: argparse.Namespace,
    default: tuple[str, str | None],
    kind: type[P],
    opts: Sequence[str],
    trained: str | None = None,
) -> P:
    """The predictor of a folder that save_pretrained wrote, or of configuration and weights.

    Args:
        args: what was typed, with "config_file" and "weights".
        default: configuration and weights where none are typed.
        kind: class of the predictor.
        opts: further keys and values in turn.
        trained: training vocabulary in place of the model's, for a panoptic one.
    """
    from clipself_seg.memory import keep_freed_memory
    from clipself_seg.prediction.predictor import prediction_config
    from clipself_seg.prediction.pretrained import is_pretrained, load_pretrained

    if trained is not None:
        opts = [*opts, "TEST.TRAIN_VOCABULARY", trained]
    if not args.config_file and args.weights and is_pretrained(args.weights):
        predictor: P = load_pretrained(args.weights, opts=opts, kind=kind)
    else:
        build: Callable[[CfgNode], P] = kind  # by `configurable`
        predictor = build(prediction_config(*_model(args, default), opts, kind))
    keep_freed_memory(predictor.model.device.type)
    return predictor


def _semantic(args: argparse.Namespace, files: InputFiles) -> Made:
    from clipself_seg.data.vocabulary import read_words
    from clipself_seg.prediction.results import SemanticResults
    from clipself_seg.prediction.semantic import Predictor

    words = read_words(args.vocabulary)
    predictor = predictor_of(args, SEMANTIC, Predictor, args.opts)
    predictor.set_vocabulary(words, args.background, args.threshold)
    results = SemanticResults(
        predictor=predictor,
        folder=args.output,
        images=files.images,
        save=[*args.save, *(["scores"] if args.scores else [])],
    )
    return results, _settings(
        args,
        results,
        words,
        background=args.background,
        threshold=predictor.threshold,
        scores="scores" in results.save,
    )


def _panoptic(args: argparse.Namespace, files: InputFiles) -> Made:
    from clipself_seg.prediction.panoptic import PanopticPredictor, panoptic_words
    from clipself_seg.prediction.results import PanopticResults

    words = panoptic_words(args.vocabulary, args.stuff)
    _refuse_fusions(args)
    opts = list(args.opts)
    if args.masks is not None:
        opts += OF_MASKS
        if files.videos:
            raise InputError("--masks does not go with a video: give its frames as images")
    for name, key in PANOPTIC_KEYS.items():
        if getattr(args, name) is not None:
            opts += [key, getattr(args, name)]
    default = PANOPTIC if args.masks is None else MASKS
    predictor = predictor_of(args, default, PanopticPredictor, opts, args.trained)
    predictor.set_vocabulary(words)
    if args.stuff is None:
        _say_kinds(words)
    results = PanopticResults(
        predictor=predictor, folder=args.output, images=files.images, save=args.save
    )
    masks = predictor.mapper.masks
    digest = {} if masks is None else {"masks": masks.digest([one.name for one in files.images])}
    fusion = predictor.model.fusion.returned()
    return results, _settings(
        args,
        results,
        words,
        seen=predictor.seen.tolist(),
        exponents=[fusion.alpha, fusion.beta],
        **digest,
    )


def _refuse_fusions(args: argparse.Namespace) -> None:
    """Raises an error for options of scores that the mode, or masks without scores, do not have."""
    mode, exponents = args.mode or "fused", (args.alpha, args.beta)
    if args.masks is not None and (args.mode, *exponents, args.void_discount) != (None,) * 4:
        raise InputError(
            "--masks has no scores but CLIP's: leave out --mode, --alpha, --beta and --void-discount"
        )
    if mode != "fused" and exponents != (None, None):
        raise InputError(f"--alpha and --beta belong to the mode fused, not {mode}: leave them out")


def _say_kinds(words: Vocabulary) -> None:
    """Says which classes are taken for things and which for stuff, where the command line does not."""
    kinds = []
    for thing in (True, False):
        names = [c.names[0] for c in words.classes if (c.isthing is not False) == thing]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        kinds.append((", ".join(names[:SHOWN]) or "none") + more)
    sys.stderr.write(
        f"taken for things: {kinds[0]}; for stuff: {kinds[1]}. "
        '--stuff "NAME, NAME" says which are stuff, --stuff "" that none are\n'
    )


def _detection(args: argparse.Namespace, files: InputFiles) -> Made:
    from clipself_seg.data.vocabulary import read_words

    words = read_words(args.vocabulary)
    from clipself_seg.prediction.detection import DetectionPredictor
    from clipself_seg.prediction.results import DetectionResults

    key = "MODEL.FVIT.SCORE_THRESHOLD"
    opts = [key, SCORE_THRESHOLD, *args.opts]
    if args.score_threshold is not None:
        opts += [key, args.score_threshold]
    predictor = predictor_of(args, DETECTION, DetectionPredictor, opts)
    predictor.set_vocabulary(words)
    results = DetectionResults(
        predictor=predictor, folder=args.output, images=files.images, save=args.save
    )
    return results, _settings(args, results, words, seen=predictor.seen.tolist())
