"""Render views of re-textured meshes: what `training.prepare meshes` and `objaverse` drive.

An identity is a mesh with a material drawn for it, seen in a few views that differ in camera and light. Rendering is by
OpenGL without a window: on a GPU, or on a CPU through Mesa.
"""

import argparse
import functools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imprint.errors import ImprintError

from .panoramas import LEVEL_SIZES, Panorama, cast_shadow, draw_exposure, look, read_panorama, to_photo
from .shards import SCENE_SCALE

TEXTURE_SIZE = 256  # pixels a side of a drawn texture
ORIGINAL_TEXTURE_SIZE = 512  # pixels, the longest side of a mesh's own texture
SHADOW_SIZE = 512  # pixels a side of the shadow map
SUPERSAMPLING = 2
PROCEDURAL_WEIGHT = 0.5  # abstract shapes teach less than real objects
STYLES = {"original": 0.35, "colours": 0.1, "photo": 0.15, "pattern": 0.13, "label": 0.13, "mixed": 0.14}

VERTEX_SHADER = """
#version 330
uniform mat4 camera;
in vec3 in_position; in vec3 in_normal; in vec2 in_uv; in vec3 in_colour;
out vec3 position; out vec3 normal; out vec2 uv; out vec3 colour;
void main() {
    position = in_position; normal = in_normal; uv = in_uv; colour = in_colour;
    gl_Position = camera * vec4(in_position, 1.0);
}
"""

DEPTH_VERTEX_SHADER = """
#version 330
uniform mat4 shadow_camera;
in vec3 in_position;
void main() { gl_Position = shadow_camera * vec4(in_position, 1.0); }
"""
DEPTH_FRAGMENT_SHADER = "#version 330\nvoid main() {}"

FRAGMENT_SHADER = """
#version 330
uniform sampler2D base_colour;
uniform sampler2DShadow shadow_map;
uniform mat4 shadow_camera;
uniform mat3 recolour;        // of the mesh's own colours
uniform bool triplanar;       // drawn textures need no UVs, they are projected along the axes
uniform vec3 part_centre; uniform float part_scale;
uniform float roughness; uniform float metallic;
uniform vec3 eye;
uniform vec3 key_direction; uniform vec3 key_light; uniform vec3 rim_direction; uniform vec3 rim_light;
uniform vec3 sky; uniform vec3 ground;
uniform bool panoramic; uniform sampler2D panorama; uniform float turn; uniform float exposure;
in vec3 position; in vec3 normal; in vec2 uv; in vec3 colour;
out vec4 pixel;

vec3 to_linear(vec3 c) { return pow(max(c, 0.0), vec3(2.2)); }

vec3 projected(vec3 n) {
    vec3 q = (position - part_centre) * part_scale;
    vec3 w = pow(abs(n), vec3(12.0));
    w /= w.x + w.y + w.z;
    vec3 s = vec3(n.x < 0.0 ? 1.0 : -1.0, n.y < 0.0 ? 1.0 : -1.0, n.z < 0.0 ? -1.0 : 1.0);  // no mirrored words
    return w.x * texture(base_colour, 0.5 + vec2(s.x * q.z, q.y)).rgb
         + w.y * texture(base_colour, 0.5 + vec2(q.x, s.y * q.z)).rgb
         + w.z * texture(base_colour, 0.5 + vec2(s.z * q.x, q.y)).rgb;
}

// Lambert and GGX (Walter et al. 2007) with Schlick's Fresnel term; radiance is scaled so that white returns light.
vec3 lit(vec3 albedo, vec3 f0, vec3 n, vec3 v, vec3 l, vec3 light) {
    vec3 h = normalize(l + v);
    float nl = max(dot(n, l), 0.0), nv = max(dot(n, v), 0.05), nh = max(dot(n, h), 0.0);
    float a2 = pow(roughness, 4.0), d = nh * nh * (a2 - 1.0) + 1.0;
    vec3 fresnel = f0 + (1.0 - f0) * pow(1.0 - max(dot(h, v), 0.0), 5.0);
    float k = (roughness + 1.0) * (roughness + 1.0) / 8.0;
    float visibility = 0.25 / ((nl * (1.0 - k) + k) * (nv * (1.0 - k) + k));
    vec3 specular = min(a2 / (d * d) * visibility, 4.0) * fresnel;
    return (albedo * (1.0 - metallic) + specular) * light * nl;
}

vec3 surroundings(vec3 d, float blur) {
    if (!panoramic) return mix(ground, sky, smoothstep(-blur, blur, d.y));
    vec2 place = vec2(atan(d.x, d.z) / 6.2831853 + 0.5 + turn, acos(clamp(d.y, -1.0, 1.0)) / 3.1415927);
    return exposure * textureLod(panorama, place, 3.0 * min(blur, 1.0)).rgb;  // the last level is a matt surface's
}

void main() {
    vec3 v = normalize(eye - position);
    vec3 face = normalize(cross(dFdx(position), dFdy(position)));
    face *= dot(face, v) < 0.0 ? -1.0 : 1.0;
    // Winding and normals of free meshes are often inconsistent: every face is two-sided, seen from the camera's side.
    vec3 n = dot(normal, normal) > 0.0 ? normalize(normal) : face;
    n *= dot(n, face) < 0.0 ? -1.0 : 1.0;
    vec3 albedo = triplanar ? to_linear(projected(n))
        : clamp(recolour * (to_linear(texture(base_colour, uv).rgb) * to_linear(colour)), 0.0, 1.0);
    vec3 f0 = mix(vec3(0.04), albedo, metallic);
    vec4 s = shadow_camera * vec4(position + 0.015 * face, 1.0);
    float shadow = texture(shadow_map, 0.5 + 0.5 * s.xyz);
    vec3 c = lit(albedo, f0, n, v, key_direction, key_light) * shadow;
    c += lit(albedo, f0, n, v, rim_direction, rim_light);
    c += albedo * (1.0 - metallic) * surroundings(n, 1.0);
    float grazing = pow(1.0 - max(dot(n, v), 0.0), 5.0) * (1.0 - roughness);
    c += (f0 + (1.0 - f0) * grazing) * surroundings(reflect(-v, n), 0.1 + roughness) * (1.0 - 0.5 * roughness);
    c = mix(c, 1.0 - 0.3 * exp((0.7 - c) / 0.3), step(0.7, c));  // a soft shoulder keeps highlights from clipping
    pixel = vec4(mix(12.92 * c, 1.055 * pow(max(c, 0.0), vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)), 1.0);
}
"""


