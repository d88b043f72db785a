// The protocol of llmos_stream in JavaScript: chunks, frames, payloads, chains of versions. See docs/protocol.md.

import { createHash, randomBytes } from 'node:crypto';
import { decode, encode } from '@msgpack/msgpack';
import { decompress } from 'fzstd';

export const SLICE = 1 << 20; // elements of a slice
export const CODECS = { float32: 1, float16: 2, bfloat16: 3, int8: 4, int4: 5, topk: 6, topk2: 7 };

export const sha256 = (bytes) => createHash('sha256').update(bytes).digest();
export const hex = (bytes) => Buffer.from(bytes).toString('hex');
const bytesOf = (floats) => Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength);
export const weightsDigest = (weights) => hex(sha256(bytesOf(weights)));

// --- Chunks: the value of a record is a header of 32 bytes and a piece of a message.

export function readChunk(value) {
  if (value.length < 33 || hex(value.subarray(0, 6)) !== '94a24c43c410' || value[22] !== 0xce || value[27] !== 0xce) {
    throw new Error('no chunk');
  }
  const index = value.readUInt32BE(23);
  const count = value.readUInt32BE(28);
  return { id: hex(value.subarray(6, 22)), index, count, data: value.subarray(32) };
}

export function cut(message, size = 983040) {
  const id = randomBytes(16);
  const count = Math.ceil(message.length / size);
  return Array.from({ length: count }, (_, index) => {
    const header = Buffer.alloc(32);
    header.set([0x94, 0xa2, 0x4c, 0x43, 0xc4, 0x10]);
    header.set(id, 6);
    header[22] = 0xce;
    header.writeUInt32BE(index, 23);
    header[27] = 0xce;
    header.writeUInt32BE(count, 28);
    return Buffer.concat([header, message.subarray(index * size, (index + 1) * size)]);
  });
}

export class Assembler {
  #pending = new Map();

  // The whole message, once its last chunk is here; else null.
  push(partition, value) {
    const { id, index, count, data } = readChunk(value);
    const key = `${partition}:${id}`;
    if (index === 0) this.#pending.set(key, []); // begun, or begun anew
    const pieces = this.#pending.get(key);
    if (!pieces || index !== pieces.length) return null; // its beginning was never seen, or a chunk that came twice
    pieces.push(data);
    if (pieces.length < count) return null;
    this.#pending.delete(key);
    return Buffer.concat(pieces);
  }
}

// --- Frames: an opening of 14 bytes, the head, the signature's item, the payload.

const KINDS = { 1: 'update', 2: 'version', 3: 'snapshot', 4: 'local model' };

export function readFrame(message) {
  if (hex(message.subarray(0, 7)) !== '95a54c4c4d4f53') throw new Error('no frame');
  if (message[7] !== 1) throw new Error(`format version ${message[7]}`);
  if (!KINDS[message[8]]) throw new Error(`kind ${message[8]}`);
  if (message[9] !== 0xc6) throw new Error('the head is no bin 32');
  let at = 14 + message.readUInt32BE(10);
  const head = decode(message.subarray(14, at));
  const digest = hex(sha256(message.subarray(0, at))); // what a signature covers, and a child's `before`
  at += message[at] === 0xc5 ? 3 + message.readUInt16BE(at + 1) : 1;
  const payload = message.subarray(at);
  if (payload.length !== head.size) throw new Error(`a payload of ${payload.length} bytes, the head says ${head.size}`);
  if (hex(sha256(payload)) !== hex(head.digest)) throw new Error('the digest of the payload differs');
  return { kind: KINDS[message[8]], head, digest, payload };
}

export function writeUpdate(head, payload) {
  const packed = Buffer.from(encode({ ...head, size: payload.length, digest: sha256(payload) }));
  const opening = Buffer.from('95a54c4c4d4f530101c600000000', 'hex');
  opening.writeUInt32BE(packed.length, 10);
  return Buffer.concat([opening, packed, Buffer.from([0xc0]), payload]);
}

// --- Payloads: for each slice the length of a zstd frame, and the frame.

class Payload {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  // Fill `out` from the next slices.
  read(codec, params, out) {
    for (let begin = 0; begin < out.length; begin += SLICE) {
      const size = this.bytes.readUInt32LE(this.at);
      const body = Buffer.from(decompress(this.bytes.subarray(this.at + 4, this.at + 4 + size)));
      this.at += 4 + size;
      decodeBody(body, codec, params, out.subarray(begin, begin + SLICE));
    }
    return out;
  }

  finish() {
    if (this.at !== this.bytes.length) throw new Error('bytes follow the last slice');
  }
}

// Parameters in the update's codec, then buffers in float32.
export function decodePayload(bytes, codec, params, parameters, buffers = 0) {
  const out = new Float32Array(parameters + buffers);
  const payload = new Payload(bytes);
  payload.read(codec, params, out.subarray(0, parameters));
  payload.read(CODECS.float32, {}, out.subarray(parameters));
  payload.finish();
  return out;
}

