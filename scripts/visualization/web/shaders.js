// Shaders of voxels and car. Colours are sRGB values, without conversion.
import * as THREE from "three";
import { FULL_SHADE } from "viewer/voxels";

const VOXEL_VERTEX = /* glsl */ `
in uint cell;           // x, y, z and face, see voxels.js
in uint label;
in vec4 light;
uniform mat4 modelViewMatrix, projectionMatrix;
uniform vec3 gridMin, voxelSize;
uniform vec3 palette[PALETTE];
flat out vec3 tint;
flat out vec4 corners;
out vec2 place;
out float away;

void main() {
  vec2 position = vec2(ivec2((gl_VertexID + 1) >> 1, gl_VertexID >> 1) & 1); // of the unit square
  vec3 base = vec3(cell & 1023u, (cell >> 10) & 1023u, (cell >> 20) & 255u);
  uint face = cell >> 28;
  uint axis = face >> 1;
  bool positive = (face & 1u) == 1u;
  // Anticlockwise seen from outside, for faces of either direction.
  vec2 uv = positive ? position : position.yx;
  float level = positive ? 1.0 : 0.0;
  vec3 corner = axis == 0u ? vec3(level, uv.x, uv.y)
    : axis == 1u ? vec3(uv.y, level, uv.x) : vec3(uv.x, uv.y, level);
  vec4 seen = modelViewMatrix * vec4(gridMin + (base + corner) * voxelSize, 1.0);
  gl_Position = projectionMatrix * seen;
  tint = 0.07 + 0.93 * palette[label]; // on black, shading and lines would be invisible
  corners = light * ${FULL_SHADE.toFixed(4)};
  place = uv;
  away = length(seen.xyz);
}`;

const VOXEL_FRAGMENT = /* glsl */ `
precision highp float;
flat in vec3 tint;
flat in vec4 corners;
in vec2 place;
in float away;
uniform float edgeStrength, edgeWidth, fogStart, fogLength, fogStrength;
out vec4 colour;

void main() {
  float shade = mix(mix(corners.x, corners.y, place.x), mix(corners.z, corners.w, place.x), place.y);
  // Lines along the edges with a constant width on screen; none on tiny voxels.
  vec2 grain = vec2(length(vec2(dFdx(place.x), dFdy(place.x))), length(vec2(dFdx(place.y), dFdy(place.y))));
  vec2 extent = 1.0 / max(grain, 1e-5);
  vec2 cover = clamp(0.5 * edgeWidth + 0.5 - min(place, 1.0 - place) * extent, 0.0, min(edgeWidth, 1.0));
  vec2 fade = clamp((extent / edgeWidth - 3.0) / 8.0, 0.0, 1.0);
  shade *= 1.0 - edgeStrength * max(cover.x * fade.x, cover.y * fade.y);
  float depth = clamp((away - fogStart) / fogLength, 0.0, 1.0);
  // The page's background is visible through fog.
  float solid = 1.0 - fogStrength * depth * depth;
  colour = vec4(tint * shade * solid, solid);
}`;

const CAR_VERTEX = /* glsl */ `
in uint cell;
in uint label;
in vec3 facing;
uniform mat4 viewMatrix, modelMatrix, projectionMatrix;
uniform vec3 cameraPosition, gridMin;
uniform float voxelSize;
uniform vec3 palette[PALETTE];
flat out vec3 tint;
out vec3 normal;
out vec3 towards;

void main() {
  vec2 position = vec2(ivec2((gl_VertexID + 1) >> 1, gl_VertexID >> 1) & 1); // of the unit square
  vec3 base = vec3(cell & 1023u, (cell >> 10) & 1023u, (cell >> 20) & 255u);
  uint face = cell >> 28;
  uint axis = face >> 1;
  bool positive = (face & 1u) == 1u;
  vec2 uv = positive ? position : position.yx;
  float level = positive ? 1.0 : 0.0;
  vec3 corner = axis == 0u ? vec3(level, uv.x, uv.y)
    : axis == 1u ? vec3(uv.y, level, uv.x) : vec3(uv.x, uv.y, level);
  vec4 world = modelMatrix * vec4(gridMin + (base + corner) * voxelSize, 1.0);
  gl_Position = projectionMatrix * viewMatrix * world;
  tint = palette[label];
  normal = facing;
  towards = cameraPosition - world.xyz;
}`;