@dataclass(frozen=True)
class Mesh:
    """A file and what the mesh index says of it."""

    file: str
    source: str = "unknown"
    licence: str = "unknown"
    procedural: bool = False


@dataclass(frozen=True)
class Identity:
    """Object `index` of the data set: a mesh, and which of its materials this is (0 is the mesh's own)."""

    index: int
    mesh: Mesh
    variant: int


@dataclass
class Part:
    """One part of a mesh: vertices (V, 11) float32 of xyz, normal, uv and sRGB in [0, 1]; faces (F, 3) int32."""

    vertices: np.ndarray
    faces: np.ndarray
    texture: Image.Image
    triplanar: bool = False

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre (3,) and extent (3,) of the box around it."""
        low, high = self.vertices[:, :3].min(0), self.vertices[:, :3].max(0)
        return (low + high) / 2, np.maximum(high - low, 1e-4)


def read_meshes(folder: Path) -> list[Mesh]:
    """The .glb files of a folder, at any depth, with source and licence where index.json gives them."""
    index = folder / "index.json"
    try:
        lines = json.loads(index.read_text()) if index.exists() else []
        facts = {line["file"]: {name: line[name] for name in ("source", "licence", "procedural")} for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImprintError(
            f"{index} is no list of meshes with file, source, licence and procedural ({error!r})"
        ) from error
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.glb"))
    return [Mesh(file, **facts.get(file, {})) for file in files]


def read_photos(
    folders: list[Path], exclude: set[str], kinds: tuple[str, ...] = (".jpg", ".jpeg", ".png")
) -> list[Path]:
    """The pictures of the folders, less those of the names in `exclude`. Raises `ImprintError` where none is left."""
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.name not in exclude]
    photos = [path for path in files if path.suffix.lower() in kinds]
    if folders and not photos:
        raise ImprintError(f"{' and '.join(map(str, folders))} hold no {' or '.join(kinds)}; name folders of pictures")
    return photos


def plan_identities(meshes: list[Mesh], count: int, seed: int) -> list[Identity]:
    """Spread `count` identities over the meshes, in random order."""
    weights = np.array([PROCEDURAL_WEIGHT if mesh.procedural else 1.0 for mesh in meshes])
    edges = np.rint(np.cumsum(weights) / weights.sum() * count).astype(int)
    pairs = [
        (mesh, variant) for mesh, most in zip(meshes, np.diff(edges, prepend=0), strict=True) for variant in range(most)
    ]
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [Identity(index, *pairs[place]) for index, place in enumerate(order.tolist())]


def load_parts(path: Path) -> list[Part]:
    """The parts of a mesh, moved and scaled into the unit sphere."""
    import trimesh

    parts = []
    for mesh in trimesh.load(path, force="scene").dump():
        if not isinstance(mesh, trimesh.Trimesh):  # lines and points
            continue
        texture, uv = Image.new("RGB", (1, 1), "white"), np.zeros((len(mesh.vertices), 2))
        colours = np.full((len(mesh.vertices), 3), 0.8)
        if mesh.visual.kind == "vertex":
            colours = mesh.visual.vertex_colors[:, :3] / 255
        elif mesh.visual.kind == "texture":
            material = mesh.visual.material
            if isinstance(material, trimesh.visual.material.SimpleMaterial):
                material = material.to_pbr()
            if material.baseColorTexture is not None and mesh.visual.uv is not None:
                texture, uv = material.baseColorTexture.convert("RGB"), mesh.visual.uv
                texture.thumbnail((ORIGINAL_TEXTURE_SIZE, ORIGINAL_TEXTURE_SIZE))
                colours[:] = 1
            if material.baseColorFactor is not None:  # linear in glTF, 0 to 255 in trimesh
                colours[:] = (material.baseColorFactor[:3] / 255) ** (1 / 2.2)
        vertices = np.hstack([mesh.vertices, mesh.vertex_normals, uv, colours]).astype(np.float32)
        parts.append(Part(vertices, mesh.faces.astype(np.int32), texture))
    points = np.concatenate([part.vertices[:, :3] for part in parts])
    centre = (points.min(0) + points.max(0)) / 2
    radius = np.linalg.norm(points - centre, axis=1).max()
    if not np.isfinite(radius) or radius == 0:
        raise ValueError(f"{path.name} has radius {radius}")
    for part in parts:
        part.vertices[:, :3] = (part.vertices[:, :3] - centre) / radius
    return parts


def is_plain(parts: list[Part]) -> bool:
    """Whether the mesh is about one grey all over, so that its own colours tell no identity."""
    colours = np.concatenate([part.vertices[:, 8:] for part in parts])
    textured = any(part.texture.width > 1 for part in parts)
    return not textured and np.ptp(colours, axis=1).max() < 0.1 and np.ptp(colours, axis=0).max() < 0.3


def draw_palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) sRGB in [0, 1]: hues of one harmony, with some greys, black and white among them."""
    hues = (rng.uniform() + rng.choice([[0, 0.08, -0.08], [0, 0.5, 0.05], [0, 1 / 3, 2 / 3]])) % 1
    hue, saturation, value = rng.choice(hues, count), rng.uniform(0.25, 0.95, count), rng.uniform(0.25, 0.95, count)
    grey = rng.uniform(size=count) < 0.25
    saturation[grey] = 0
    value[grey] = rng.choice([0.04, 0.3, 0.6, 0.95], grey.sum())
    channels = np.clip(np.abs((hue[:, None] + [0, 2 / 3, 1 / 3]) % 1 * 6 - 3) - 1, 0, 1)
    return value[:, None] * (1 + saturation[:, None] * (channels - 1))