function decodeBody(body, codec, params, out) {
  const n = out.length;
  if (codec === CODECS.float32) {
    readFloats(body, out);
  } else if (codec === CODECS.bfloat16) {
    const bits = new Uint32Array(out.buffer, out.byteOffset, n);
    for (let i = 0; i < n; i++) bits[i] = (body[i] << 16) | (body[n + i] << 24);
  } else if (codec === CODECS.float16) {
    for (let i = 0; i < n; i++) out[i] = half(body[i] | (body[n + i] << 8));
  } else if (codec === CODECS.int8) {
    const scales = Math.ceil(n / params.block);
    readBlocks(body, params.block, out, (i) => (body[2 * scales + i] << 24) >> 24);
  } else if (codec === CODECS.int4) {
    const scales = Math.ceil(n / params.block);
    readBlocks(body, params.block, out, (i) => ((body[2 * scales + (i >> 1)] >> (i & 1 ? 4 : 0)) & 15) - 8);
  } else if (codec === CODECS.topk) {
    readTopK(body, params, out);
  } else if (codec === CODECS.topk2) {
    readTopK2(body, params, out);
  } else {
    throw new Error(`codec ${codec}`);
  }
}

// Four streams of bytes: all lowest ones, then all second ones, up to the highest.
function readFloats(body, out) {
  const n = out.length;
  const bits = new Uint32Array(out.buffer, out.byteOffset, n);
  for (let i = 0; i < n; i++) bits[i] = body[i] | (body[n + i] << 8) | (body[2 * n + i] << 16) | (body[3 * n + i] << 24);
}

function half(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
}

// Scales are bfloat16: their low bytes, then their high bytes. An element is step x scale, rounded to float32.
function readBlocks(body, block, out, step) {
  const count = Math.ceil(out.length / block);
  const bits = new Uint32Array(1);
  const scale = new Float32Array(bits.buffer);
  for (let k = 0; k < count; k++) {
    bits[0] = (body[k] << 16) | (body[count + k] << 24);
    for (let i = k * block; i < Math.min(out.length, (k + 1) * block); i++) out[i] = step(i) * scale[0];
  }
}

function readTopK(body, params, out) {
  const kept = Math.ceil(params.fraction * out.length);
  const values = new Float32Array(kept);
  const scales = Math.ceil(kept / 4096);
  let at;
  if (params.bits === 32) {
    at = 4 * kept;
    readFloats(body.subarray(0, at), values);
  } else {
    at = 2 * scales + kept;
    readBlocks(body, 4096, values, (i) => (body[2 * scales + i] << 24) >> 24);
  }
  out.fill(0);
  const gap = gapReader(body, at);
  let index = -1;
  for (const value of values) {
    index += 1 + gap();
    out[index] = value;
  }
}

// A sign and one of two magnitudes for each kept element; gaps begin anew in every chunk.
function readTopK2(body, { chunk, keep }, out) {
  const count = Math.ceil(out.length / chunk);
  const keptOf = (k) => Math.ceil((keep * Math.min(chunk, out.length - k * chunk)) / chunk);
  let kept = 0;
  for (let k = 0; k < count; k++) kept += keptOf(k);
  const bits = new Uint32Array(2 * count); // the low magnitudes, then the high ones
  for (let i = 0; i < 2 * count; i++) bits[i] = (body[i] << 16) | (body[2 * count + i] << 24);
  const magnitudes = new Float32Array(bits.buffer);
  const signs = 4 * count;
  const choices = signs + Math.ceil(kept / 8);
  const gap = gapReader(body, choices + Math.ceil(kept / 8));
  const bit = (from, i) => (body[from + (i >> 3)] >> (i & 7)) & 1;
  out.fill(0);
  let i = 0;
  for (let k = 0; k < count; k++) {
    let index = k * chunk - 1;
    for (const end = i + keptOf(k); i < end; i++) {
      index += 1 + gap();
      const magnitude = magnitudes[bit(choices, i) * count + k];
      out[index] = bit(signs, i) ? -magnitude : magnitude;
    }
  }
}

// As many bytes 255 as fit, each worth 255, and one byte below 255.
function gapReader(body, at) {
  return () => {
    let gap = 0;
    for (; body[at] === 255; at++) gap += 255;
    return gap + body[at++];
  };
}

// --- Writing an update: `compress` is any zstd that names the content's size in its frame.

