"""Object masks for photos of one object on plain ground."""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from imprint.errors import ImprintError, from_extra
from imprint.files import write_text
from imprint.images import open_image, to_rgb
from imprint.mask_reading import mask_to_tensor
from imprint.saving import save_image

from .contact_sheet import SHEET_COLUMNS, SHEET_ROWS, outlined, sheet_of
from .engines import in_processes
from .items import PICTURES, Dropped
from .stills import folder_groups, reports

COARSE, FINE = 160, 384  # longest sides in pixels at which the object is found, and at which its outline is
ROUNDS = 6  # of GrabCut at the coarse size; with 3, ground between arm and body often stays
RECTANGLE, ELLIPSE = 0.9, 0.65  # of the picture's width and height: where the object is looked for at first
MARGIN = 0.00625  # of the longest side: so wide a frame is ground
BAND = 5  # pixels of the fine size on either side of the coarse outline, in which the fine one lies
AGREEMENT = 0.93  # least intersection over union of what the two starts find
AREAS = 0.04, 0.64  # of the picture
LARGEST_PIECE = 0.97  # of the object, at least
SMALL_HOLE = 0.004  # of the object: smaller ones are filled
CONTRAST, CLEAR = 14.0, 0.9  # in CIELAB, between the outline's two sides; and along how much of it at least
OVERLAP = 0.2  # at most so much, as a share of the object, has the colour of the other side
# Of the object, at most, is a patch that looks like ground, by 8-bit CIELAB in these steps: as lit, and by hue alone,
# in shadow.
SWALLOWED = {(24, 8, 8): 0.0075, (256, 4, 4): 0.025}
KEPT = "kept"


def opencv() -> ModuleType:
    """The module cv2, on one thread. Raises `ImprintError` where it is not installed."""
    cv2 = from_extra("cv2", "train", "cutting masks out")
    cv2.setNumThreads(1)
    return cv2


def cut_out(picture: Image.Image) -> np.ndarray:
    """The mask (H, W) bool of the one object of an RGB photo. Raises `Dropped` where there is none to be trusted."""
    cv2 = opencv()
    coarse, fine = _reduced(picture, COARSE), _reduced(picture, FINE)
    first, second = (grab(coarse, start, ROUNDS) for start in starts(coarse.shape[:2]))
    whole(first)
    if (first & second).sum() < AGREEMENT * (first | second).sum():
        raise Dropped("two starts disagree")
    near = _resized(first, fine.shape[:2]).astype(np.uint8)
    band = cv2.morphologyEx(near, cv2.MORPH_GRADIENT, np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8))
    start = np.where(band, np.where(near, cv2.GC_PR_FGD, cv2.GC_PR_BGD), np.where(near, cv2.GC_FGD, cv2.GC_BGD))
    mask = whole(grab(fine, start, rounds=1))
    if contrast(fine, mask) < CLEAR or overlap(fine, mask) > OVERLAP:
        raise Dropped("object like its ground")
    if any(swallowed(fine, mask, steps) > most for steps, most in SWALLOWED.items()):
        raise Dropped("ground inside")
    return _resized(mask, picture.size[::-1])