def to_image(colours: np.ndarray) -> Image.Image:
    """(H, W, 3) sRGB in [0, 1] to a picture."""
    return Image.fromarray(np.rint(colours * 255).astype(np.uint8))


def draw_clouds(rng: np.random.Generator) -> np.ndarray:
    """(S, S) smooth noise in [0, 1]."""
    clouds = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE), np.float32)
    for octave in range(2, 7):
        noise = Image.fromarray(rng.uniform(size=(2**octave, 2**octave)).astype(np.float32))
        clouds += np.asarray(noise.resize(clouds.shape, Image.Resampling.BICUBIC)) / 2**octave
    return (clouds - clouds.min()) / np.ptp(clouds)


def draw_pattern(rng: np.random.Generator) -> Image.Image:
    """Stripes, dots, checks, a gradient, noise or marble in two to four colours."""
    y, x = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE] / TEXTURE_SIZE
    angle, frequency = rng.choice([0, math.pi / 2, rng.uniform(0, math.pi)]), rng.uniform(3, 14)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    match rng.integers(6):
        case 0:
            value = np.sin(2 * math.pi * frequency * u) > rng.uniform(-0.7, 0.7)
        case 1:
            value = np.hypot((u * frequency) % 1 - 0.5, (v * frequency) % 1 - 0.5) < rng.uniform(0.2, 0.4)
        case 2:
            value = (np.floor(u * frequency) + np.floor(v * frequency)) % 2
        case 3:
            value = (u - u.min()) / np.ptp(u)
        case 4:
            value = draw_clouds(rng)
        case _:
            value = 0.5 + 0.5 * np.sin(math.pi * frequency * u + rng.uniform(4, 12) * draw_clouds(rng))
    colours = draw_palette(rng, rng.integers(2, 5))
    stops = np.linspace(0, 1, len(colours))
    return to_image(np.stack([np.interp(value, stops, channel) for channel in colours.T], axis=-1))


