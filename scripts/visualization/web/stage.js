// Scene on the canvas: voxels of the current sample, ego car, track and camera.
import * as THREE from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { VoxelGrid, byPlane, facing, unpack } from "viewer/voxels";
import { carMaterial, faceGeometry, voxelMaterial } from "viewer/shaders";

const FIELD_OF_VIEW = 44.8; // degrees, vertical: as in the chase view of pictures
const FOG = 0.42;
const CACHED_MESHES = 24;
// If drawing takes longer than SLOW, a moving scene is drawn at a lower resolution. At rest it is
// drawn once more in full. Milliseconds.
const SLOW = 45, QUICK = 18, REST = 150;
const SHARPNESS = [1, 0.71, 0.5, 0.35]; // share of the screen's resolution along a side
const CAR_BOX = [[-0.64, -0.87, 0.05], [3.44, 0.87, 1.53]]; // metres above the ground, ego frame

export class Stage {
  /** @param {HTMLCanvasElement} canvas  @param {object} meta see web_page.py  @param {Uint8Array} data */
  constructor(canvas, meta, data) {
    this.meta = meta;
    this.data = data;
    this.canvas = canvas;
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.level = 0; // index into SHARPNESS
    this.pace = { last: 0, mean: 0, count: 0 };
    this.setLevel(0);
    this.renderer.setClearColor(0, 0);
    this.scene = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1, 0.2, 2000);
    this.camera.up.set(0, 0, 1);
    this.controls = new OrbitControls(this.camera, canvas);
    Object.assign(this.controls, {
      enableDamping: true, dampingFactor: 0.12, minDistance: 3, autoRotateSpeed: 2.5,
      maxDistance: 6 * meta.extent, maxPolarAngle: 0.495 * Math.PI, screenSpacePanning: false,
    });
    this.controls.addEventListener("change", () => this.draw());
    this.controls.addEventListener("start", () => { this.controls.autoRotate = false; });
    this.grid = new VoxelGrid(meta.shape, meta.voxelSize);
    this.meshes = new Map(); // meshes by contents, the latest last
    this.unpacked = new Map();
    this.materials = meta.layers.map((layer) =>
      voxelMaterial(layer.colours, meta.gridMin, meta.voxelSize));
    this.world = new THREE.Group(); // the grid's frame, relative to the ego frame
    this.world.matrixAutoUpdate = false;
    this.scene.add(this.world);
    this.addCar();
    this.addTrack();
    this.addMarker();
    this.picked = null;
    this.wanted = false;
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
    const tick = (now) => {
      requestAnimationFrame(tick);
      this.step(now);
    };
    requestAnimationFrame(tick);
  }

  addCar() {
    const { car } = this.meta;
    const part = ([start, length]) => this.data.slice(start, start + length);
    const bytes = part(car.cells);
    const geometry = faceGeometry({
      cell: { array: new Uint32Array(bytes.buffer), size: 1 },
      label: { array: part(car.labels), size: 1 },
      facing: { array: new Int8Array(part(car.normals).buffer), size: 3, normalised: true },
    }, bytes.length / 4);
    this.car = new THREE.Mesh(geometry, carMaterial(car, this.meta.toSun));
    this.car.frustumCulled = false;
    this.scene.add(this.car);
  }

  /** Add a ribbon along the vehicle's path, in the frame of the map. */
  addTrack() {
    const points = this.meta.frames.map((f) => new THREE.Vector3(f.pose[3], f.pose[7], f.pose[11]));
    const corners = [], index = [];
    const side = new THREE.Vector3(), up = new THREE.Vector3(0, 0, 1);
    points.forEach((point, i) => {
      side.subVectors(points[Math.min(i + 1, points.length - 1)], points[Math.max(i - 1, 0)]);
      side.cross(up).normalize().multiplyScalar(0.14);
      corners.push(...point.clone().add(side).toArray(), ...point.clone().sub(side).toArray());
      const j = 2 * i;
      if (i) index.push(j - 2, j - 1, j, j, j - 1, j + 1);
    });
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(corners), 3));
    geometry.setIndex(index);
    const material = new THREE.MeshBasicMaterial({
      color: 0xffffff, transparent: true, opacity: 0.85, side: THREE.DoubleSide,
    });
    this.track = new THREE.Mesh(geometry, material);
    this.track.matrixAutoUpdate = false;
    this.track.frustumCulled = false;
    this.track.visible = points.length > 1;
    this.scene.add(this.track);
  }

  addMarker() {
    const box = new THREE.EdgesGeometry(new THREE.BoxGeometry(1, 1, 1));
    this.marker = new THREE.LineSegments(box, new THREE.LineBasicMaterial({ color: 0xffffff }));
    this.marker.visible = false;
    this.world.add(this.marker);
  }

  /** Return the voxels of a frame and layer (see meta.layers); each is unpacked once. */
  voxels(frame, layer) {
    const key = `${frame}/${layer}`;
    if (!this.unpacked.has(key)) {
      this.unpacked.set(key, unpack(this.data, this.meta.frames[frame].grids[layer]));
    }
    return this.unpacked.get(key);
  }

  /**
   * Show a layer of a frame.
   *
   * @param {number} moment frame; the fraction is the share of the way to the next one
   * @param {number} layer index into meta.layers
   * @param {boolean[]} shown whether each label is shown
   */
  show(moment, layer, shown) {
    const frame = Math.round(moment);
    const pose = this.poseAt(moment);
    const sample = matrix(this.meta.frames[frame].pose);
    const grid2ego = matrix(this.meta.frames[frame].ego2grid).invert();
    const ego2now = pose.clone().invert();
    this.world.matrix.copy(ego2now).multiply(sample).multiply(grid2ego);
    const key = `${frame}/${layer}/${shown.map(Number).join("")}`;
    if (key !== this.key) {
      this.key = key;
      const mesh = this.meshOf(key, frame, layer, shown);
      if (this.mesh) this.world.remove(this.mesh);
      this.mesh = mesh;
      this.world.add(mesh);
      this.pick(null);
    }
    this.car.position.z = this.mesh.userData.ground;
    const lift = new THREE.Matrix4().makeTranslation(0, 0, this.mesh.userData.ground + 0.06);
    this.track.matrix.copy(lift).multiply(ego2now);
    this.draw();
  }

  /** Return the pose [ego to map] at a moment between frames. */
  poseAt(moment) {
    const { frames } = this.meta;
    const before = Math.floor(moment), share = moment - before;
    const first = matrix(frames[before].pose);
    if (!share) return first;
    const parts = [first, matrix(frames[before + 1].pose)].map((pose) => {
      const part = { p: new THREE.Vector3(), q: new THREE.Quaternion(), s: new THREE.Vector3() };
      pose.decompose(part.p, part.q, part.s);
      return part;
    });
    const [a, b] = parts;
    return new THREE.Matrix4().compose(a.p.lerp(b.p, share), a.q.slerp(b.q, share), a.s);
  }

  /** Return the mesh of the faces, from the cache or new. */
  meshOf(key, frame, layer, shown) {
    const voxels = this.voxels(frame, layer);
    this.grid.fill(voxels, shown); // also needed for picking
    const found = this.meshes.get(key);
    if (found) {
      this.meshes.delete(key);
      this.meshes.set(key, found);
      return found;
    }
    const ego2grid = matrix(this.meta.frames[frame].ego2grid);
    const ground = this.groundHeight(ego2grid);
    const turn = new THREE.Matrix4().extractRotation(ego2grid);
    const sun = new THREE.Vector3(...this.meta.toSun).applyMatrix4(turn).toArray();
    sun[2] = Math.max(sun[2], 0.2);
    this.grid.castSun(sun, this.carCells(ego2grid, ground));
    const faces = this.grid.faces(sun);
    const { order, starts } = byPlane(faces.cells, faces.count);
    const geometry = faceGeometry({
      cell: { array: faces.cells, size: 1 },
      label: { array: faces.labels, size: 1 },
      light: { array: faces.light, size: 4, normalised: true },
    }, faces.count, order);
    const mesh = new THREE.Mesh(geometry, [this.materials[layer]]);
    mesh.frustumCulled = false;
    mesh.userData = { ground, faces: faces.count, starts };
    this.meshes.set(key, mesh);
    if (this.meshes.size > CACHED_MESHES) {
      const [oldest, mesh] = this.meshes.entries().next().value;
      mesh.geometry.dispose();
      this.meshes.delete(oldest);
    }
    return mesh;
  }

  /** Yield the cells of the grid within a box of the ego frame: {cell, column, z, point}. */
  * cellsIn(low, high, ego2grid) {
    const { gridMin, voxelSize, shape } = this.meta;
    const box = new THREE.Box3();
    for (let i = 0; i < 8; i++) {
      const corner = [0, 1, 2].map((axis) => (i & (1 << axis) ? high : low)[axis]);
      box.expandByPoint(new THREE.Vector3(...corner).applyMatrix4(ego2grid));
    }
    const bound = (vector, round, axis) =>
      Math.min(shape[axis], Math.max(0, round((vector.getComponent(axis) - gridMin[axis]) / voxelSize[axis])));
    const first = [0, 1, 2].map((axis) => bound(box.min, Math.floor, axis));
    const last = [0, 1, 2].map((axis) => bound(box.max, Math.ceil, axis));
    const grid2ego = ego2grid.clone().invert(), point = new THREE.Vector3();
    for (let x = first[0]; x < last[0]; x++) {
      for (let y = first[1]; y < last[1]; y++) {
        for (let z = first[2]; z < last[2]; z++) {
          point.fromArray([x, y, z].map((v, axis) => gridMin[axis] + (v + 0.5) * voxelSize[axis]));
          yield { cell: this.grid.padded(x, y, z), column: x * shape[1] + y, z: point.applyMatrix4(grid2ego).z, point };
        }
      }
    }
  }

  /** Return the top of the ground below the car (ego frame, metres): the median of its columns. */
  groundHeight(ego2grid) {
    const [low, high] = CAR_BOX;
    const tops = new Map();
    for (const { cell, column, z } of this.cellsIn([low[0], low[1], -0.7], [high[0], high[1], 0.7], ego2grid)) {
      if (this.grid.labels[cell] !== 255 && Math.abs(z) < 0.7) {
        tops.set(column, Math.max(tops.get(column) ?? -Infinity, z));
      }
    }
    if (!tops.size) return this.mesh?.userData.ground ?? 0;
    const sorted = [...tops.values()].sort((a, b) => a - b);
    return sorted[sorted.length >> 1] + 0.5 * this.meta.voxelSize[2];
  }

  carCells(ego2grid, ground) {
    const [low, high] = CAR_BOX.map(([x, y, z]) => [x, y, z + ground]);
    const cells = [];
    for (const { cell, point } of this.cellsIn(low, high, ego2grid)) {
      if (point.toArray().every((v, axis) => v >= low[axis] && v <= high[axis])) cells.push(cell);
    }
    return cells;
  }

  /** Return the voxel at a position on the canvas (pixels), or null. */
  hit(x, y) {
    const place = new THREE.Vector2(
      (x / this.canvas.clientWidth) * 2 - 1, 1 - (y / this.canvas.clientHeight) * 2);
    const caster = new THREE.Raycaster();
    caster.setFromCamera(place, this.camera);
    const ray = caster.ray.applyMatrix4(this.world.matrix.clone().invert());
    const { gridMin, voxelSize } = this.meta;
    const origin = ray.origin.toArray().map((v, i) => (v - gridMin[i]) / voxelSize[i]);
    const direction = ray.direction.toArray().map((v, i) => (v || 1e-9) / voxelSize[i]);
    return this.grid.firstHit(origin, direction);
  }

  /** Mark a voxel; null for none. */
  pick(cell) {
    const key = cell?.join();
    if (key === this.picked) return;
    this.picked = key;
    this.marker.visible = Boolean(cell);
    if (cell) {
      const { gridMin, voxelSize } = this.meta;
      this.marker.position.fromArray(cell.map((v, i) => gridMin[i] + (v + 0.5) * voxelSize[i]));
      this.marker.scale.fromArray(voxelSize.map((v) => 1.04 * v));
    }
    this.draw();
  }

  /** Return the centre of a voxel in the ego frame, metres. */
  egoPlace(frame, cell) {
    const { gridMin, voxelSize } = this.meta;
    const point = new THREE.Vector3(...cell.map((v, i) => gridMin[i] + (v + 0.5) * voxelSize[i]));
    return point.applyMatrix4(matrix(this.meta.frames[frame].ego2grid).invert()).toArray();
  }

  /** Move to a named camera, at once or in half a second. */
  goTo(name, atOnce) {
    const e = this.meta.extent / 40;
    const reach = Math.max(1.1, 1.2 / this.camera.aspect); // larger distance on narrow screens
    const high = this.meta.extent / Math.tan((FIELD_OF_VIEW / 2) * (Math.PI / 180));
    const angle = (-145 / 180) * Math.PI;
    const places = {
      chase: [[-34 * e, 0, 27 * e], [4.5 * e, 0, 0]],
      orbit: [[44 * e * Math.cos(angle), 44 * e * Math.sin(angle), 31 * e], [0, 0, -1.5 * e]],
      front: [[-6.5, 0, 4.2], [10, 0, 0.6]],
      top: [[-0.01, 0, (1.06 * high) / Math.min(1, this.camera.aspect)], [0, 0, 0]],
    };
    const [eye, target] = places[name].map((v) => new THREE.Vector3(...v));
    if (name === "chase" || name === "orbit") eye.sub(target).multiplyScalar(reach).add(target);
    this.controls.autoRotate = name === "orbit" && !atOnce;
    this.flight = {
      start: performance.now(), length: atOnce ? 0 : 500, eye, target,
      fromEye: this.camera.position.clone(), fromTarget: this.controls.target.clone(),
    };
    this.draw();
  }

  setTheme(dark) {
    this.track.material.color.set(dark ? 0xffffff : 0x10202c);
    this.marker.material.color.set(dark ? 0xffffff : 0x000000);
    this.draw();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    // Centre of the area not covered by the legend and the timeline.
    const right = width > 700 ? 116 : 0;
    this.camera.setViewOffset(width, height, right, 24, width, height);
    this.draw();
  }

  /** Request a redraw; nothing is drawn without changes. */
  draw() {
    this.wanted = true;
  }

  setLevel(level) {
    this.level = level;
    this.pace.mean = this.pace.count = 0;
    this.renderer.setPixelRatio(SHARPNESS[level] * Math.min(window.devicePixelRatio, 2));
  }

  /** Choose the resolution of a moving scene. `still`: nothing has to be drawn. */
  adapt(now, still) {
    const { pace } = this;
    if (still) {
      if (this.level && now - pace.last > REST) {
        this.setLevel(0);
        this.draw();
      }
      pace.moving = false;
      return;
    }
    // The first picture of a movement, and one with a new mesh, are not measured.
    if (pace.moving && pace.mesh === this.mesh) {
      pace.count += 1;
      pace.mean += (now - pace.last - pace.mean) / Math.min(pace.count, 8);
      if (pace.count > 2 && pace.mean > SLOW && this.level < SHARPNESS.length - 1) this.setLevel(this.level + 1);
      if (pace.count > 30 && pace.mean < QUICK && this.level > 0) this.setLevel(this.level - 1);
    }
    Object.assign(pace, { last: now, moving: true, mesh: this.mesh });
  }

  step(now) {
    if (this.flight) this.fly(now);
    this.controls.update();
    if (!this.mesh) return;
    this.adapt(now, !this.wanted);
    if (!this.wanted) return;
    this.wanted = false;
    this.canvas.dataset.sharp = this.level === 0;
    this.fog();
    this.cullBackFaces();
    this.renderer.render(this.scene, this.camera);
    this.drawn = (this.drawn ?? 0) + 1;
  }

  fly(now) {
    const { start, length, eye, target, fromEye, fromTarget } = this.flight;
    const share = length ? Math.min(1, Math.max(0, (now - start) / length)) : 1;
    const eased = share * share * (3 - 2 * share);
    this.camera.position.lerpVectors(fromEye, eye, eased);
    this.controls.target.lerpVectors(fromTarget, target, eased);
    if (share === 1) this.flight = null;
    this.draw();
  }

  /** Back-face culling: draw only faces towards the camera, about half of all. */
  cullBackFaces() {
    const { gridMin, voxelSize } = this.meta;
    const eye = this.camera.position.clone().applyMatrix4(this.world.matrix.clone().invert());
    const { geometry, userData } = this.mesh;
    geometry.clearGroups();
    const runs = facing(userData.starts, eye.toArray().map((v, i) => (v - gridMin[i]) / voxelSize[i]));
    for (const [first, last] of runs) geometry.addGroup(6 * first, 6 * (last - first), 0);
  }

  /** Set the fog: from halfway through the scene to its end; none from far above. */
  fog() {
    const { gridMin, voxelSize, shape } = this.meta;
    const low = new THREE.Vector3(...gridMin);
    const high = new THREE.Vector3(...gridMin.map((v, i) => v + shape[i] * voxelSize[i]));
    const box = new THREE.Box3(low, high).applyMatrix4(this.world.matrix);
    const eye = this.camera.position;
    const near = box.distanceToPoint(eye);
    const far = new THREE.Vector3(
      ...["x", "y", "z"].map((axis) => Math.max(Math.abs(eye[axis] - box.min[axis]), Math.abs(eye[axis] - box.max[axis]))),
    ).length();
    const uniforms = this.mesh.material[0].uniforms;
    uniforms.fogStart.value = 0.5 * (near + far);
    uniforms.fogLength.value = Math.max(0.5 * (far - near), 1);
    uniforms.fogStrength.value = FOG * Math.min(1, (2 * (far - near)) / far);
    uniforms.edgeWidth.value = Math.max(0.5, (this.canvas.clientHeight / 900) * this.renderer.getPixelRatio());
  }
}

function matrix(rows) {
  return new THREE.Matrix4().set(...rows);
}