export function encodeInt8(delta, block, compress) {
  return sections(delta, compress, (values) => {
    const count = Math.ceil(values.length / block);
    const body = Buffer.alloc(2 * count + values.length);
    const bits = new Uint32Array(1);
    const scale = new Float32Array(bits.buffer);
    for (let k = 0; k < count; k++) {
      const part = values.subarray(k * block, (k + 1) * block);
      scale[0] = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127;
      if (bits[0] & 0xffff) bits[0] = (bits[0] & 0xffff0000) + 0x10000; // up to bfloat16
      if (scale[0] < 2 ** -126) bits[0] = 0;
      body[k] = bits[0] >>> 16;
      body[count + k] = bits[0] >>> 24;
      part.forEach((value, i) => {
        const step = scale[0] ? Math.max(-127, Math.min(127, Math.round(value / scale[0]))) : 0;
        body[2 * count + k * block + i] = step;
      });
    }
    return body;
  });
}

export function encodeFloat32(delta, compress) {
  return sections(delta, compress, (values) => {
    const n = values.length;
    const bytes = bytesOf(values);
    const body = Buffer.alloc(4 * n);
    for (let i = 0; i < n; i++) for (let k = 0; k < 4; k++) body[k * n + i] = bytes[4 * i + k];
    return body;
  });
}

function sections(delta, compress, encodeBody) {
  const pieces = [];
  for (let begin = 0; begin < delta.length; begin += SLICE) {
    const frame = Buffer.from(compress(encodeBody(delta.subarray(begin, begin + SLICE))));
    const length = Buffer.alloc(4);
    length.writeUInt32LE(frame.length);
    pieces.push(length, frame);
  }
  return Buffer.concat(pieces);
}

// --- What a follower of `<f>.models` holds.

const numel = (tensors) => tensors.reduce((sum, [, shape]) => sum + shape.reduce((product, size) => product * size, 1), 0);
const isBuffer = (row) => row[3] === 'buffer';

// Of a layout: its rows as JSON without spaces, in ASCII.
export function layoutDigest(tensors) {
  const escape = (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return sha256(JSON.stringify(tensors).replace(/[\u007f-\uffff]/g, escape));
}

// The fragments of a model: ranges of whole tensors, of nearly as many parameters each, buffers in the last one.
export function fragmentsOf(tensors, count) {
  const begins = [0];
  for (const row of tensors) begins.push(begins.at(-1) + numel([row]));
  const parameters = numel(tensors.filter((row) => !isBuffer(row)));
  const borders = [...new Set(begins.filter((at) => at > 0 && at < parameters))];
  if (count - 1 > borders.length) throw new Error(`${count} fragments of a model that has ${borders.length + 1} tensors`);
  const ends = [0];
  for (let done = 1, taken = 0; done < count; done++) {
    const off = (i) => Math.abs(borders[i] * count - done * parameters);
    let best = taken;
    for (let i = taken; i < borders.length - (count - 1 - done); i++) {
      if (off(i) < off(best)) best = i;
    }
    ends.push(borders[best]);
    taken = best + 1;
  }
  ends.push(begins.at(-1));
  return ends.slice(1).map((end, i) => {
    const begin = ends[i];
    // A tensor without elements belongs to the fragment that begins where it lies.
    const rows = tensors.filter((_, t) => begins[t] >= begin && (begins[t] < end || end === begins.at(-1)));
    return { range: [begin, end], layout: layoutDigest(rows), buffers: numel(rows.filter(isBuffer)) };
  });
}

export class Model {
  number = null; // of the version that it is at
  weights = null;

  // Take the next version. False: it does not follow on what is held, so wait for a full one.
  apply({ head, payload }) {
    if (head.kind === 'full') {
      this.tensors = head.tensors;
      this.buffers = numel(head.tensors.filter(isBuffer));
      this.weights = decodePayload(payload, head.codec, head.params ?? {}, numel(head.tensors));
    } else {
      if (!['delta', 'fragment'].includes(head.kind)) throw new Error(`version ${head.number}: kind ${head.kind}`);
      if (this.number !== head.parent) return false;
      const parameters = this.weights.length - this.buffers;
      const [begin, end] = head.kind === 'fragment' ? head.range : [0, this.weights.length];
      if (!(begin < parameters && (end <= parameters || end === this.weights.length))) {
        throw new Error(`version ${head.number}: elements ${begin} to ${end} are no fragment`);
      }
      const count = Math.min(end, parameters) - begin;
      const delta = decodePayload(payload, head.codec, head.params ?? {}, count, end - begin - count);
      for (let i = 0; i < count; i++) this.weights[begin + i] += delta[i]; // a Float32Array rounds
      this.weights.set(delta.subarray(count), begin + count);
    }
    if (weightsDigest(this.weights) !== hex(head.weights)) throw new Error(`version ${head.number}: the digest differs`);
    this.number = head.number;
    this.layout = head.layout;
    this.fragments = fragmentsOf(this.tensors, head.rule?.aggregation?.fragments ?? 1);
    this.moved = this.fragments.findIndex(({ range }) => String(range) === String(head.range)); // -1: all of it
    return true;
  }
}