def draw_photo(rng: np.random.Generator, photos: list[Path]) -> Image.Image:
    """A random square crop of a random photo; a pattern where there is no photo."""
    if not photos:
        return draw_pattern(rng)
    with Image.open(photos[rng.integers(len(photos))]) as file:
        photo = file.convert("RGB")
    side = rng.uniform(0.4, 1) * min(photo.size)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    return photo.resize((TEXTURE_SIZE, TEXTURE_SIZE), box=(left, top, left + side, top + side))


def draw_word(rng: np.random.Generator) -> str:
    """A number or a short word that can be pronounced."""
    if rng.uniform() < 0.25:
        return str(rng.integers(1, 10000))
    word = "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(rng.integers(1, 4)))
    return str(rng.choice([word.upper(), word.capitalize()]))


def draw_label(rng: np.random.Generator, extent: np.ndarray) -> Image.Image:
    """A label band with one to three lines of text, placed and sized for a part of bounding box `extent` (3,)."""
    base, band, ink = (tuple(colour) for colour in np.rint(draw_palette(rng, 3) * 255).astype(int).tolist())
    if abs(sum(band) - sum(ink)) < 240:  # text must stand out
        ink = (250, 250, 250) if sum(band) < 380 else (10, 10, 10)
    texture = draw_pattern(rng) if rng.uniform() < 0.2 else Image.new("RGB", (TEXTURE_SIZE, TEXTURE_SIZE), base)
    draw = ImageDraw.Draw(texture)
    width, height = TEXTURE_SIZE * np.array([min(extent[0], extent[2]), extent[1]]) / extent.max()
    lines = rng.integers(1, 4)
    middle = TEXTURE_SIZE / 2 + rng.uniform(-0.15, 0.15) * height
    half = rng.uniform(0.2, 0.42) * height
    draw.rectangle((0, middle - half, TEXTURE_SIZE, middle + half), fill=band)
    for line in range(lines):
        text = draw_word(rng)
        pitch = 2 * half / lines
        size = max(6.0, min(0.9 * pitch, rng.uniform(0.9, 1.4) * width / len(text)))
        place = (TEXTURE_SIZE / 2, middle - half + (line + 0.5) * pitch)
        draw.text(place, text, fill=ink, font=ImageFont.load_default(size), anchor="mm")
    return texture


def retexture(parts: list[Part], style: str, rng: np.random.Generator, photos: list[Path]) -> None:
    """Give the parts the textures of a style, in place."""
    if style == "colours" and len(parts) == 1:
        style = "pattern"  # one plain colour is hardly an identity
    largest = max(range(len(parts)), key=lambda i: np.prod(np.sort(parts[i].bounds[1])[1:]))
    colours = draw_palette(rng, len(parts))
    for i, part in enumerate(parts):
        kind = style
        if style == "mixed":
            kind = rng.choice(["original", "colours", "photo", "pattern", "label"])
        elif style in ("photo", "pattern", "label") and i != largest and rng.uniform() < 0.6:
            kind = "colours"
        if kind == "original":
            continue
        part.triplanar = True
        if kind == "colours":
            part.texture = to_image(colours[None, None, i])
        elif kind == "photo":
            part.texture = draw_photo(rng, photos)
        elif kind == "pattern":
            part.texture = draw_pattern(rng)
        else:
            part.texture = draw_label(rng, part.bounds[1])


