"""The renderer's OpenGL shaders."""

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