def starts(shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Two guesses (H, W) for `grab`: the object fills almost all of the picture, or an ellipse in its middle."""
    cv2 = opencv()
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    for inside in (np.maximum(abs(x), abs(y)) < RECTANGLE, np.hypot(x, y) < ELLIPSE):
        yield np.where(_frame(shape), cv2.GC_BGD, np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD))


def grab(pixels: np.ndarray, start: np.ndarray, rounds: int) -> np.ndarray:
    """GrabCut: pixels (H, W, 3) uint8, start (H, W) of cv2.GC_... -> (H, W) bool.

    Raises `Dropped` for an empty side.
    """
    cv2 = opencv()
    cv2.setRNGSeed(0)  # of its k-means
    labels = start.astype(np.uint8)
    try:
        cv2.grabCut(pixels, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
    except cv2.error as error:
        raise Dropped("no object", detail=error) from error
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def whole(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool without specks and small holes. Raises `Dropped` unless it is one object, off the border."""
    least, most = AREAS
    if not least <= mask.mean() <= most:
        raise Dropped(f"not {least:.0%} to {most:.0%} of the picture")
    pieces, areas = _pieces(mask)
    if areas.max() < LARGEST_PIECE * areas.sum():
        raise Dropped("in several pieces")
    mask = pieces == areas.argmax()
    if (mask & _frame(mask.shape, 1)).any():
        raise Dropped("cut by the border")
    gaps, areas = _pieces(~mask)
    return mask | ((areas < SMALL_HOLE * mask.sum())[gaps] & ~mask)


def contrast(pixels: np.ndarray, mask: np.ndarray) -> float:
    """Along what share of the outline of a mask (H, W) bool the colours of pixels (H, W, 3) uint8 differ across it."""
    cv2 = opencv()
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    means = []
    for side in (mask, ~mask):
        core = cv2.erode(side.astype(np.float32), np.ones((3, 3)))  # without the mixed pixels
        means.append(cv2.blur(lab * core[..., None], (9, 9)) / np.maximum(cv2.blur(core, (9, 9)), 1e-6)[..., None])
    outline = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return float((np.linalg.norm(means[0] - means[1], axis=-1) > CONTRAST)[outline].mean())


def overlap(pixels: np.ndarray, mask: np.ndarray) -> float:
    """The area of all that looks like the other side of a mask (H, W) bool, over the mask's; pixels (H, W, 3) uint8."""
    inside, outside = _frequencies(pixels, mask, (24, 8, 8))
    return float(np.where(mask, outside > inside, inside > outside).sum() / mask.sum())


def swallowed(pixels: np.ndarray, mask: np.ndarray, steps: tuple[int, int, int]) -> float:
    """The area of the largest patch in a mask (H, W) bool that looks like ground, such as between sleeve and body,
    over its own.

    pixels (H, W, 3) uint8; steps: as in `_frequencies`.
    """
    cv2 = opencv()
    inside, outside = _frequencies(cv2.GaussianBlur(pixels, (0, 0), 1.5), mask, steps)
    alike = (mask & (outside > 2 * inside)).astype(np.uint8)
    patches = cv2.morphologyEx(alike, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) > 0
    return float(_pieces(patches)[1].max() / mask.sum())


def _frequencies(pixels: np.ndarray, mask: np.ndarray, steps: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """How frequent each pixel's colour is in a mask (H, W) bool, and outside; steps: of 8-bit CIELAB, from 4 on."""
    cv2 = opencv()
    light, red, yellow = np.moveaxis(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB) // np.array(steps), -1, 0)
    bins = (light * 64 + red) * 64 + yellow
    inside, outside = (np.bincount(bins[side], minlength=64**3) / side.sum() for side in (mask, ~mask))
    return inside[bins], outside[bins]


def _frame(shape: tuple[int, int], more: int = 0) -> np.ndarray:
    """(H, W) bool: the margin, and some pixels more."""
    width = max(1, round(MARGIN * max(shape))) + more
    frame = np.ones(shape, bool)
    frame[width:-width, width:-width] = False
    return frame


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) numbers of a mask's connected pieces, from 1, and their pixels (number + 1,); those of 0 are not
    counted.
    """
    pieces = opencv().connectedComponents(mask.astype(np.uint8), connectivity=4)[1]
    return pieces, np.bincount(pieces[mask], minlength=1)


def _reduced(picture: Image.Image, side: int) -> np.ndarray:
    small = picture.copy()
    small.thumbnail((side, side), Image.LANCZOS)
    return np.array(small)


def _resized(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool at another size, its stairs smoothed."""
    soft = opencv().GaussianBlur(mask.astype(np.float32), (0, 0), 1)
    return np.asarray(Image.fromarray(soft).resize(shape[::-1], Image.BICUBIC)) > 0.5


def run(folder: Path, masks: Path, workers: int) -> Counter[str]:
    """Write the masks that are missing, the report and the contact sheet; returns how many photos had which result.

    Raises `ImprintError` where there are no photos, OpenCV is missing, or a worker dies.
    """
    opencv()
    photos = find_photos(folder, masks)
    if not photos:
        raise ImprintError(f"{folder} has no photos without masks of their own; photos are {', '.join(PICTURES)}")
    report, sheet = reports(masks)
    try:
        before = json.loads(report.read_text(encoding="utf-8"))["photos"]
        results = {name: str(result) for name, result in before.items() if name in photos and result != KEPT}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or a broken one
        results = {}
    results |= {name: KEPT for name in photos if _place(masks, name).is_file()}
    left = [photo for photo in photos.items() if photo[0] not in results]
    try:
        done = in_processes(functools.partial(cut_one, masks=masks), left, workers, "masks")
        for name, result in tqdm(done, total=len(photos), initial=len(results), unit="photo"):
            results[name] = result
    finally:
        counts = Counter(results.values())
        table = {"counts": dict(counts.most_common()), "photos": dict(sorted(results.items()))}
        write_text(report, json.dumps(table, indent=1))
    kept = {photos[name]: _place(masks, name) for name, result in results.items() if result == KEPT}
    save_image(contact_sheet(kept), sheet)
    return counts


def find_photos(folder: Path, masks: Path) -> dict[str, Path]:
    """The photos that `training.prepare` finds in a folder and that have no mask from elsewhere: name -> file."""
    photos = {}
    for group in folder_groups(folder):
        file, mask = group.data
        ours = mask is None or masks in mask.parents
        if file and ours and file.suffix.lower() in PICTURES and masks not in file.parents:
            photos[group.name] = file
    return photos


def _place(masks: Path, name: str) -> Path:
    return (masks / name).with_suffix(".png")


def cut_one(photo: tuple[str, Path], masks: Path) -> tuple[str, str]:
    """Write the mask of one photo (name, file); returns its name, and `KEPT` or why there is no mask."""
    name, file = photo
    try:
        mask = cut_out(to_rgb(open_image(file)))
    except Dropped as dropped:
        return name, dropped.reason
    except ImprintError:
        return name, "broken picture"
    save_image(Image.fromarray(mask), _place(masks, name))
    return name, KEPT


def contact_sheet(kept: dict[Path, Path]) -> Image.Image:
    """Some photos, drawn at random, with the outlines of their masks."""
    chosen = random.Random(0).sample(sorted(kept.items()), min(len(kept), SHEET_COLUMNS * SHEET_ROWS))
    pictures = ((to_rgb(open_image(photo)), mask_to_tensor(open_image(mask))[0] > 0.5) for photo, mask in chosen)
    return sheet_of([outlined(photo, Image.fromarray(mask.byte().numpy())) for photo, mask in pictures])
