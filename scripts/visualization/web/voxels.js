// Voxels of one label grid: unpacking, light, faces to draw, and ray casting.
//
// A "padded" index counts the cells of the grid plus one cell of air around it, so neighbours need
// no bounds checks. Faces are numbered 2 * axis, plus one if the outward normal points along the
// positive axis.

const AIR = 255;
// Light as in scripts/visualization/voxel_renderer.py: an unshaded horizontal face has exactly its
// class colour.
const AMBIENT = 0.6, SIDE_AMBIENT = 0.9, CREASE = 0.72;
export const FULL_SHADE = 1.2; // brightness of the value 255 in a light byte

export class VoxelGrid {
  /** @param {number[]} shape voxels in x, y, z  @param {number[]} size metres */
  constructor(shape, size) {
    this.shape = shape;
    this.size = size;
    const [nx, ny, nz] = shape;
    this.steps = [(ny + 2) * (nz + 2), nz + 2, 1];
    this.cells = (nx + 2) * this.steps[0];
    this.labels = new Uint8Array(this.cells).fill(AIR);
    this.light = new Uint8Array(this.cells);
    this.filled = new Uint32Array(0); // padded indices of cells that are not air
  }

  padded(x, y, z) {
    return (x + 1) * this.steps[0] + (y + 1) * this.steps[1] + z + 1;
  }

  /** Fill the grid with the voxels whose label is shown. */
  fill(voxels, shown) {
    for (const cell of this.filled) this.labels[cell] = AIR;
    const [, ny, nz] = this.shape;
    const filled = new Uint32Array(voxels.labels.length);
    let count = 0;
    for (let i = 0; i < voxels.labels.length; i++) {
      const label = voxels.labels[i];
      if (!shown[label]) continue;
      const index = voxels.indices[i];
      const column = Math.floor(index / nz);
      const x = Math.floor(column / ny);
      const cell = this.padded(x, column - x * ny, index - column * nz);
      this.labels[cell] = label;
      filled[count++] = cell;
    }
    this.filled = filled.subarray(0, count);
  }

  label(x, y, z) {
    const inside = [x, y, z].every((v, i) => v >= 0 && v < this.shape[i]);
    const label = inside ? this.labels[this.padded(x, y, z)] : AIR;
    return label === AIR ? -1 : label;
  }

  /**
   * Compute the share of the sun (0 to 255) that each cell sees, from the top layer down. A layer
   * samples the layer above where its ray to the sun passes; this softens shadows with height.
   */
  castSun(toSun, blockers) {
    const { light, labels, shape: [nx, ny, nz], steps: [sx, sy] } = this;
    light.fill(255);
    let top = -1;
    for (const cell of this.filled) top = Math.max(top, (cell % sy) - 1);
    for (const cell of blockers) top = Math.max(top, (cell % sy) - 1);
    const opaque = new Set(blockers);
    const slope = (axis) =>
      Math.max(-0.999, Math.min(0.999, (toSun[axis] / toSun[2]) * (this.size[2] / this.size[axis])));
    const dx = slope(0), dy = slope(1);
    const ix = Math.floor(dx), iy = Math.floor(dy), fx = dx - ix, fy = dy - iy;
    const at = ix * sx + iy * sy + 1; // the cell above, towards the sun
    const w00 = (1 - fx) * (1 - fy), w10 = fx * (1 - fy), w01 = (1 - fx) * fy, w11 = fx * fy;
    for (let z = top - 1; z >= 0; z--) {
      // Light that the layer above transmits.
      for (let x = 0; x < nx; x++) {
        let above = this.padded(x, 0, z + 1);
        for (let y = 0; y < ny; y++, above += sy) {
          if (labels[above] !== AIR || (opaque.size && opaque.has(above))) light[above] = 0;
        }
      }
      for (let x = 0; x < nx; x++) {
        let cell = this.padded(x, 0, z);
        for (let y = 0; y < ny; y++, cell += sy) {
          const q = cell + at;
          const sum = w00 * light[q] + w10 * light[q + sx] + w01 * light[q + sy]
            + w11 * light[q + sx + sy];
          light[cell] = sum + 0.5;
        }
      }
    }
  }

  /**
   * Return the faces between a voxel and air, each with the light at its four corners.
   *
   * @returns {{cells: Uint32Array, labels: Uint8Array, light: Uint8Array, count: number}}
   *   cells: x, y (10 bits each), z (8 bits), face; light: 4 per face, corners (0, 0), (1, 0),
   *   (0, 1), (1, 1) along the axes that follow the normal's.
   */
  faces(toSun) {
    const { labels, light, steps, filled } = this;
    const tones = [0, 1, 2, 3, 4, 5].map((face) => {
      const cosine = ((face & 1 ? 1 : -1) * toSun[face >> 1]) / toSun[2];
      return {
        sun: ((1 - AMBIENT) * Math.min(Math.max(cosine, 0), 1.1)) / 255,
        ambient: AMBIENT * (face === 5 ? 1 : SIDE_AMBIENT),
      };
    });
    let room = 4 * filled.length + 64;
    let out = { cells: new Uint32Array(room), labels: new Uint8Array(room), light: new Uint8Array(4 * room) };
    let count = 0;
    for (const cell of filled) {
      if (count + 6 > room) {
        room *= 2;
        out = grow(out, room);
      }
      const x = Math.floor(cell / steps[0]), rest = cell - x * steps[0];
      const y = Math.floor(rest / steps[1]), z = rest - y * steps[1];
      const place = (x - 1) | ((y - 1) << 10) | ((z - 1) << 20);
      for (let face = 0; face < 6; face++) {
        const axis = face >> 1;
        const front = face & 1 ? cell + steps[axis] : cell - steps[axis];
        if (labels[front] !== AIR) continue;
        const su = steps[(axis + 1) % 3], sv = steps[(axis + 2) % 3];
        out.cells[count] = (place | (face << 28)) >>> 0;
        out.labels[count] = labels[cell];
        cornerLight(labels, light, front, su, sv, tones[face], out.light, 4 * count);
        count++;
      }
    }
    return { ...out, count };
  }

