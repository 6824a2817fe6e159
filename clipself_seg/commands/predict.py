"""Segment images, or detect objects in them, with your own class names.

    clipself-seg predict photo.jpg folder/ --words "dog|puppy, grass, sky"
    clipself-seg predict photo.jpg --task panoptic --words "dog, grass, sky" --stuff "grass, sky"
    clipself-seg predict photo.jpg --task detection --words "dog, kite"
    clipself-seg predict photo.jpg --model clipself-eva02-vitb16-coco-patches --words "dog, grass, sky"
    clipself-seg predict photo.jpg --task panoptic --words "nut, table" --example "screw=ref.jpg#120,40,80,80"
    clipself-seg predict scene.jpg --model mini --words "red star, blue ring, grass"
    clipself-seg predict clip.mp4 --track --task detection --words "dog, kite"

Commas separate classes, bars synonyms. Built-in vocabularies are ade20k_150, ade20k_847, coco_80, coco_panoptic_133,
coco_stuff_171, lvis_v1_1203, mapillary_vistas_65, objects365_v1, openseg_ade20k_150, openseg_cityscapes_19,
openseg_coco_panoptic_133, ov_coco_65, pascal_context_59, pascal_context_459, voc_20 and voc_20b_prompts, and of
generated scenes mini, mini2 and others.

Without --model the default of the task is fetched once, without an account:
catseg-base, or tipsv2-l14, which names the masks of eomt (panoptic) and their boxes (detection); size and licence are
said before. Any CLIP alone, such as CLIPSelf's, does the same, and segments without training; mini is for generated
scenes. fcclip-convnext-large and fvit-eva02-vitb16-lvis-patches are trained for their task, and fetched by hand.
  semantic   gives every pixel its best class. With --background it is background where no class scores at least
             --threshold; "--background background|wall|floor" adds names that compete for pixels, all background.
  panoptic   finds a segment for each thing. Classes that are not in --stuff are things, unless a built-in vocabulary
             says otherwise. --masks names masks from elsewhere: those of sam2, sam3, eomt or mask2former (the extra
             masks), or of a folder: masks/photo.json in COCO's run lengths or polygons, or masks/photo.png with a
             value for each. A folder with config.json and model.safetensors is such a model.
  detection  finds boxes, and masks where the model has them. Classes that were not seen in training are marked *. Those
             of a CLIP alone are the boxes of the segments that it names, each with the word that fits best: name what
             else is there, too.

Writes overlays/*.png, labels/*.png (semantic) or panoptic/*.png, and classes.json, panoptic.json or detections.json,
the last two in COCO's format. --save coco writes the regions of semantic and panoptic in COCO's format. A video becomes
overlays/*.mp4; with --track its objects keep their numbers and names over the frames.
To go on with an interrupted call, repeat it with --skip-existing and the same options.
With --ray the images go to the workers of a Ray cluster, or of this machine, which write Parquet files.
Exit status: 0, 1 if an image failed and the others were done, 2 if nothing was done.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipself_seg.commands import options
from clipself_seg.commands.options import CommandLine, command, flag, group, value, within
from clipself_seg.errors import GOES_ON, InputError, require_installed

if TYPE_CHECKING:
    from clipself_seg.data.vocabulary import Vocabulary
    from clipself_seg.prediction.files import InputFiles
    from clipself_seg.prediction.journal import Json
    from clipself_seg.prediction.writers import ResultFiles

# The default of --score-threshold, for boxes to look at: evaluation wants those of the lowest scores too.
SCORE_THRESHOLD = 0.5
# Option -> key of the configuration that it sets.
KEYS = {
    "device": "MODEL.DEVICE",
    "precision": "TEST.PRECISION",
    "clip_weights": "MODEL.CLIP_BRANCH.WEIGHTS",
    "masks": "MODEL.MASK_GENERATOR.OUTPUTS",
}
# What --masks sets beside its folder: CLIP's scores are the only ones.
OF_MASKS = ("MODEL.MASK_GENERATOR.SOURCE", "masks", "MODEL.FUSION.MODE", "clip")
# What --save may name with each task; the first two are written by default.
SAVE = {
    "semantic": ("overlays", "labels", "coco"),
    "panoptic": ("overlays", "panoptic", "labels", "coco"),
    "detection": ("overlays",),
}
# Keys that no result depends on.
INDIFFERENT = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "INPUT.MAX_PIXELS")
# Options of --ray, and those that do not go with it.
RAY_ONLY = ("workers", "column")
NOT_RAY = ("save", "skip_existing", "track")
WHY = ", and panoptic.json says why the others are not (--save coco --keep-overlaps keeps them)"


def _options(parser: CommandLine) -> None:
    options.images(parser, "images, folders of them, and videos (.mp4 .mov .avi .mkv .webm)")
    value(parser, "--words", options.WORDS)
    parser.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="NAME=IMAGE#REGION",
        help="region of an image that stands for a class, beside its word or alone; a box x,y,w,h or a file of masks; "
        "give several for one name or more",
    )
    options.task(parser)
    model = "a name (clipself-seg weights), a file or folder of a run or of save_pretrained, or org/name of the hub"
    value(parser, "--model", f"{model} (the default of the task; mini: for generated scenes)")
    options.output(parser, "output/predict")
    formats = dict.fromkeys(name for names in SAVE.values() for name in names)
    save = (
        f"{', '.join(formats)}; coco: regions in COCO's format (overlays, and labels or panoptic)"
    )
    value(parser, "--save", save, count="+", metavar="FORMAT", choices=formats)
    again = "go on where an interrupted call with the same settings stopped"
    flag(parser, "--skip-existing", again)
    value(parser, "--batch-size", "images per batch", 1, kind=within(int, 1))
    options.device(parser)
    track = "follow the objects of videos: tracks/NAME.json (COCO's), NAME.txt (MOT's)"
    flag(parser, "--track", track)
    rare = group(parser, rare=True)
    options.precision(rare)
    every = "take one of N frames of a video"
    value(rare, "--every", every, 1, metavar="N", kind=within(int, 1))
    value(rare, "--config-file", "configuration in place of the model's")
    options.further_keys(rare)
    words = "words that are not in an image: drop them there, or only mark them in the JSON"
    value(rare, "--absent", words, choices=("drop", "mark"))
    above = "presence from which on a word is there, in standard deviations (1.5, uncalibrated); or a JSON of words in "
    known = 'images of yours, {"photo.jpg": ["dog"]}, which calibrates it'
    value(rare, "--absent-threshold", above + known, metavar="NUMBER|FILE", kind=_number_or_file)
    flag(rare, "--keep-overlaps", "all masks of --masks FOLDER are in coco.json, hidden ones too")
    ray = "predict on a Ray cluster; inputs may be .txt lists, .parquet, .tar shards, s3:// too"
    flag(rare, "--ray", ray)
    workers = "models with --ray (one per GPU, else per core but one)"
    value(rare, "--workers", workers, kind=within(int, 1))
    value(rare, "--column", "column of .parquet files with paths, or with the bytes of image files")
    semantic = group(parser, "semantic")
    names = "name of the pixels that belong to no class (background)"
    semantic.add_argument(
        "--background", nargs="?", const="background", metavar="NAME|NAME...", help=names
    )
    threshold = "score that a class needs against the background (0.5, or the configuration's; 0 if names compete)"
    value(semantic, "--threshold", threshold, kind=float)
    panoptic = group(parser, "panoptic")
    value(panoptic, "--stuff", 'classes that are stuff, as --words; "" for none')
    masks = "masks that get names: of a folder (NAME.json or NAME.png), or sam2, sam3, eomt, mask2former"
    value(panoptic, "--masks", masks, metavar="FOLDER|MODEL")
    clip = "file, name or tag of the CLIP that scores masks, such as a distilled one"
    value(panoptic, "--clip-weights", clip)
    exceeded = f"keep detections with a score above this, 0 to 1 ({SCORE_THRESHOLD})"
    value(group(parser, "detection"), "--score-threshold", exceeded, kind=float)


@command(_options, __doc__, again=f"{GOES_ON} with --skip-existing, and begins anew without")
def main(args: argparse.Namespace) -> int:
    """Segments or detects, and says where the results are."""
    chosen = _settle(args)
    video_save = tuple(args.save or ("overlays",))
    args.save = (
        list(dict.fromkeys(args.save or SAVE[chosen][:2])) + ["overlaps"] * args.keep_overlaps
    )
    if args.ray:
        return _over_ray(args)
    from clipself_seg.prediction.files import find_images
    from clipself_seg.prediction.journal import Journal
    from clipself_seg.prediction.loop import predict_files
    from clipself_seg.prediction.tracks import OF_TRACKS, track_video
    from clipself_seg.prediction.video import OF_VIDEOS, predict_video

    files = find_images(args.images, args.output, videos=True)
    if files.videos:
        _require_video_formats(video_save, OF_TRACKS if args.track else OF_VIDEOS, args.masks)
    options.take_device(args)
    results, settings = _make(args, files)
    settings["frames"] = {"every": args.every, "save": sorted(video_save), "track": args.track}
    journal = Journal(args.output, settings, resume=args.skip_existing)
    run = track_video if args.track else predict_video
    video = functools.partial(run, results, save=video_save, every=args.every)
    failed = predict_files(results, files, journal, args.batch_size, video)
    total = len(files.images) + len(files.videos) + len(files.failed)
    done = "searched for objects" if chosen == "detection" else "segmented"
    sys.stdout.write(f"{total - len(failed)} of {total} {done}, in {args.output}\n")
    if results.masks[0]:
        count, lost = results.masks
        sys.stdout.write(
            f"of {count} masks that were given {count - lost} are in segments{WHY * bool(lost)}\n"
        )
    return 2 if len(failed) == total else 1 if failed else 0


def _settle(args: argparse.Namespace) -> str:
    """The task; refuses options that do not go with it, and fetches the model, before torch is imported."""
    from clipself_seg.checkpoints.needs import fetch_needed
    from clipself_seg.choice import MINI, MINI_MASKS_CONFIG, REASONS, TASKS, find_model

    for name in NOT_RAY if args.ray else RAY_ONLY:
        if getattr(args, name):
            why = "does not go with" if args.ray else "needs"
            raise InputError(f"--{name.replace('_', '-')} {why} --ray")
    if args.task in TASKS:
        options.refuse_other_tasks(main.parser(), args, args.task)
    if args.masks is not None:
        if _is_folder(args.masks):
            from clipself_seg.data.given_masks import MaskFolder

            MaskFolder(args.masks)  # refuses what is no folder
        if args.config_file is None:
            args.task = args.task or "panoptic"
            if args.model == MINI:
                args.model = None
                args.config_file = MINI_MASKS_CONFIG
            elif args.model is not None and not (own := find_model(args.model)).clip:
                raise InputError(
                    f"{args.model} is a model for {own.task}, and no CLIP alone, which --masks needs: name a CLIP"
                )
    choice = find_model(args.model, args.task, args.config_file)
    if args.model is None and args.config_file is None:
        reason = "it names these masks" if args.masks else REASONS[choice.task]
        options.say_model(str(choice.weights), reason)
    chosen = choice.task
    options.refuse_other_tasks(main.parser(), args, chosen)
    for name in args.save or ():
        if name not in SAVE[chosen]:
            raise InputError(
                f"--save {name} does not go with --task {chosen}, which has {', '.join(SAVE[chosen])}"
                + ("; detections.json is in COCO's format" if name == "coco" else "")
            )
    if args.track:
        if chosen == "semantic":
            raise InputError("--track needs objects: give --task panoptic or --task detection")
        require_installed("trackers", "--track", "video")
    if args.example and chosen == "detection":
        raise InputError(
            "--example does not go with --task detection, whose boxes get worse with examples (docs/detection.md): "
            "give --words"
        )
    if args.keep_overlaps and not (_is_folder(args.masks) and "coco" in (args.save or ())):
        raise InputError("--keep-overlaps needs --masks FOLDER and --save coco")
    args.vocabulary = _vocabulary(args)
    _refuse_absent(args, chosen)
    args.task = chosen
    args.score_key = choice.score_key
    fetch_needed(choice.values(_keys(args)))
    return chosen


def _keys(args: argparse.Namespace) -> list[Any]:
    """Keys and values of the configuration that the options stand for, in turn; those of --opts count more."""
    keys: list[Any] = [args.score_key, SCORE_THRESHOLD] if args.task == "detection" else []
    keys += [*args.opts, *(() if args.masks is None else OF_MASKS)]
    for name, key in KEYS.items():
        if getattr(args, name) is not None:
            keys += [key, getattr(args, name)]
    if args.score_threshold is not None:
        keys += [args.score_key, args.score_threshold]
    return keys


def _vocabulary(args: argparse.Namespace) -> Vocabulary:
    """The words, and the examples of theirs and of further classes."""
    from clipself_seg.data.vocabulary import Vocabulary

    if args.words is None and not args.example:
        raise InputError(
            'no words: give --words "dog, grass", or --example "screw=ref.jpg#120,40,80,80"'
        )
    nothing = Vocabulary("custom", (), numbered=False)
    words = nothing if args.words is None else Vocabulary.of(args.words)
    if args.example:
        from clipself_seg.data.examples import read_example  # OpenCV, which takes a while

        for name, example in map(read_example, args.example):
            words = words.with_examples({name: [example]})
    return words


def _over_ray(args: argparse.Namespace) -> int:
    from clipself_seg.prediction.files import InputFiles
    from clipself_seg.prediction.ray_predict import predict_over_ray

    def on(device: str) -> tuple[ResultFiles, Json]:
        return _make(argparse.Namespace(**vars(args) | {"device": device}), InputFiles([], {}))

    failed, total = predict_over_ray(
        on,
        args.images,
        args.output,
        column=args.column,
        workers=args.workers,
        device=args.device,
        batch_size=args.batch_size,
    )
    sys.stdout.write(f"{total - failed} of {total} predicted, in {args.output}\n")
    return 2 if failed == total else 1 if failed else 0


def _require_video_formats(save: Sequence[str], formats: Sequence[str], masks: str | None) -> None:
    """Refuses formats that videos do not have, and masks of them."""
    if _is_folder(masks):
        raise InputError("--masks FOLDER does not go with a video: give its frames as images")
    if others := [name for name in save if name not in formats]:
        raise InputError(
            f"--save {' '.join(others)} does not go with a video, which has {', '.join(formats)}: "
            "leave it out, or give videos in another call"
        )


def _is_folder(masks: str | None) -> bool:
    """True of --masks that name a folder of masks, and no model that finds them."""
    from clipself_seg.checkpoints.mask_models import has_mask_model, is_mask_model_name

    return masks is not None and not (is_mask_model_name(masks) or has_mask_model(masks))


def predictor_of(
    model: str | None, task: str | None, config_file: str | None, opts: Sequence[str]
) -> Any:
    """The predictor of a model, as `find_model` finds it, with further keys and values in turn."""
    from clipself_seg.memory import keep_freed_memory
    from clipself_seg.prediction.load import load

    predictor = load(model, task=task, config_file=config_file, opts=opts)
    keep_freed_memory(predictor.model.device.type)
    return predictor


def _make(args: argparse.Namespace, files: InputFiles) -> tuple[ResultFiles, Json]:
    """The results of the task, and what they depend on beside the image; weights count by their content."""
    from clipself_seg import __version__
    from clipself_seg.config.load import values_and_defaults
    from clipself_seg.config.weight_checks import WEIGHTS
    from clipself_seg.prediction.task_predictors import PanopticPredictor, panoptic_words
    from clipself_seg.prediction.writers import ResultFiles

    words = args.vocabulary
    if args.task == "panoptic":
        words = panoptic_words(words, args.stuff)
    predictor = predictor_of(args.model, args.task, args.config_file, _keys(args))
    of_background = (args.background, args.threshold) if args.task == "semantic" else ()
    predictor.set_vocabulary(words, *of_background)
    predictor.set_absent(args.absent, args.absent_threshold)
    results = ResultFiles(
        predictor=predictor, folder=args.output, images=files.images, save=args.save
    )
    settings: Json = {
        "version": __version__,
        "weights": results.provenance["weights_hash"],
        "save": sorted(args.save),
        "vocabulary": [dataclasses.asdict(entry) for entry in words.classes],
    }
    if words.examples:
        settings["examples"] = [
            [one.names[0], one.weight, *(example.digest for example in one.examples)]
            for one in words.examples
        ]
    if args.task == "semantic":
        settings |= {"background": args.background, "threshold": predictor.given.threshold}
    if predictor.absent:
        settings["absent"] = [args.absent, predictor.absent.threshold]
    if args.task == "panoptic" and args.stuff is None:
        stuff = sum(entry.isthing is False for entry in words.classes)
        sys.stderr.write(
            f"things, each object a segment of its own: {len(words) - stuff}; stuff, one segment each: {stuff}. "
            'Change it by --stuff "NAME, NAME", or --stuff "" for none\n'
        )
    if isinstance(predictor, PanopticPredictor):
        if masks := predictor.mapper.masks:
            settings["masks"] = masks.digest([one.name for one in files.images])
        if finder := predictor.model.masks.model_settings:
            settings["masks"] = finder
    for key, (content, _) in values_and_defaults(predictor.config).items():
        if key not in INDIFFERENT and key not in WEIGHTS:
            settings[key] = content
    return results, settings


def _number_or_file(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _refuse_absent(args: argparse.Namespace, task: str) -> None:
    """Raises an error for options of absent words that do not go together, or not with the task."""
    if args.absent_threshold is not None and not args.absent:
        raise InputError("--absent-threshold needs --absent drop or --absent mark")
    if args.absent == "drop" and task == "semantic" and args.background is None:
        raise InputError(
            "--absent drop needs --background: pixels of an image without any of the words are its"
        )