def draw_material(rng: np.random.Generator, keep_colours: bool) -> dict[str, Any]:
    """Uniforms of an identity: roughness, metallic and the hue rotation of the mesh's own colours."""
    angle = 0.0 if keep_colours else rng.uniform(0, 2 * math.pi)
    c, s = math.cos(angle), math.sin(angle)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # Rodrigues' rotation about grey
    hue = c * np.eye(3) + s * axis + (1 - c) / 3
    metallic = rng.uniform(0.2, 0.7) if rng.uniform() < 0.15 else 0.0
    return {"roughness": rng.uniform(0.2, 0.95), "metallic": metallic, "recolour": tuple(hue.T.ravel())}


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector (3,), y up, of two angles in radians."""
    return np.array(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )


def look_at(towards: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """Rotation (3, 3) into the frame of a camera that sits at `towards` and looks at the origin."""
    right = np.cross([0, 1, 0], towards)
    right /= np.linalg.norm(right)
    up = np.cross(towards, right)
    c, s = math.cos(roll), math.sin(roll)
    return np.stack([c * right + s * up, c * up - s * right, towards])


def draw_azimuths(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) radians whose pairs range from near (15 degrees) to opposite."""
    gaps = rng.permutation(np.resize([[15, 30], [30, 60], [15, 30], [60, 120], [40, 90]], (count, 2)))
    return np.radians(rng.uniform(0, 360) + np.cumsum(rng.uniform(gaps[:, 0], gaps[:, 1])))