  /** Return the first voxel on a ray, in voxel units; null if none. */
  firstHit(origin, direction) {
    let near = 0, far = Infinity;
    for (let i = 0; i < 3; i++) {
      const a = (0 - origin[i]) / direction[i], b = (this.shape[i] - origin[i]) / direction[i];
      near = Math.max(near, Math.min(a, b));
      far = Math.min(far, Math.max(a, b));
    }
    if (!(near < far)) return null;
    const start = origin.map((o, i) => o + (near + 1e-4) * direction[i]);
    const cell = start.map((v, i) => Math.min(this.shape[i] - 1, Math.max(0, Math.floor(v))));
    const step = direction.map((d) => (d > 0 ? 1 : -1));
    const stride = direction.map((d) => Math.abs(1 / d));
    const next = cell.map((c, i) => near + Math.abs((c + (step[i] > 0 ? 1 : 0) - start[i]) / direction[i]));
    for (let guard = 0; guard < 4096; guard++) {
      const label = this.label(...cell);
      if (label >= 0) return { cell, label };
      const axis = next[0] < next[1] ? (next[0] < next[2] ? 0 : 2) : next[1] < next[2] ? 1 : 2;
      cell[axis] += step[axis];
      next[axis] += stride[axis];
      if (cell[axis] < 0 || cell[axis] >= this.shape[axis]) return null;
    }
    return null;
  }
}

/** Number of coordinates along an axis in a face's number, plus one. */
const LEVELS = 1025;

/**
 * Sort faces by their side and plane, so that the faces towards a camera are six runs.
 *
 * @returns {{order: Uint32Array, starts: Uint32Array}} order of the faces, and start of each plane
 */
export function byPlane(cells, count) {
  const planeOf = (cell) => {
    const axis = cell >>> 29;
    return (cell >>> 28) * LEVELS + ((cell >>> (10 * axis)) & (axis === 2 ? 255 : 1023));
  };
  const starts = new Uint32Array(6 * LEVELS + 1);
  for (let i = 0; i < count; i++) starts[planeOf(cells[i]) + 1]++;
  for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
  const next = starts.slice(), order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[next[planeOf(cells[i])]++] = i;
  return { order, starts };
}

/** Return the runs [first, last) of sorted faces towards a camera (in voxels, the grid's frame). */
export function facing(starts, eye) {
  const runs = [];
  for (let side = 0; side < 6; side++) {
    const e = eye[side >> 1];
    // The plane of a voxel's far side has a number one higher.
    const bound = Math.min(LEVELS - 1, Math.max(0, side & 1 ? Math.ceil(e) - 1 : Math.floor(e) + 1));
    const from = side * LEVELS;
    const [first, last] = side & 1 ? [from, from + bound] : [from + bound, from + LEVELS];
    if (starts[last] > starts[first]) runs.push([starts[first], starts[last]]);
  }
  return runs;
}

function grow(out, room) {
  const larger = {
    cells: new Uint32Array(room), labels: new Uint8Array(room), light: new Uint8Array(4 * room),
  };
  for (const name of Object.keys(larger)) larger[name].set(out[name]);
  return larger;
}

/** Write the light at a face's corners: the mean of the air cells around each; creases are darker. */
function cornerLight(labels, light, front, su, sv, tone, out, at) {
  let corner = at;
  for (let v = 0; v < 2; v++) {
    for (let u = 0; u < 2; u++) {
      const du = u ? su : -su, dv = v ? sv : -sv;
      let sum = light[front], air = 1;
      if (labels[front + du] === AIR) { sum += light[front + du]; air++; }
      if (labels[front + dv] === AIR) { sum += light[front + dv]; air++; }
      if (labels[front + du + dv] === AIR) { sum += light[front + du + dv]; air++; }
      const shade = (tone.sun * sum) / air + tone.ambient * (1 - CREASE * (1 - air / 4));
      out[corner++] = Math.min(255, (shade / FULL_SHADE) * 255 + 0.5);
    }
  }
}

/**
 * Unpack the voxels of one grid. The indices (x-major) are sorted and stored as steps from one to
 * the next, one byte each; 255 means "add 255 and continue with the next byte".
 */
export function unpack(data, { steps, labels }) {
  const values = data.subarray(labels[0], labels[0] + labels[1]);
  const indices = new Uint32Array(values.length);
  const bytes = data.subarray(steps[0], steps[0] + steps[1]);
  let index = 0, count = 0;
  for (const byte of bytes) {
    index += byte;
    if (byte < 255) indices[count++] = index;
  }
  return { indices, labels: values };
}