const CAR_FRAGMENT = /* glsl */ `
precision highp float;
flat in vec3 tint;
in vec3 normal;
in vec3 towards;
uniform vec3 toSun;
out vec4 colour;

void main() {
  vec3 n = normalize(normal);
  float shade = 0.52 + 0.12 * n.z + 0.40 * max(dot(n, toSun), 0.0);
  float gloss = pow(max(dot(n, normalize(toSun + normalize(towards))), 0.0), 40.0);
  colour = vec4(min(tint * shade + 0.35 * gloss, 1.0), 1.0);
}`;

const asVectors = (colours) => colours.map((c) => new THREE.Vector3(c[0] / 255, c[1] / 255, c[2] / 255));

/** Material of a voxel grid; colours are [r, g, b] of 255 per label. */
export function voxelMaterial(colours, gridMin, voxelSize) {
  return new THREE.RawShaderMaterial({
    glslVersion: THREE.GLSL3,
    vertexShader: VOXEL_VERTEX,
    fragmentShader: VOXEL_FRAGMENT,
    defines: { PALETTE: colours.length },
    uniforms: {
      palette: { value: asVectors(colours) },
      gridMin: { value: new THREE.Vector3(...gridMin) },
      voxelSize: { value: new THREE.Vector3(...voxelSize) },
      edgeStrength: { value: 0.3 },
      edgeWidth: { value: 1 },
      fogStart: { value: 1 },
      fogLength: { value: 1 },
      fogStrength: { value: 0 },
    },
    blending: THREE.NoBlending,
  });
}

/** Material of the ego car. */
export function carMaterial(car, toSun) {
  return new THREE.RawShaderMaterial({
    glslVersion: THREE.GLSL3,
    vertexShader: CAR_VERTEX,
    fragmentShader: CAR_FRAGMENT,
    defines: { PALETTE: car.colours.length },
    uniforms: {
      palette: { value: asVectors(car.colours) },
      gridMin: { value: new THREE.Vector3(...car.min) },
      voxelSize: { value: car.voxel },
      toSun: { value: new THREE.Vector3(...toSun).normalize() },
    },
    blending: THREE.NoBlending,
  });
}

/**
 * Geometry with one square per face. The values of a face are repeated for its four corners, which
 * are identified by their vertex number: instancing costs six times as much on software renderers.
 *
 * @param attributes per name an array with `size` values per face; `normalised` ones are shares
 * @param {number} count number of faces
 * @param {Uint32Array} [order] order of the faces; by default unchanged
 */
export function faceGeometry(attributes, count, order) {
  const geometry = new THREE.BufferGeometry();
  for (const [name, { array, size, normalised }] of Object.entries(attributes)) {
    const corners = new array.constructor(4 * size * count);
    for (let turn = 0, at = 0; turn < count; turn++) {
      const face = order ? order[turn] : turn;
      for (let corner = 0; corner < 4; corner++) {
        for (let i = 0; i < size; i++) corners[at++] = array[size * face + i];
      }
    }
    const attribute = new THREE.BufferAttribute(corners, size, Boolean(normalised));
    if (!normalised) attribute.gpuType = THREE.IntType; // the shader reads integers
    geometry.setAttribute(name, attribute);
  }
  geometry.setIndex(cornersOf(count));
  geometry.setDrawRange(0, 6 * count);
  return geometry;
}

let shared = null;

/** Two triangles per face, for at least this number of faces; all meshes share the buffer. */
function cornersOf(count) {
  if (!shared || shared.count < 6 * count) {
    const faces = Math.ceil(1.25 * count);
    const index = new Uint32Array(6 * faces);
    for (let face = 0; face < faces; face++) {
      [0, 1, 2, 0, 2, 3].forEach((corner, i) => { index[6 * face + i] = 4 * face + corner; });
    }
    shared = new THREE.BufferAttribute(index, 1);
  }
  return shared;
}