def draw_camera(
    rng: np.random.Generator, azimuth: float, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrix (4, 4), eye (3,) and rotation (3, 3) of a camera in whose frame the points (N, 3) fill 70 to 95 %."""
    extent = np.ptp(points, axis=0)
    lowest = 20 if extent[1] < 0.3 * extent.max() else -5  # a flat object seen edge-on shows nothing
    elevation = rng.uniform(lowest, 50) if rng.uniform() < 0.87 else rng.uniform(50, 75)
    roll = rng.uniform(-15, 15) if rng.uniform() < 0.9 else rng.uniform(-40, 40)
    distance = 1 / math.sin(math.radians(rng.uniform(20, 50)) / 2)
    towards = direction(azimuth, math.radians(elevation))
    rotation = look_at(towards, math.radians(roll))
    seen = points @ rotation.T
    image = seen[:, :2] / (distance - seen[:, 2:])
    low, high = image.min(0), image.max(0)
    fill = rng.uniform(0.7, 0.95)
    scale = 2 * fill / (high - low).max()
    shift = scale * (low + high) / 2 - rng.uniform(-0.5, 0.5, 2) * (1 - fill)
    near, far = distance - 1.01, distance + 1.01
    view = np.eye(4)
    view[:3, :3], view[2, 3] = rotation, -distance
    projection = np.array(
        [
            [scale, 0, shift[0], 0],
            [0, scale, shift[1], 0],
            [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, -1, 0],
        ]
    )
    return projection @ view, distance * towards, rotation


def draw_tint(rng: np.random.Generator) -> np.ndarray:
    """(3,) linear colour of a light between warm and cool, its largest channel 1."""
    warmth = np.clip(rng.normal(0, 0.5), -1, 1)
    end = np.array([1, 0.68, 0.4]) if warmth > 0 else np.array([0.6, 0.78, 1])
    return 1 + abs(warmth) * (end - 1)


def draw_light(rng: np.random.Generator, azimuth: float) -> dict[str, Any]:
    """Uniforms of a view's light; a white surface facing the key light returns 0.55 (dim) to 1.4 (bright)."""
    exposure = math.exp(rng.uniform(math.log(0.55), math.log(1.4)))
    ambient = rng.uniform(0.2, 0.65)
    key = direction(azimuth + math.radians(rng.uniform(-120, 120)), math.radians(rng.uniform(15, 75)))
    rim = direction(azimuth + math.radians(rng.uniform(120, 240)), math.radians(rng.uniform(-10, 50)))
    sky = exposure * ambient * draw_tint(rng)
    return {
        "panoramic": False,
        "turn": 0.0,
        "exposure": 1.0,
        "key_direction": tuple(key),
        "key_light": tuple(exposure * (1 - ambient) * draw_tint(rng)),
        "rim_direction": tuple(rim),
        "rim_light": tuple((rng.uniform() < 0.35) * exposure * rng.uniform(0.2, 0.7) * draw_tint(rng)),
        "sky": tuple(sky),
        "ground": tuple(sky * rng.uniform(0.25, 0.8) * draw_tint(rng)),
        "shadow_camera": shadow_camera(key),
    }


def shadow_camera(towards: np.ndarray) -> tuple[float, ...]:
    """The matrix, by columns, that looks at the unit sphere from a light."""
    matrix = np.diag([1, 1, -1, 1]).astype(float)
    matrix[:3, :3] = matrix[:3, :3] @ look_at(towards)
    return tuple(matrix.T.ravel())


@dataclass(frozen=True)
class View:
    """A rendering: a cut-out and, where it has the light of a place, a photo of that place."""

    number: int
    picture: Image.Image
    """RGBA, straight alpha."""
    scene: Image.Image | None = None
    """RGB."""
    shadow: tuple[float, float, float] | None = None
    """In that place, as `training.shards.Record` has it."""


def turned(direction: np.ndarray, turn: float) -> np.ndarray:
    """A direction (3,) of a panorama in the world that it is turned in."""
    (x, y, z), angle = direction, -2 * math.pi * turn
    return np.array([x * math.cos(angle) + z * math.sin(angle), y, z * math.cos(angle) - x * math.sin(angle)])


def draw_place(
    rng: np.random.Generator, files: list[Path], rotation: np.ndarray, side: int
) -> tuple[Panorama, dict[str, Any], Image.Image, tuple[float, float, float]]:
    """A panorama turned at random, the light's uniforms, what the camera of a rotation sees there, and how shadows fall."""
    panorama, turn = read_panorama(files[rng.integers(len(files))]), rng.uniform()
    radiance = look(panorama, rotation, turn, math.radians(rng.uniform(60, 100)), side)
    exposure = draw_exposure(rng, panorama, radiance)
    key = turned(panorama.key_direction, turn)
    if key[1] < 0.05:  # a lamp at eye height throws no shadow on the ground, but lights as if from just above
        key = np.array([key[0], 0.05, key[2]]) / np.linalg.norm([key[0], 0.05, key[2]])
    light = {
        "panoramic": True,
        "turn": turn,
        "exposure": exposure,
        "key_direction": tuple(key),
        "key_light": tuple(exposure * panorama.key_light),
        "rim_direction": tuple(key),
        "rim_light": (0.0, 0.0, 0.0),
        "sky": (0.0, 0.0, 0.0),
        "ground": (0.0, 0.0, 0.0),
        "shadow_camera": shadow_camera(key),
    }
    above = panorama.levels[-1][0].mean(0)  # what level ground gets of the rest
    return panorama, light, to_photo(exposure * radiance), cast_shadow(key, panorama.key_light, above, rotation)


class Renderer:
    """An OpenGL context without a window that draws parts into square RGBA pictures."""

    def __init__(self, backend: str, resolution: int) -> None:
        # One thread a worker: llvmpipe's own threads would compete with the other workers.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        import moderngl

        try:
            self.context = context = moderngl.create_context(standalone=True, backend=backend)
        except Exception as error:  # each platform's loader fails in its own way
            raise ImprintError(
                f"--backend {backend} gave '{error}'; OpenGL 3.3 was expected: install its driver (Debian: libegl1 "
                "libgl1-mesa-dri) or change --backend"
            ) from error
        context.gc_mode = "auto"
        context.enable_only(moderngl.DEPTH_TEST)
        self.program = context.program(vertex_shader=VERTEX_SHADER, fragment_shader=FRAGMENT_SHADER)
        self.depth_program = context.program(vertex_shader=DEPTH_VERTEX_SHADER, fragment_shader=DEPTH_FRAGMENT_SHADER)
        self.shadow_map = context.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self.shadow_map.compare_func = "<="
        self.shadow_map.repeat_x = self.shadow_map.repeat_y = False
        self.shadow_frame = context.framebuffer(depth_attachment=self.shadow_map)
        self.frame = context.simple_framebuffer((resolution * SUPERSAMPLING,) * 2, components=4)
        self.program["shadow_map"], self.program["panorama"] = 1, 2
        self.panoramas: dict[Panorama, Any] = {}

    def upload(self, parts: list[Part]) -> list[tuple[Any, Any, Any, dict[str, Any]]]:
        """For each part its vertex array, its vertex array for the shadow map, its texture and its uniforms."""
        uploaded = []
        for part in parts:
            buffer, faces = self.context.buffer(part.vertices.tobytes()), self.context.buffer(part.faces.tobytes())
            layout = (buffer, "3f 3f 2f 3f", "in_position", "in_normal", "in_uv", "in_colour")
            image = part.texture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            texture = self.context.texture(image.size, 3, image.tobytes(), alignment=1)
            texture.build_mipmaps()
            centre, extent = part.bounds
            uniforms = {"triplanar": part.triplanar, "part_centre": tuple(centre), "part_scale": 1 / extent.max()}
            array = self.context.vertex_array(self.program, [layout], faces)
            shadow_layout = (buffer, "3f 32x", "in_position")
            uploaded.append(
                (array, self.context.vertex_array(self.depth_program, [shadow_layout], faces), texture, uniforms)
            )
        return uploaded

    def surround(self, panorama: Panorama) -> None:
        """Make a panorama what `surroundings` sees."""
        texture = self.panoramas.get(panorama)
        if texture is None:
            high, wide = LEVEL_SIZES[0]
            texture = self.panoramas[panorama] = self.context.texture((wide, high), 3, dtype="f4")
            texture.build_mipmaps(0, len(panorama.levels) - 1)
            for level, values in enumerate(panorama.levels):
                texture.write(values.tobytes(), level=level)
            texture.repeat_y = False
        texture.use(2)

    def render(self, uploaded: list, camera: np.ndarray, eye: np.ndarray, uniforms: dict[str, Any]) -> Image.Image:
        """One view as a picture with straight alpha, black where alpha is 0."""
        self.depth_program["shadow_camera"] = uniforms["shadow_camera"]
        self.shadow_frame.use()
        self.shadow_frame.clear()
        for _, shadow_array, _, _ in uploaded:
            shadow_array.render()
        self.frame.use()
        self.frame.clear()
        self.shadow_map.use(1)
        for name, value in {**uniforms, "camera": tuple(camera.T.ravel()), "eye": tuple(eye)}.items():
            self.program[name] = value
        for array, _, texture, part_uniforms in uploaded:
            texture.use(0)
            for name, value in part_uniforms.items():
                self.program[name] = value
            array.render()
        picture = Image.frombytes("RGBA", self.frame.size, self.frame.read(components=4, alignment=1))
        # Pillow's reduce averages with premultiplied alpha and so keeps the edges free of black.
        return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).reduce(SUPERSAMPLING)


@functools.cache
def get_renderer(backend: str, resolution: int) -> Renderer:
    """This worker process's renderer of a resolution."""
    return Renderer(backend, resolution)


def render_identity(identity: Identity, parts: list[Part], options: argparse.Namespace) -> list[View]:
    """All views of an identity; a function of the seed and the identity alone.

    After each of the first `options.relit` views comes the same again in the light of one of `options.panorama_files`.
    """
    rng = np.random.default_rng([options.seed, identity.index])
    places = np.random.default_rng([options.seed, identity.index, 1])  # the views are the same with and without them
    style = rng.choice(list(STYLES), p=list(STYLES.values()))
    if is_plain(parts):
        style = rng.choice(["colours", "photo", "pattern", "label", "mixed"])
    elif identity.variant == 0:
        style = "original"
    retexture(parts, style, rng, options.photo_files)
    material = draw_material(rng, keep_colours=identity.variant == 0 or rng.uniform() < 0.5)
    points = np.concatenate([part.vertices[:, :3] for part in parts])
    renderer, views = get_renderer(options.backend, options.resolution), []
    scene_side = round(options.resolution * SCENE_SCALE)
    with renderer.context:  # OpenGL draws, and frees, in whichever context was last made current
        uploaded = renderer.upload(parts)
        for number, azimuth in enumerate(draw_azimuths(rng, options.views)):
            camera, eye, rotation = draw_camera(rng, azimuth, points)
            views.append(View(number, renderer.render(uploaded, camera, eye, material | draw_light(rng, azimuth))))
            if number < options.relit:
                panorama, light, scene, shadow = draw_place(places, options.panorama_files, rotation, scene_side)
                renderer.surround(panorama)
                views.append(View(number, renderer.render(uploaded, camera, eye, material | light), scene, shadow))
        del uploaded
    return views
